"""Shares of bins, for divergences that compare densities.

A density cannot be read off a quantile grid, but the shares of a few bins can: each spans several cells, and a
straight line between levels errs by little where it is cut. Atoms get more care, as a wrong share of one weighs
heavily: an atom ends somewhere inside the cell next to its last level. What the next cell's density leaves of
that cell is counted to the atom; of a cell between two atoms each gets half.

Everything here sees rows: ``quantiles [R, Q]``; k cuts make B bins, k + 1 or more, some of them empty.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from bnprobe.distances.base import FloatArray, Summary
from bnprobe.distances.model import Z95, masses, on_levels, sample_size

__all__ = ["Binned", "Cuts", "binned", "cuts_at", "draws", "grid_change", "null_quantile", "sampling_change"]

_ROUNDING = 1e-12  # a share below is what rounding leaves of an empty bin

Term = Callable[[FloatArray, FloatArray], FloatArray]
Slopes = Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]


@dataclass(frozen=True)
class Cuts:
    """Where bins end.

    Attributes:
        points: ``[R, k]``; bins hold their upper end.
        before: ``[R, k]`` whether there is a cut just before the point, too: an atom there has a bin of its own.
    """

    points: FloatArray
    before: NDArray[np.bool_]

    def __or__(self, other: "Cuts") -> "Cuts":
        return Cuts(np.hstack([self.points, other.points]), np.hstack([self.before, other.before]))


@dataclass(frozen=True)
class Binned:
    """Two distributions in the same bins.

    Attributes:
        p, q: ``[R, B]`` their shares.
        p_change, q_change: ``[R, B]`` how much the shares change when every other level is left out.
    """

    p: FloatArray
    q: FloatArray
    p_change: FloatArray
    q_change: FloatArray


def cuts_at(summary: Summary, levels: FloatArray) -> Cuts:
    """Cuts at quantiles of the summary; at level 0, and where neighbouring levels tie, on both sides of the point."""
    points = on_levels(summary, levels)
    before = np.zeros(points.shape, dtype=bool)
    tie = points[:, 1:] == points[:, :-1]
    before[:, 1:] |= tie
    before[:, :-1] |= tie
    before[:, levels == 0] = True
    return Cuts(points, before)


def binned(p: Summary, q: Summary, cuts: Cuts) -> Binned:
    """Both sides' shares with their changes."""
    shares, changes = [], []
    for side in (p, q):
        own = shares_of(side, cuts)
        coarse = [np.abs(shares_of(_half(side, start), cuts) - own) for start in (0, 1)]
        shares.append(own)
        changes.append(np.maximum(*coarse))
    return Binned(*shares, *changes)


def shares_of(summary: Summary, cuts: Cuts) -> FloatArray:
    """Share ``[R, B]`` of each bin, in rising order of bins."""
    edges = _cell_shares(summary)
    upto = _below(summary, edges, cuts.points, included=True)
    double = cuts.before.any(axis=0)
    if double.any():
        before = _below(summary, edges, cuts.points[:, double], included=False)
        upto = np.hstack([upto, np.where(cuts.before[:, double], before, 0.0)])
    # A distribution function rises, so its sorted values are those at the sorted cuts.
    share = np.diff(np.sort(upto, axis=1), axis=1, prepend=0.0, append=1.0)
    return np.where(share > _ROUNDING, share, 0.0)


def draws(summary: Summary) -> FloatArray:
    """``[R]`` from how many draws the density is known: the sample's size, or the count where all were seen."""
    return np.minimum(sample_size(summary.rank_error), summary.count)


def null_quantile(shares: FloatArray) -> FloatArray:
    """The 95 % quantile of chi-square with one degree of freedom fewer than there are bins with a share."""
    freedom = (shares > 0).sum(-1) - 1
    table = chdtri(np.arange(shares.shape[1]), 0.05)
    table[0] = 0.0
    quantile: FloatArray = table[freedom]
    return quantile


def grid_change(term: Term, both: Binned) -> FloatArray:
    """What the sum of ``term`` over bins changes when both shares of every bin change as they may, oppositely."""
    here, largest = term(both.p, both.q), np.zeros(both.p.shape)
    for sign in (-1, 1):
        there = term(np.maximum(both.p + sign * both.p_change, 0), np.maximum(both.q - sign * both.q_change, 0))
        largest = np.maximum(largest, np.where(there == here, 0.0, np.abs(there - here)))
    return np.asarray(largest.sum(-1))


def sampling_change(slopes: Slopes, p: FloatArray, q: FloatArray, n_p: FloatArray, n_q: FloatArray) -> FloatArray:
    """1.96 standard deviations, to first order, of a function of two multinomial samples' shares."""
    slope_p, slope_q = slopes(p, q)
    change: FloatArray = Z95 * np.sqrt(_variance(p, slope_p) / n_p + _variance(q, slope_q) / n_q)
    return change


def _variance(share: FloatArray, slope: FloatArray) -> FloatArray:
    slope = np.where(share > 0, slope, 0.0)
    mean = (share * slope).sum(-1, keepdims=True) / share.sum(-1, keepdims=True)
    return np.asarray((share * (slope - mean) ** 2).sum(-1))


def _half(summary: Summary, start: int) -> Summary:
    """The summary without every other level but the ends."""
    last = summary.levels.size - 1
    kept = np.union1d(np.arange(start, last, 2), [0, last])
    return Summary(summary.levels[kept], summary.quantiles[:, kept])


def _cell_shares(summary: Summary) -> tuple[FloatArray, FloatArray]:
    """The distribution function ``[R, Q - 1]`` just behind each cell's start, and just before its end."""
    levels, mass, width = summary.levels, masses(summary.levels), np.diff(summary.quantiles)
    start, stop = np.broadcast_to(levels[:-1], width.shape), np.broadcast_to(levels[1:], width.shape)
    wide = width > 0
    if wide.all() or levels.size < 4:
        return start, stop
    smooth = (
        np.minimum(mass[1:-1], width[:, 1:-1] * mass[2:] / width[:, 2:]),
        np.minimum(mass[1:-1], width[:, 1:-1] * mass[:-2] / width[:, :-2]),
    )
    behind, ahead = wide[:, 1:-1] & ~wide[:, :-2], wide[:, 1:-1] & ~wide[:, 2:]
    middle = (start + stop)[:, 1:-1] / 2
    start, stop = start.copy(), stop.copy()
    start[:, 1:-1] = np.where(behind, np.where(ahead, middle, stop[:, 1:-1] - smooth[0]), start[:, 1:-1])
    stop[:, 1:-1] = np.where(ahead, np.where(behind, middle, levels[1:-2] + smooth[1]), stop[:, 1:-1])
    return start, stop


def _below(summary: Summary, edges: tuple[FloatArray, FloatArray], points: FloatArray, *, included: bool) -> FloatArray:
    """The distribution function at ``points [R, k]``: its limit from the right (``included``) or from the left."""
    index = _passed(summary.quantiles, points, included=included) - 1
    cell = np.clip(index, 0, summary.levels.size - 2)
    left, right = (np.take_along_axis(summary.quantiles, cell + side, axis=1) for side in (0, 1))
    part = np.where(right > left, np.clip((points - left) / (right - left), 0, 1), index > cell)
    start, stop = (np.take_along_axis(edge, cell, axis=1) for edge in edges)
    share: FloatArray = (1 - part) * start + part * stop
    return share


def _passed(knots: FloatArray, points: FloatArray, *, included: bool) -> NDArray[np.intp]:
    """How many of a row's ``knots [R, Q]`` lie below each of its ``points [R, k]``: ``searchsorted`` by rows."""
    size = knots.shape[1]
    passed = np.zeros(points.shape, dtype=np.intp)
    for bit in reversed(range(size.bit_length())):
        more = passed + (1 << bit)
        last = np.take_along_axis(knots, np.minimum(more, size) - 1, axis=1)
        passed = np.where((more <= size) & (last <= points if included else last < points), more, passed)
    return passed
