"""Shares of bins, for divergences that compare densities.

A density cannot be read off a quantile grid, but the shares of a few bins can: each spans several cells, and a
straight line between levels errs by little where it is cut. Atoms get more care, as a wrong share of one weighs
heavily: an atom ends somewhere inside the cell next to its last level. What the next cell's density leaves of
that cell is counted to the atom; of a cell between two atoms each gets half.

Everything here sees rows: ``quantiles [R, Q]``; k cuts make B = k + 1 bins, some of them empty.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from bnprobe.distances.base import FloatArray, Summary
from bnprobe.distances.model import Z95, masses, on_levels, sample_size

__all__ = [
    "Cuts",
    "Shares",
    "cuts_at",
    "draws",
    "fine_shares",
    "grid_change",
    "null_quantile",
    "sampling_change",
    "shares_of",
]

Mask = NDArray[np.bool_]

_ROUNDING = 1e-12  # a share below is what rounding leaves of an empty bin

Term = Callable[[FloatArray, FloatArray], FloatArray]
Slopes = Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]


@dataclass(frozen=True)
class Cuts:
    """Where bins end.

    Attributes:
        points: ``[R, k]`` bins hold their upper end; a cut *before* a point leaves the point to the next bin.
        before: ``[k]`` which columns are cuts before their points: an atom with cuts on both sides is a bin.
        there: ``[R, k]`` which of the cuts exist.
        coarse: ``[k]`` which columns remain when bins are joined in pairs.
    """

    points: FloatArray
    before: Mask
    there: Mask
    coarse: Mask

    def __or__(self, other: "Cuts") -> "Cuts":
        return Cuts(
            *(np.concatenate([getattr(self, each.name), getattr(other, each.name)], -1) for each in fields(Cuts))
        )


@dataclass(frozen=True)
class Shares:
    """A distribution's shares ``[R, B]`` of bins, in rising order of bins.

    Attributes:
        fine: of each bin.
        change: how much they change when every other level is left out of the grid, the odd or the even ones.
        coarse: of bins joined in pairs.
    """

    fine: FloatArray
    change: FloatArray
    coarse: FloatArray


def cuts_at(summary: Summary, levels: FloatArray) -> Cuts:
    """Cuts at quantiles of the summary; where neighbouring ones tie, on both sides of the point."""
    points = on_levels(summary, levels)
    tie = points[:, 1:] == points[:, :-1]
    edge = np.zeros((len(points), 1), dtype=bool)
    double = np.hstack([edge, tie]) | np.hstack([tie, edge])
    columns = np.flatnonzero(double.any(axis=0))
    every = np.arange(levels.size)
    return Cuts(
        points=points[:, np.append(every, columns)],
        before=np.append(np.zeros(every.size, dtype=bool), np.ones(columns.size, dtype=bool)),
        there=np.hstack([np.ones(points.shape, dtype=bool), double[:, columns]]),
        coarse=np.append(every, columns) % 2 == 0,
    )


def fine_shares(summary: Summary, cuts: Cuts) -> FloatArray:
    """Shares of each bin alone."""
    return _shares(_below(summary, cuts, _passed(summary.quantiles, cuts)))


def shares_of(summary: Summary, cuts: Cuts) -> Shares:
    """Shares of each bin, with what is needed for their error."""
    passed = _passed(summary.quantiles, cuts)
    below = _below(summary, cuts, passed)
    fine = _shares(below)
    change = [np.abs(_shares(_below(half, cuts, kept[passed])) - fine) for half, kept in _halves(summary)]
    return Shares(fine, np.maximum(*change), _shares(below[:, cuts.coarse]))


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


def grid_change(term: Term, p: Shares, q: Shares) -> FloatArray:
    """What the sum of ``term`` over bins changes when both shares of every bin change as they may, oppositely."""
    here, largest = term(p.fine, q.fine), np.zeros(p.fine.shape)
    for sign in (-1, 1):
        there = term(_snapped(p.fine + sign * p.change), _snapped(q.fine - sign * q.change))
        largest = np.maximum(largest, np.where(there == here, 0.0, np.abs(there - here)))
    return np.asarray(largest.sum(-1))


def sampling_change(slopes: Slopes, p: Shares, q: Shares, n_p: FloatArray, n_q: FloatArray) -> FloatArray:
    """1.96 standard deviations, to first order, of a function of two multinomial samples' shares."""
    slope_p, slope_q = slopes(p.fine, q.fine)
    change: FloatArray = Z95 * np.sqrt(_variance(p.fine, slope_p) / n_p + _variance(q.fine, slope_q) / n_q)
    return change


def _variance(share: FloatArray, slope: FloatArray) -> FloatArray:
    slope = np.where(share > 0, slope, 0.0)
    mean = (share * slope).sum(-1, keepdims=True) / share.sum(-1, keepdims=True)
    return np.asarray((share * (slope - mean) ** 2).sum(-1))


def _shares(below: FloatArray) -> FloatArray:
    # A distribution function rises, so its sorted values are those at the sorted cuts.
    return _snapped(np.diff(np.sort(below, axis=1), axis=1, prepend=0.0, append=1.0))


def _snapped(share: FloatArray) -> FloatArray:
    return np.where(share > _ROUNDING, share, 0.0)


def _halves(summary: Summary) -> Iterator[tuple[Summary, NDArray[np.intp]]]:
    """The summary with every other level and the ends; with how many of its first 0 to Q levels were kept."""
    last = summary.levels.size - 1
    for start in (0, 1):
        kept = np.union1d(np.arange(start, last, 2), [0, last])
        yield Summary(summary.levels[kept], summary.quantiles[:, kept]), np.searchsorted(kept, np.arange(last + 2))


def _cell_shares(summary: Summary) -> tuple[FloatArray, FloatArray]:
    """The distribution function ``[R, Q - 1]`` just behind each cell's start, and just before its end."""
    levels, mass, width = summary.levels, masses(summary.levels), np.diff(summary.quantiles)
    start, stop = np.broadcast_to(levels[:-1], width.shape), np.broadcast_to(levels[1:], width.shape)
    wide = width > 0
    if wide.all() or levels.size < 4:
        return start, stop
    atom_behind, atom_ahead = wide[:, 1:-1] & ~wide[:, :-2], wide[:, 1:-1] & ~wide[:, 2:]
    like_next = np.minimum(mass[1:-1], width[:, 1:-1] * mass[2:] / width[:, 2:])
    like_last = np.minimum(mass[1:-1], width[:, 1:-1] * mass[:-2] / width[:, :-2])
    lower, upper = levels[1:-2], levels[2:-1]
    middle, start, stop = (lower + upper) / 2, start.copy(), stop.copy()
    start[:, 1:-1] = np.where(atom_behind, np.where(atom_ahead, middle, upper - like_next), lower)
    stop[:, 1:-1] = np.where(atom_ahead, np.where(atom_behind, middle, lower + like_last), upper)
    return start, stop


def _below(summary: Summary, cuts: Cuts, passed: NDArray[np.intp]) -> FloatArray:
    """The distribution function ``[R, k]`` at cuts that have ``passed`` so many knots each; 0 where there is no cut."""
    cell = np.clip(passed - 1, 0, summary.levels.size - 2)
    left, right = (np.take_along_axis(summary.quantiles, cell + side, axis=1) for side in (0, 1))
    part = np.where(right > left, np.clip((cuts.points - left) / (right - left), 0, 1), passed - 1 > cell)
    start, stop = (np.take_along_axis(edge, cell, axis=1) for edge in _cell_shares(summary))
    return np.where(cuts.there, (1 - part) * start + part * stop, 0.0)


def _passed(knots: FloatArray, cuts: Cuts) -> NDArray[np.intp]:
    """How many of a row's knots each of its cuts has passed: ``searchsorted`` by rows."""
    rows, size = knots.shape
    bits = size.bit_length()
    width = (1 << bits) - 1
    padded = np.full((rows, width), np.nan)  # which nothing passes
    padded[:, :size] = knots
    flat, row = padded.reshape(-1), np.arange(rows)[:, None] * width - 1
    limit = np.where(cuts.before, np.nextafter(cuts.points, -np.inf), cuts.points)
    passed = np.zeros(limit.shape, dtype=np.intp)
    for bit in reversed(range(bits)):
        more = passed + (1 << bit)
        passed = np.where(flat[row + more] <= limit, more, passed)
    return passed
