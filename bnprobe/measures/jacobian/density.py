"""Densities of singular values on a logarithmic axis, each with its error."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnprobe.errors import ArgumentError

__all__ = ["Density", "Nodes", "density"]

Array = NDArray[np.float64]

_DECADES = 6.0  # ours: below a millionth of the largest value there is the rounding of single precision
_POINTS = 200
_REACH = 3.0  # widths of the kernel beyond the outermost values
_LEAST, _LEAST_OF_NODES = 1e-2, 0.1  # ours: the finest kernel; wider than what 64 steps resolve in most of a spectrum
_AT_ONCE = 512  # values whose kernels are added up together


@dataclass(frozen=True)
class Density:
    """Density of the natural logarithm of the singular values, smoothed by a Gaussian kernel.

    Attributes:
        grid: ``[G]`` values of ln s, ascending.
        density: ``[N, G]``: share of the values per unit of ln s. Values of 0 have no logarithm: its integral over all
            logarithms is 1 less their share.
        error: ``[N, G]``: where all values are known, the largest change that their errors can make. Of a partial
            spectrum to that are added a bound, often a wide one, of what its quadrature does not resolve, and the
            standard error over random vectors.
        below: ``[N]``, share of the values that are below the grid, zeros among them.
        width: standard deviation of the kernel.
    """

    grid: Array
    density: Array
    error: Array
    below: Array
    width: float


@dataclass(frozen=True)
class Nodes:
    """Weighted points that stand for all singular values of N Jacobians: the values themselves, or a quadrature.

    Attributes:
        values: ``[N, P, p]``: P sets of points, of which each stands for all values of a Jacobian.
        weights: ``[N, P, p]``; those of a set add up to 1.
        error: ``[N, P, p]``, what each point may be off.
        count: how many values of a Jacobian they stand for.
        gauss: ``[N, P]``, whether a set is a Gauss quadrature of more values than it has points; None where points are
            singular values, and sets no random draws.
        together: whether the N Jacobians are the blocks of one, whose density is the mean of theirs.
    """

    values: Array
    weights: Array
    error: Array
    count: int
    gauss: NDArray[np.bool_] | None = None
    together: bool = False

    @staticmethod
    def of_all(values: Array, error: Array) -> "Nodes":
        """Those of spectra ``[N, k]`` that are complete."""
        every, off = (np.asarray(one, np.float64)[:, None] for one in (values, error))
        return Nodes(every, np.full(every.shape, 1 / every.shape[2]), off, every.shape[2])

    def of_each(self, samples: int) -> "Nodes":
        """Those of one Jacobian for as many that are the same; of as many, the same."""
        every = [self.values, self.weights, self.error]
        values, weights, error = (np.broadcast_to(one, (samples, *one.shape[1:])) for one in every)
        gauss = None if self.gauss is None else np.broadcast_to(self.gauss, (samples, *self.gauss.shape[1:]))
        return Nodes(values, weights, error, self.count, gauss)

    def of_batch(self) -> "Nodes":
        """N independent Jacobians as one, that of the whole batch."""
        return replace(self, count=len(self.values) * self.count, together=True)


def density(nodes: Nodes, grid: ArrayLike | None = None, width: float | None = None) -> Density:
    """The density of what nodes stand for; arguments as for :meth:`bnprobe.Spectrum.log_density`.

    Raises:
        ArgumentError: the width is not positive, or the grid not ascending numbers.
    """
    logs, weights = _shown(nodes)
    if width is None:
        width = _scott(logs, weights, nodes)
    if not (width > 0 and math.isfinite(width)):
        raise ArgumentError(f"width must be a positive number; got {width!r}")
    at = _grid(logs, width) if grid is None else np.asarray(grid, np.float64)
    if at.ndim != 1 or not at.size or not np.isfinite(at).all() or (np.diff(at) <= 0).any():
        raise ArgumentError(f"grid must be ascending numbers [G], values of ln s; got shape {at.shape}")
    each, off = _smooth(nodes, at, width)
    with np.errstate(divide="ignore"):
        below = (nodes.weights * (np.log(nodes.values) < at[0])).sum(2)
    if nodes.together:
        each, off, below = (one.mean(0, keepdims=True) for one in (each, off, below))
    error = off.mean(1)
    if nodes.gauss is not None:
        error = error + each.std(1, ddof=1) / math.sqrt(each.shape[1])
    return Density(at, each.mean(1), error, below.mean(1), float(width))


def _shown(nodes: Nodes) -> tuple[Array, Array]:
    """Logarithms and weights of what a grid has to show."""
    shown = (nodes.values > nodes.values.max(initial=0.0) * 10**-_DECADES) & (nodes.weights > 0)
    return np.log(nodes.values[shown]), nodes.weights[shown]


def _scott(logs: Array, weights: Array, nodes: Nodes) -> float:
    """Scott's rule: standard deviations times count^(-1/5)."""
    if not logs.size:
        return 1.0
    middle = np.average(logs, weights=weights)
    spread = math.sqrt(np.average((logs - middle) ** 2, weights=weights))
    rule: float = spread * nodes.count**-0.2
    return max(rule, _LEAST if nodes.gauss is None else _LEAST_OF_NODES)


def _grid(logs: Array, width: float) -> Array:
    low, high = (logs.min(), logs.max()) if logs.size else (-1.0, 1.0)
    low, high = low - _REACH * width, high + _REACH * width
    return np.linspace(low, high, max(_POINTS, math.ceil((high - low) / (width / 2)) + 1))


def _smooth(nodes: Nodes, grid: Array, width: float) -> tuple[Array, Array]:
    """Density of every set of nodes ``[N, P, G]``, and how far it may be off that of all values seen by its vector."""
    samples, sets, _ = nodes.values.shape
    found, off = np.zeros((2, samples, sets, len(grid)))
    for place in np.ndindex(samples, sets):
        values, weights, error = (one[place] for one in (nodes.values, nodes.weights, nodes.error))
        found[place], off[place] = _kernels(values, weights, error, grid, width)
        if nodes.gauss is not None and nodes.gauss[place]:
            off[place] += _unresolved(values, weights, grid, width)
    return found, off


def _kernels(values: Array, weights: Array, error: Array, grid: Array, width: float) -> tuple[Array, Array]:
    """Sum of kernels at ``values`` ``[p]``, and how much it may change, each value within its own error."""
    total, moved = np.zeros((2, len(grid)))
    at = grid[:, None]
    for start in range(0, len(values), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        value, off = values[part], error[part]
        with np.errstate(divide="ignore"):
            low, middle, high = (np.log(one) for one in ((value - off).clip(0), value, value + off))
        here = _bump(at - middle, width)
        most, least = _bump(at.clip(low, high) - at, width), _bump(np.maximum(at - low, high - at), width)
        total += here @ weights[part]
        moved += np.maximum(most - here, here - least) @ weights[part]
    return total, moved


def _unresolved(values: Array, weights: Array, grid: Array, width: float) -> Array:
    r"""How far a Gauss quadrature's sum of kernels may be off, ``[G]``.

    Up to a node the share of the values is at least the weights before it and at most those before it and its own
    (Chebyshev, Markov & Stieltjes; Szego 1939, section 3.41): between two nodes it is known to the larger of their
    weights, and :math:`\int K \, d(F - F_q) = - \int K' (F - F_q)`.
    """
    order = np.argsort(values)
    with np.errstate(divide="ignore"):
        ends = np.concatenate([[-np.inf], np.log(values[order]), [np.inf]])
    share = np.pad(weights[order], 1)
    at = grid[:, None]
    height = _bump(at - ends, width)
    climb = np.abs(np.diff(height, axis=1))
    over = 2 * _bump(np.zeros(1), width) - height[:, 1:] - height[:, :-1]  # up to the top of the kernel, and down
    change: Array = np.where((ends[:-1] <= at) & (at < ends[1:]), over, climb)
    return change @ np.maximum(share[1:], share[:-1])


def _bump(distance: Array, width: float) -> Array:
    bump: Array = np.exp(-((distance / width) ** 2) / 2) / (math.sqrt(2 * math.pi) * width)
    return bump
