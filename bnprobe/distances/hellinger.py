"""Hellinger distance of the Gaussians with the same moments."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bnprobe.distances.base import Distance, FloatArray, Summary
from bnprobe.distances.moments import moment_error

__all__ = ["Hellinger"]


@dataclass(frozen=True)
class Hellinger(Distance):
    r"""Hellinger distance of the Gaussians with these means and variances, from 0 to 1.

    .. math::
        H(p, q)^2 = 1 - \sqrt{\frac{2 \sigma_p \sigma_q}{\sigma_p^2 + \sigma_q^2}}
                    \exp\left( -\frac{(\mu_p - \mu_q)^2}{4 (\sigma_p^2 + \sigma_q^2)} \right)

    A variance of 0 is a constant, which shares no density with anything else: it is at distance 1 from everything
    but itself.

    *Resolution.* What 1.96 standard errors of the moments change; 0 where they are exact. No grid is involved. That
    the distributions are no Gaussians is not counted.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"mean", "variance"})
    symmetric: ClassVar[bool] = True
    metric: ClassVar[bool] = True
    homogeneity: ClassVar[float] = 0.0

    def _value(self, p: Summary, q: Summary) -> FloatArray:
        sd_p, sd_q = np.sqrt(p.variance), np.sqrt(q.variance)
        size = np.hypot(sd_p, sd_q)
        # 1 - 2 sd_p sd_q / size^2 is this square: logarithms of it do not cancel where the two are close.
        shape, shift = ((sd_p - sd_q) / size) ** 2, ((p.mean - q.mean) / size) ** 2
        distance = np.sqrt(np.abs(np.expm1(np.log1p(-shape) / 2 - shift / 4)))
        return np.where(size > 0, distance, np.where(p.mean == q.mean, 0.0, 1.0))

    def _error(self, p: Summary, q: Summary) -> FloatArray:
        return np.minimum(moment_error(self._value, p, q), 1.0)
