"""Wasserstein-2 distance of the Gaussians with the same moments."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bnprobe.distances.base import Distance, FloatArray, Summary
from bnprobe.distances.moments import moment_error

__all__ = ["GaussianWasserstein"]


@dataclass(frozen=True)
class GaussianWasserstein(Distance):
    r"""Wasserstein-2 distance of the Gaussians with these means and variances, in the units of the values.

    .. math:: W_2(p, q) = \sqrt{(\mu_p - \mu_q)^2 + (\sigma_p - \sigma_q)^2}

    (Dowson & Landau 1982.) Of any two distributions with these moments it is a lower bound of the Wasserstein-2
    distance (Gelbrich 1990). A variance of 0 is a constant, at any place.

    *Resolution.* What 1.96 standard errors of the moments change; 0 where they are exact. No grid is involved. That
    the distributions are no Gaussians is not counted.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"mean", "variance"})
    symmetric: ClassVar[bool] = True
    metric: ClassVar[bool] = True
    homogeneity: ClassVar[float] = 1.0

    def _value(self, p: Summary, q: Summary) -> FloatArray:
        distance: FloatArray = np.hypot(p.mean - q.mean, np.sqrt(p.variance) - np.sqrt(q.variance))
        return distance

    def _error(self, p: Summary, q: Summary) -> FloatArray:
        return moment_error(self._value, p, q)
