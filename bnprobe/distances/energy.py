"""Energy distance: the mean square difference of distribution functions."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bnprobe.distances.base import Distance, FloatArray, Summary
from bnprobe.distances.model import Z95, binomial_width, masses, refine, sample_size

__all__ = ["Energy"]


@dataclass(frozen=True)
class Energy(Distance):
    r"""Energy distance (Székely & Rizzo 2013, the square root, as scipy has it), in square roots of the values' unit.

    .. math:: E(p, q) = \sqrt{2 \int (F_p(x) - F_q(x))^2 \, dx}

    The integral over the grids' straight lines is exact.

    *Resolution.* By the triangle inequality each side adds its own distance to its model:

    - a bound for the grid: the square root of 2/3 of the sum of every cell's width times squared mass, which a
      distribution whose cells keep all their mass at one end attains;
    - a bound for the rank of a single value, 1/count, as quantiles are interpolated between neighbouring values:
      ``sqrt(2 * range) / count``;
    - where values were sampled, an estimate: 1.96 times the root of its expected square,
      ``sqrt(2 / n * integral of F (1 - F))``. What lies beyond a sample's extremes is not seen.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"quantiles"})
    symmetric: ClassVar[bool] = True
    metric: ClassVar[bool] = True
    homogeneity: ClassVar[float] = 0.5

    def _value(self, p: Summary, q: Summary) -> FloatArray:
        both = refine(p, q)
        difference = both.p - both.q
        start, stop = difference[:, :-1], difference[:, 1:]
        squares = (start**2 + start * stop + stop**2) / 3
        distance: FloatArray = np.sqrt(2 * (squares * np.diff(both.knots)).sum(-1))
        return distance

    def _error(self, p: Summary, q: Summary) -> FloatArray:
        return _own_error(p) + _own_error(q)


def _own_error(summary: Summary) -> FloatArray:
    width, levels = np.diff(summary.quantiles), summary.levels
    grid = np.sqrt(2 / 3 * (width @ masses(levels) ** 2))
    rank = np.sqrt(2 * width.sum(-1)) / summary.count
    sampling = Z95 * np.sqrt(2 * (width @ binomial_width(levels, 1)) / sample_size(summary.rank_error))
    error: FloatArray = grid + rank + sampling
    return error
