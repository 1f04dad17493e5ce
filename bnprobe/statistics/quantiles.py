"""Quantiles of a tensor's values: a grid of levels, from a random sample or from all values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.errors import ArgumentError
from bnprobe.hooks.sites import Site
from bnprobe.records import COMPUTED, DEFAULT_LEVELS, SAMPLED, Measured
from bnprobe.statistics.base import Observation, Statistic
from bnprobe.statistics.sample import Sample, merge_samples, stacked

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
        layers = [state.layer for state in states]
        grid, n = self._grids(layers)
        error = np.array([0.0 if one.complete else dkw_bound(int(k)) for one, k in zip(layers, n, strict=True)])
        source = [COMPUTED if one.complete else SAMPLED for one in layers]
        value = np.full(len(states), np.nan)
        channels = [self._channel_grids(state) for state in states] if self.channels else None
        return {"quantile": Measured(value, source, error, channels, grid)}

    def _one(self, seen: Observation, values: Tensor) -> Sample:
        if not self.exact:
            return seen.sampler.sample(values, None)
        flat = values.reshape(-1).clone()
        return Sample(flat, None, 1, flat.numel(), capacity=2**62, seed=(0, 0))

    def _channel_grids(self, state: QuantilesState) -> NDArray[np.float64] | None:
        if not state.channels:
            return None
        missing = np.full((len(self.channels) - len(state.channels), len(self.levels)), np.nan)
        return np.concatenate([self._grids(state.channels)[0], missing]).reshape(-1)

    def _grids(self, samples: Sequence[Sample]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """``[R, Q]`` quantiles and ``[R]`` the number of finite values behind them."""
        grid = np.full((len(samples), len(self.levels)), np.nan)
        count = np.zeros(len(samples), np.int64)
        for rows, matrix in stacked(samples, wide=False):
            n, values = torch.full((len(rows),), matrix.shape[1], device=matrix.device), matrix
            if not bool(matrix.sum(dtype=torch.float64).isfinite()):
                finite = matrix.isfinite()
                n, values = finite.sum(1), torch.where(finite, matrix, torch.inf)  # infinities sort to the end
            grid[rows] = _interpolate(_sort(values), n, self.levels).cpu().numpy()
            count[rows] = n.cpu().numpy()
        return grid, count


def _sort(matrix: Tensor) -> Tensor:
    """Rows in ascending order; numpy's vectorised sort is three times as fast as torch's on a CPU."""
    if matrix.device.type != "cpu":
        return matrix.sort(dim=1).values
    return torch.from_numpy(np.sort(matrix.numpy(), axis=1))


def _interpolate(ordered: Tensor, n: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles of the first ``n`` values of each sorted row; NaN where n is 0."""
    last = (n - 1).clamp_min(0).double()[:, None]
    place = last * torch.tensor(levels, dtype=torch.float64, device=ordered.device)
    below = place.floor()
    low = ordered.gather(1, below.long()).double()
    high = ordered.gather(1, torch.minimum(below + 1, last).long()).double()
    value = torch.lerp(low, high, place - below)
    return torch.where(n[:, None] > 0, value, torch.nan)
