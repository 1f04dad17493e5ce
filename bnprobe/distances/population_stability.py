"""Population stability index: how much the shares of the reference's bins have changed."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bnprobe.distances import shares
from bnprobe.distances.base import Distance, FloatArray, Summary
from bnprobe.errors import ArgumentError

__all__ = ["PopulationStability"]


@dataclass(frozen=True)
class PopulationStability(Distance):
    r"""Population stability index over the bins between the reference's quantiles.

    .. math:: PSI(p, q) = \sum_b (p_b - q_b) \ln(p_b / q_b)

    Below 0.1 is usually read as no shift and above 0.25 as a large one (Siddiqi 2006). Bins are cut at
    quantiles of the reference ``p`` and hold their upper end, as is usual; where quantiles of the reference tie, the
    atom there (a ReLU's zeros, a constant layer) has a bin of its own, without which values moving to its other
    side would go unseen. The order of the arguments matters.

    *Resolution.* An estimate, no bound: what the index changes when every bin's shares change as they do when every
    other level is left out of the grids, plus the 95 % quantile of the index between equal distributions,
    ``chi^2_(bins - 1) * (1/n_p + 1/n_q)`` (Yurdakul 2018), plus 1.96 standard deviations that sampling gives the
    index to first order. Here n is the sample's size, and the count where all values were seen.

    Args:
        bins: number of bins of equal share in the reference. 10 by the same convention.
        floor: shares below it are raised to it, as an empty bin would make the index infinite. Ours: 1e-4, one
            value in ten thousand; 0 leaves it infinite.

    Raises:
        ArgumentError: ``bins`` is below 2 or ``floor`` is not in [0, 1/bins).
    """

    bins: int = 10
    floor: float = 1e-4

    needs: ClassVar[frozenset[str]] = frozenset({"quantiles"})
    symmetric: ClassVar[bool] = False
    metric: ClassVar[bool] = False
    homogeneity: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.bins, int) or self.bins < 2:
            raise ArgumentError(f"bins must be an int of at least 2; got {self.bins!r}")
        if not 0 <= self.floor < 1 / self.bins:
            raise ArgumentError(f"floor must be in [0, 1/bins = {1 / self.bins:g}); got {self.floor!r}")

    def _value(self, p: Summary, q: Summary) -> FloatArray:
        cuts = self._cuts(p)
        return np.asarray(self._term(shares.fine_shares(p, cuts), shares.fine_shares(q, cuts)).sum(-1))

    def _error(self, p: Summary, q: Summary) -> FloatArray:
        cuts = self._cuts(p)
        of_p, of_q = shares.shares_of(p, cuts), shares.shares_of(q, cuts)
        n_p, n_q = shares.draws(p), shares.draws(q)
        noise = shares.null_quantile(of_p.fine) * (1 / n_p + 1 / n_q)
        sampling = shares.sampling_change(self._slopes, of_p, of_q, n_p, n_q)
        error: FloatArray = shares.grid_change(self._term, of_p, of_q) + noise + sampling
        infinite = np.isinf(self._term(of_p.fine, of_q.fine).sum(-1)) & ~np.isnan(n_p + n_q)
        return np.where(infinite, np.inf, error)

    def _cuts(self, reference: Summary) -> shares.Cuts:
        return shares.cuts_at(reference, np.arange(1, self.bins) / self.bins)

    def _term(self, p: FloatArray, q: FloatArray) -> FloatArray:
        p, q = np.maximum(p, self.floor), np.maximum(q, self.floor)
        term: FloatArray = (p - q) * np.log(_ratio(p, q))
        return term

    def _slopes(self, p: FloatArray, q: FloatArray) -> tuple[FloatArray, FloatArray]:
        ratio = _ratio(np.maximum(p, self.floor), np.maximum(q, self.floor))
        return np.log(ratio) - 1 / ratio, np.log(ratio) + ratio


def _ratio(p: FloatArray, q: FloatArray) -> FloatArray:
    """``p / q``; two empty bins do not differ."""
    return np.where(p == q, 1.0, p / q)
