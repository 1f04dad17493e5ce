"""Kolmogorov-Smirnov distance: the largest difference in probability."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bnprobe.distances.base import Distance, FloatArray, Summary
from bnprobe.distances.model import masses, refine

__all__ = ["KolmogorovSmirnov"]


@dataclass(frozen=True)
class KolmogorovSmirnov(Distance):
    r"""Kolmogorov-Smirnov distance, a difference of probabilities in [0, 1].

    .. math:: D(p, q) = \sup_x |F_p(x) - F_q(x)|

    The supremum over the grids' straight lines and atoms is exact: it lies at a knot of either grid, on its left or
    on its right.

    *Resolution.* A bound. Inside a cell a distribution function is known up to the cell's mass, so each side adds the
    largest mass of its cells that have a width (a constant has none), one value's rank, 1/count, as quantiles are
    interpolated between neighbouring values, and the Dvoretzky-Kiefer-Wolfowitz-Massart bound of its sample (95 %).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"quantiles"})
    symmetric: ClassVar[bool] = True
    metric: ClassVar[bool] = True
    homogeneity: ClassVar[float] = 0.0

    def _value(self, p: Summary, q: Summary) -> FloatArray:
        both = refine(p, q)
        return np.asarray(np.abs(both.p - both.q).max(-1))

    def _error(self, p: Summary, q: Summary) -> FloatArray:
        return np.minimum(_own_error(p) + _own_error(q), 1.0)


def _own_error(summary: Summary) -> FloatArray:
    wide = np.diff(summary.quantiles) > 0
    unknown = np.where(wide, masses(summary.levels) + 1 / summary.count[:, None], 0.0)
    return np.asarray(unknown.max(-1) + summary.rank_error)
