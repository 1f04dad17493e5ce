"""Quantiles of a tensor's values: a grid of levels, from a random sample or from all values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.errors import ArgumentError
from bnprobe.hooks.sites import Site
from bnprobe.records import COMPUTED, DEFAULT_LEVELS, SAMPLED, Measured
from bnprobe.statistics.base import Observation, Statistic
from bnprobe.statistics.sample import Population, Sample, merge_samples, stacked

__all__ = ["Quantiles", "dkw_bound"]


def dkw_bound(n: int, alpha: float = 0.05) -> float:
    """How far an empirical distribution of n draws may be off anywhere, with probability ``1 - alpha``.

    ``sqrt(ln(2 / alpha) / (2 n))`` (Dvoretzky, Kiefer & Wolfowitz 1956 with Massart's 1990 constant), in probability.
    """
    return math.sqrt(math.log(2 / alpha) / (2 * n)) if n else math.nan


class QuantilesState(NamedTuple):
    """A sample of the layer's values, and one of each chosen channel's."""

    layer: Sample
    channels: tuple[Sample, ...]


@dataclass(frozen=True)
class Quantiles(Statistic):
    """The quantile function at a grid of levels (linear interpolation between order statistics).

    The error is in probability: with 95 % confidence the value recorded at level p lies between the population's
    quantiles at levels p - error and p + error, for all levels at once (:func:`dkw_bound`). Values that are not finite
    are left out.

    Args:
        levels: 65 by default, with 0.15, 0.50 and 0.85 among them (Ioffe & Szegedy 2015, figure 1).
        channels: channels that also get quantiles of their own.
        exact: sort every value instead of a sample's; works beyond ``torch.quantile``'s 2^24 values.
        places: which of ``input`` and ``output`` to take.
    """

    levels: tuple[float, ...] = DEFAULT_LEVELS
    channels: tuple[int, ...] = ()
    exact: bool = False
    places: tuple[str, ...] = ("input", "output")

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(float(level) for level in self.levels))
        object.__setattr__(self, "channels", tuple(int(channel) for channel in self.channels))
        rising = all(low < high for low, high in zip(self.levels, self.levels[1:], strict=False))
        if not self.levels or not rising or not 0 <= self.levels[0] <= self.levels[-1] <= 1:
            raise ArgumentError(f"levels must rise within [0, 1]; got {self.levels!r}")
        if any(channel < 0 for channel in self.channels):
            raise ArgumentError(f"channels must not be negative; got {self.channels!r}")

    @property
    def reads_all(self) -> bool:
        """Whether the tensor itself is needed: for exact values, and for chosen channels."""
        return self.exact or bool(self.channels)

    def applies(self, site: Site, place: str) -> bool:  # noqa: ARG002 - the interface's
        """Every layer, at the chosen places."""
        return place.split(".")[0] in self.places

    def update(self, state: QuantilesState | None, seen: Observation) -> QuantilesState:
        """One more tensor."""
        channels: tuple[Sample, ...] = ()
        if self.channels and seen.axis is not None:
            width = seen.shape[seen.axis]
            channels = tuple(
                self._one(seen, seen.values.select(seen.axis, channel)) for channel in self.channels if channel < width
            )
        layer = self._one(seen, seen.values) if self.exact else seen.sample
        return self.merge(state, QuantilesState(layer, channels))  # type: ignore[return-value]  # not neutral

    def merge(self, a: QuantilesState | None, b: QuantilesState | None) -> QuantilesState | None:
        """Bottom-k union of the samples; exact ones are put side by side."""
        if a is None or b is None:
            return a or b
        channels = tuple(merge_samples(x, y) for x, y in zip(a.channels, b.channels, strict=False))
        return QuantilesState(merge_samples(a.layer, b.layer), channels)

    def finish(self, states: Sequence[QuantilesState]) -> Mapping[str, Measured]:
        """The grid of R states."""
        channels = [self._channel_grids(state) for state in states] if self.channels else None
        return self._finish([state.layer for state in states], channels)

    def measure(self, seen: Sequence[Observation]) -> Mapping[str, Measured]:
        """The grid of R observations."""
        return super().measure(seen) if self.reads_all else self._finish([one.sample for one in seen], None)

    def _finish(
        self, layers: Sequence[Sample], channels: Sequence[NDArray[np.float64] | None] | None
    ) -> Mapping[str, Measured]:
        grid, n = self._grids(layers)
        error = np.array([0.0 if one.complete else dkw_bound(int(k)) for one, k in zip(layers, n, strict=True)])
        source = [COMPUTED if one.complete else SAMPLED for one in layers]
        value = np.full(len(layers), np.nan)
        return {"quantile": Measured(value, source, error, channels, grid)}

    def _one(self, seen: Observation, values: Tensor) -> Sample:
        if not self.exact:
            return seen.sampler.sample(values, None)
        flat = values.reshape(-1).clone()
        return Sample(flat, Population(flat.numel(), None, 1, capacity=2**62), seed=(0, 0))

    def _channel_grids(self, state: QuantilesState) -> NDArray[np.float64] | None:
        if not state.channels:
            return None
        missing = np.full((len(self.channels) - len(state.channels), len(self.levels)), np.nan)
        return np.concatenate([self._grids(state.channels)[0], missing]).reshape(-1)

    def _grids(self, samples: Sequence[Sample]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """``[R, Q]`` quantiles and ``[R]`` the number of finite values behind them."""
        grid = np.full((len(samples), len(self.levels)), np.nan)
        count = np.zeros(len(samples), np.int64)
        for rows, matrix in stacked(samples):
            n = np.full(len(rows), matrix.shape[1])
            with np.errstate(over="ignore", invalid="ignore"):
                clean = np.isfinite(matrix.sum(dtype=np.float64))
            if not clean:
                finite = np.isfinite(matrix)
                n, matrix = finite.sum(1), np.where(finite, matrix, np.inf)  # infinities sort to the end
            grid[rows] = _interpolate(np.sort(matrix, axis=1), n, self.levels)
            count[rows] = n
        return grid, count


def _interpolate(ordered: NDArray[Any], n: NDArray[np.int64], levels: Sequence[float]) -> NDArray[np.float64]:
    """Quantiles of the first ``n`` values of each sorted row; NaN where n is 0."""
    last = np.maximum(n - 1, 0)
    if (last == last[:1]).all():  # nearly always: then the places are those of one row
        last = last[:1]
    place = last[:, None] * np.array(levels)
    below = place.astype(np.intp)
    above = np.minimum(below + 1, last[:, None])
    if len(last) == 1:
        low, high = ordered[:, below[0]].astype(np.float64), ordered[:, above[0]].astype(np.float64)
    else:
        low = np.take_along_axis(ordered, below, 1).astype(np.float64)
        high = np.take_along_axis(ordered, above, 1).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        value = low + (high - low) * (place - below)
    return np.where(n[:, None] > 0, value, np.nan)
