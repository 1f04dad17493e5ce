"""Kullback-Leibler divergence of the Gaussians with the same moments."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bnprobe.distances.base import Distance, FloatArray, Summary
from bnprobe.distances.moments import moment_error

__all__ = ["KullbackLeibler"]


@dataclass(frozen=True)
class KullbackLeibler(Distance):
    r"""Kullback-Leibler divergence of the Gaussians with these means and variances, in nats.

    .. math::
        KL(p \| q) = \tfrac12 \left( \frac{\sigma_p^2}{\sigma_q^2} - 1 - \ln \frac{\sigma_p^2}{\sigma_q^2}
                     + \frac{(\mu_p - \mu_q)^2}{\sigma_q^2} \right)

    A variance of 0 is a constant, which shares no density with anything else: the divergence is infinite as soon as
    one side is constant, except that two equal constants are at 0. It is infinite, too, where the ratio of two
    variances leaves the range of floats.

    *Resolution.* What 1.96 standard errors of the moments change; 0 where they are exact. No grid is involved. That
    the distributions are no Gaussians is not counted.

    Args:
        reverse: KL(q \| p) in place of KL(p \| q); p is the reference. Forward by default, as the textbooks write it.
    """

    reverse: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"mean", "variance"})
    symmetric: ClassVar[bool] = False
    metric: ClassVar[bool] = False
    homogeneity: ClassVar[float] = 0.0

    @property
    def name(self) -> str:
        """``kullback_leibler``, or ``reverse_kullback_leibler``."""
        return "reverse_kullback_leibler" if self.reverse else "kullback_leibler"

    def _value(self, p: Summary, q: Summary) -> FloatArray:
        if self.reverse:
            p, q = q, p
        # log1p loses no digits where the variances are close, and a difference of logarithms none where they are not.
        excess = (p.variance - q.variance) / q.variance
        ratio = np.where(np.abs(excess) < 0.5, np.log1p(excess), np.log(p.variance) - np.log(q.variance))
        divergence = (np.maximum(excess - ratio, 0.0) + ((p.mean - q.mean) / np.sqrt(q.variance)) ** 2) / 2
        constant = (p.variance == 0) | (q.variance == 0)
        equal = (p.variance == q.variance) & (p.mean == q.mean)
        return np.where(equal, 0.0, np.where(constant, np.inf, divergence))

    def _error(self, p: Summary, q: Summary) -> FloatArray:
        return moment_error(self._value, p, q)
