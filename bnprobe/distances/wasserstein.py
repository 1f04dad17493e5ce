"""Wasserstein-1 distance: how far probability must be carried."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bnprobe.distances.base import Distance, FloatArray, Summary
from bnprobe.distances.model import Z95, binomial_width, masses, on_levels, sample_size

__all__ = ["Wasserstein"]


@dataclass(frozen=True)
class Wasserstein(Distance):
    r"""Wasserstein-1 (earth mover's) distance, in the units of the values.

    .. math:: W_1(p, q) = \int_0^1 |F_p^{-1}(u) - F_q^{-1}(u)| \, du

    The integral over the grid's straight lines is exact, crossings included. Moving a distribution by a changes its
    distance to itself from 0 to \|a\|.

    *Resolution.* By the triangle inequality each side adds its own distance to its model:

    - a bound for the grid: half of every cell's mass times width, which a distribution whose cells keep all their
      mass at one end attains;
    - a bound for the rank of a single value, 1/count, as quantiles are interpolated between neighbouring values:
      the range over the count;
    - where values were sampled, an estimate: 1.96 standard errors of the distribution function at each point,
      integrated, ``1.96 / sqrt(n) * integral of sqrt(F (1 - F))`` (1.96 times the bound on the expected distance of
      Bobkov & Ledoux 2019, section 3). What lies beyond a sample's extremes is not seen.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"quantiles"})
    symmetric: ClassVar[bool] = True
    metric: ClassVar[bool] = True
    homogeneity: ClassVar[float] = 1.0

    def _value(self, p: Summary, q: Summary) -> FloatArray:
        levels = np.union1d(p.levels, q.levels)
        difference = on_levels(p, levels) - on_levels(q, levels)
        size = np.abs(difference)
        start, stop = size[:, :-1], size[:, 1:]
        height = (start + stop) / 2
        crossing = np.sign(difference[:, :-1]) * np.sign(difference[:, 1:]) < 0
        # Two triangles; dividing first keeps squares from overflowing.
        height[crossing] = ((start * (start / height) + stop * (stop / height)) / 4)[crossing]
        distance: FloatArray = height @ masses(levels)
        return distance

    def _error(self, p: Summary, q: Summary) -> FloatArray:
        return _own_error(p) + _own_error(q)


def _own_error(summary: Summary) -> FloatArray:
    width, levels = np.diff(summary.quantiles), summary.levels
    grid = width @ masses(levels) / 2
    rank = width.sum(-1) / summary.count
    sampling = Z95 * (width @ binomial_width(levels, 0.5)) / np.sqrt(sample_size(summary.rank_error))
    error: FloatArray = grid + rank + sampling
    return error
