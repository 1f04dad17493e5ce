"""The singular values of a Jacobian, and what they say."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnprobe.errors import ArgumentError
from bnprobe.measures.jacobian.density import Density, Nodes, density

__all__ = ["Spectrum"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """Singular values of N Jacobians of one shape, one a sample, or N = 1 of the whole batch.

    What is computed from the values is an array ``[N]``; it is NaN where the values that it needs were not asked for.

    Attributes:
        values: ``[N, k]`` descending, float64.
        error: ``[N, k]``, what each value may be off: of closed forms the rounding; of dense ones the linear algebra's
            error and the rounding of the entries (measured, see :class:`bnprobe.measures.jacobian.rounding.Reference`);
            of Lanczos the residual and that same rounding.
        method: ``closed form``, ``dense`` or ``Lanczos``.
        shape: (outputs, inputs) of one Jacobian.
        coupled: whether the samples interact: then the Jacobian is that of the whole batch.
        which: how many of the k values are the largest ones and how many the smallest.
        layer: what was measured: None, a name, or a pair of names.
        frozen: whether batch statistics were held fixed.
        squares: ``[N]``, the sum of all squared values where it is known, and ``squares_error`` its error; of partial
            spectra an estimate from random vectors (Hutchinson 1990) with its standard error.
        nodes: of a partial spectrum, what stands for all its values; None where it was not asked for.
    """

    values: Array
    error: Array
    method: str
    shape: tuple[int, int]
    coupled: bool
    which: tuple[int, int]
    layer: Any = None
    frozen: bool = False
    squares: Array | None = None
    squares_error: Array | None = None
    nodes: Nodes | None = None

    @property
    def complete(self) -> bool:
        """Whether all values are there."""
        return bool(self.values.shape[1] == min(self.shape))

    @cached_property
    def rank(self) -> Array:
        """Values that are surely not 0: larger than their error and than ``max(m, n) eps`` of the largest."""
        floor = max(self.shape) * np.finfo(np.float64).eps * self.values[:, :1]
        return self._if_complete((self.values > np.maximum(self.error, floor)).sum(1).astype(np.float64))

    @cached_property
    def condition_number(self) -> Array:
        """Largest value over the smallest; infinite where that is 0."""
        if not self.complete and not all(self.which):
            return self._unknown()
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio: Array = self.values[:, 0] / self.values[:, -1]
            return ratio

    @cached_property
    def mean_square(self) -> Array:
        """Mean of the squared values, over all ``min(m, n)`` of them: squared Frobenius norm over that number."""
        if self.complete:
            mean: Array = np.mean(self.values**2, 1)
            return mean
        return self._unknown() if self.squares is None else self.squares / min(self.shape)

    @cached_property
    def mean_square_error(self) -> Array:
        """What the mean square may be off; a standard error where it is an estimate."""
        if self.complete:
            off: Array = np.mean(2 * self.values * self.error + self.error**2, 1)
            return off
        return self._unknown() if self.squares_error is None else self.squares_error / min(self.shape)

    @cached_property
    def spread(self) -> Array:
        """``Var(s^2) / E(s^2)^2`` over all values (J. Pennington et al. 2017); of L linear Gaussian layers it is L."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._if_complete(np.var(self.values**2, 1) / np.mean(self.values**2, 1) ** 2)

    @cached_property
    def share_near_one(self) -> Array:
        """Share of the values in [0.9, 1.1] (the conjecture of S. Ioffe and C. Szegedy 2015, section 3.3)."""
        return self._if_complete(((self.values >= 0.9) & (self.values <= 1.1)).mean(1))

    @cached_property
    def effective_rank(self) -> Array:
        """Exponential of the entropy of ``s / sum(s)`` (O. Roy and M. Vetterli 2007)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            share = self.values / self.values.sum(1, keepdims=True)
            entropy = -np.where(share > 0, share * np.log(share), 0.0).sum(1)
        return self._if_complete(np.where(self.values.sum(1) > 0, np.exp(entropy), 0.0))

    def log_density(self, grid: ArrayLike | None = None, width: float | None = None) -> Density:
        """Density of ln s, smoothed by a Gaussian: of all values, or estimated, with its error.

        Args:
            grid: ``[G]`` values of ln s, ascending; None: from the smallest to the largest value (six decades down at
                most, ours) and three widths beyond, at least 200 and two a width.
            width: of the Gaussian; None: Scott's rule, n^(-1/5) standard deviations of ln s, at least 0.01; of
                estimates 0.1, ours: about what their 64 steps resolve.

        Raises:
            ArgumentError: neither all values are there nor what ``density=True`` keeps; or an argument is not usable.
        """
        nodes = Nodes.of_all(self.values, self.error) if self.complete else self.nodes
        if nodes is None:
            raise ArgumentError(
                f"a density needs all {min(self.shape)} values; here are {self.values.shape[1]}: "
                "use k=None, or density=True for an estimate"
            )
        return density(nodes, grid, width)

    def _if_complete(self, computed: Array) -> Array:
        return computed if self.complete else self._unknown()

    def _unknown(self) -> Array:
        return np.full(len(self.values), np.nan)
