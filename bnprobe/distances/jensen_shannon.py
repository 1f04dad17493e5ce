"""Jensen-Shannon distance: how well one value tells which of two distributions it came from."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import xlogy

from bnprobe.distances import shares
from bnprobe.distances.base import Distance, FloatArray, Summary
from bnprobe.errors import ArgumentError

__all__ = ["JensenShannon"]


@dataclass(frozen=True)
class JensenShannon(Distance):
    r"""Jensen-Shannon distance, the square root of the divergence in nats: from 0 to ``sqrt(ln 2)`` = 0.833.

    .. math:: J(p, q) = \sqrt{\tfrac12 KL(p \| m) + \tfrac12 KL(q \| m)}, \quad m = \tfrac12 (p + q)

    Computed over bins that end at quantiles of both sides, with bins of their own for large atoms (a ReLU's zeros, a
    constant). Binning can only lower it (the data processing inequality), so it tends to be too low by a few per
    cent; bins as narrow as the grid's cells would count their noise as difference. Distributions that share no point
    are at the largest distance however near they lie: two different constants are. Between densities the distance is
    a metric (Endres & Schindelin 2003); as the bins belong to a pair, the triangle inequality is not promised here.

    *Resolution.* An estimate, no bound: finitely many quantiles cannot bound a distance between densities. It is what
    the distance changes when its square changes

    - by what bins joined in pairs would lose more;
    - by what every bin's shares change when every other level is left out of the grids;
    - by 1.96 standard deviations that sampling gives it to first order, and the 95 % quantile of what sampling makes
      of it between equal distributions, ``chi^2 / 8 * (1/n_p + 1/n_q)``. Here n is the sample's size, and the count
      where all values were seen, as a density stands behind finitely many values only by assumption.

    Args:
        bins: bins of equal share in each side. Ours: 10, as for the population stability index; more lose less, but
            count more noise.

    Raises:
        ArgumentError: ``bins`` is below 4, when joining them in pairs says nothing about what is lost.
    """

    bins: int = 10

    needs: ClassVar[frozenset[str]] = frozenset({"quantiles"})
    symmetric: ClassVar[bool] = True
    metric: ClassVar[bool] = False
    homogeneity: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.bins, int) or self.bins < 4:
            raise ArgumentError(f"bins must be an int of at least 4; got {self.bins!r}")

    def _value(self, p: Summary, q: Summary) -> FloatArray:
        cuts = self._cuts(p, q)
        return np.sqrt(_divergence(shares.fine_shares(p, cuts), shares.fine_shares(q, cuts)))

    def _error(self, p: Summary, q: Summary) -> FloatArray:
        cuts = self._cuts(p, q)
        of_p, of_q = shares.shares_of(p, cuts), shares.shares_of(q, cuts)
        n_p, n_q = shares.draws(p), shares.draws(q)
        square = _divergence(of_p.fine, of_q.fine)
        lost = np.maximum(square - _divergence(of_p.coarse, of_q.coarse), 0)
        sampling = shares.sampling_change(_slopes, of_p, of_q, n_p, n_q)
        noise = shares.null_quantile((of_p.fine + of_q.fine) / 2) / 8 * (1 / n_p + 1 / n_q)
        change = lost + shares.grid_change(_term, of_p, of_q) + sampling + noise
        up = np.sqrt(square + change) - np.sqrt(square)
        down = np.sqrt(square) - np.sqrt(np.maximum(square - change, 0))
        return np.asarray(np.minimum(np.maximum(up, down), np.sqrt(np.log(2))))

    def _cuts(self, p: Summary, q: Summary) -> shares.Cuts:
        levels = np.arange(self.bins + 1) / self.bins
        return shares.cuts_at(p, levels) | shares.cuts_at(q, levels)


def _divergence(p: FloatArray, q: FloatArray) -> FloatArray:
    return np.asarray(_term(p, q).sum(-1))


def _term(p: FloatArray, q: FloatArray) -> FloatArray:
    """Each bin's part of the divergence, ``p / 2 ln(2 p / (p + q)) + q / 2 ln(2 q / (p + q))``.

    Where p and q are close the two cancel; with e = (p - q) / (p + q) that part is also
    ``(p + q) / 4 (ln(1 - e^2) + e ln(p / q))``, which does not.
    """
    total = p + q
    contrast = (p - q) / total
    close = total / 4 * (np.log1p(-(contrast**2)) + contrast * np.log(p / q))
    apart = (xlogy(p, 2 * p / total) + xlogy(q, 2 * q / total)) / 2
    return np.where(total > 0, np.where(np.abs(contrast) < 0.5, close, apart), 0.0)


def _slopes(p: FloatArray, q: FloatArray) -> tuple[FloatArray, FloatArray]:
    return np.log(2 * p / (p + q)) / 2, np.log(2 * q / (p + q)) / 2
