"""The distribution that a quantile grid stands for: straight lines between levels, atoms where levels tie.

Everything here sees rows: ``levels [Q]``, ``quantiles [R, Q]``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnprobe.distances.base import FloatArray, Summary

__all__ = ["Z95", "Refinement", "binomial_width", "masses", "on_levels", "refine", "sample_size"]

Z95 = 1.959963984540054  # the Gaussian's two-sided 95 %
_DKW95 = np.log(2 / 0.05) / 2  # rank_error ** 2 * n of the Dvoretzky-Kiefer-Wolfowitz-Massart bound at 95 %


def masses(levels: FloatArray) -> FloatArray:
    """Probability ``[Q - 1]`` of each cell between two levels."""
    return np.diff(levels)


def on_levels(summary: Summary, levels: FloatArray) -> FloatArray:
    """The model's quantile function ``[R, len(levels)]`` at other levels."""
    if levels is summary.levels or np.array_equal(levels, summary.levels):
        return summary.quantiles
    below = np.clip(np.searchsorted(summary.levels, levels, side="right") - 1, 0, summary.levels.size - 2)
    part = (levels - summary.levels[below]) / masses(summary.levels)[below]
    start, stop = summary.quantiles[:, below], summary.quantiles[:, below + 1]
    # Exact at both ends of a cell and all over an atom, so that knots and ties stay what they are.
    return np.where(part < 1, start + part * (stop - start), stop)


def sample_size(rank_error: FloatArray) -> FloatArray:
    """Size of the sample whose 95 % Dvoretzky-Kiefer-Wolfowitz-Massart bound is ``rank_error``; infinite for 0."""
    size: FloatArray = _DKW95 / rank_error**2
    return size


def binomial_width(levels: FloatArray, power: float) -> FloatArray:
    """Mean ``[Q - 1]`` over each cell of ``(u (1 - u)) ** power`` for power 1/2 or 1.

    ``u (1 - u) / n`` is the variance of the share of n values below the quantile of level u.
    """
    u = levels
    if power == 1:
        integral = u**2 / 2 - u**3 / 3
    else:
        integral = (2 * u - 1) * np.sqrt(u * (1 - u)) / 4 + np.arcsin(2 * u - 1) / 8
    return np.diff(integral) / masses(u)


@dataclass(frozen=True)
class Refinement:
    """Two distribution functions on the knots of both.

    Between different knots both are straight. Where knots tie, the first of the tie has both functions' limits from
    the left and the others the limits from the right, so that differences of neighbours are masses of intervals or
    of whole atoms.

    Attributes:
        knots: ``[R, K]`` rising; K is the sum of both numbers of levels.
        p, q: ``[R, K]`` the distribution functions there.
    """

    knots: FloatArray
    p: FloatArray
    q: FloatArray


def refine(p: Summary, q: Summary) -> Refinement:
    """The common refinement of two grids, which need not have the same levels."""
    both = np.concatenate([p.quantiles, q.quantiles], axis=1)
    order = both.argsort(axis=1, kind="stable")  # merges two sorted runs; among ties p's knots come first
    knots = np.take_along_axis(both, order, axis=1)
    last_p = np.cumsum(order < p.levels.size, axis=1, dtype=np.int32) - 1
    last_q = np.arange(both.shape[1], dtype=np.int32) - last_p - 1
    return Refinement(knots, *_settle(knots, _climb(p, last_p, knots), _climb(q, last_q, knots)))


def _settle(knots: FloatArray, *paths: FloatArray) -> list[FloatArray]:
    """Gives all but the first of each tie the values of the last."""
    new = knots[:, 1:] != knots[:, :-1]
    if new.all():
        return list(paths)
    edge = np.ones((len(knots), 1), dtype=bool)
    first, last = np.hstack([edge, new]), np.hstack([new, edge])
    position = np.where(last, np.arange(knots.shape[1]), knots.shape[1])
    stop = np.minimum.accumulate(position[:, ::-1], axis=1)[:, ::-1]
    return [np.where(first, path, np.take_along_axis(path, stop, axis=1)) for path in paths]


def _climb(summary: Summary, index: NDArray[np.integer[Any]], knots: FloatArray) -> FloatArray:
    """The distribution function at ``knots``, where ``index`` is the last of its own knots that has been passed."""
    cell = np.clip(index, 0, summary.levels.size - 2)
    left = np.take_along_axis(summary.quantiles, cell, axis=1)
    width = np.take_along_axis(np.diff(summary.quantiles), cell, axis=1)
    # In a cell without width a knot stands at its lower level, unless it lies behind the last of all levels.
    part = np.where(width > 0, np.clip((knots - left) / width, 0, 1), index > cell)
    share: FloatArray = (1 - part) * summary.levels[cell] + part * summary.levels[cell + 1]
    return share
