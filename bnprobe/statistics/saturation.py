"""Nonlinearities that pass no signal on: saturated inputs and dead units."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnprobe.errors import ArgumentError
from bnprobe.hooks.sites import Site
from bnprobe.records import COMPUTED, SAMPLED, Measured
from bnprobe.statistics.base import Observation, Statistic
from bnprobe.statistics.sample import Population, stacked

__all__ = ["Saturation"]

_BOUNDED = (nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign)
_RECTIFIERS = (nn.ReLU, nn.ReLU6)
# 95 %: of a unit that is active in a twentieth of its positions, 59 looks see something.
_LOOKS = 59


class SaturationState(NamedTuple):
    """Finite values seen and hits among them by channel ``[C]``; values looked at, and all there are."""

    seen: Tensor | NDArray[np.float64]
    hits: Tensor | NDArray[np.float64]
    looked: int
    total: int
    dead: bool


@dataclass(frozen=True)
class Saturation(Statistic):
    """Share of a bounded nonlinearity's inputs in its flat region; share of rectified units that are dead.

    ``saturated`` (place ``input`` of sigmoid, tanh, hardtanh, hardsigmoid, softsign): the share of values where the
    slope is below ``flat`` times the largest slope; per channel as well. ``dead`` (place ``output`` of ReLU and its
    kin): the share of channels without a single positive value. From a sample, ``saturated.error`` is the reach of a
    95 % interval, and ``dead.error`` the share of positive values that a channel may have and still count as dead;
    where the sample has fewer than 59 values of some channel, ``dead`` is missing (``exact=True`` has it).

    Args:
        flat: 0.1 (ours): the gradient is cut to a tenth; for a sigmoid ``|x| > 3.64``.
        exact: read every value.
    """

    flat: float = 0.1
    exact: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.flat < 1:
            raise ArgumentError(f"flat must lie between 0 and 1; got {self.flat!r}")

    @property
    def knows_layers(self) -> bool:
        """What is flat depends on the nonlinearity."""
        return True

    @property
    def reads_all(self) -> bool:
        """Whether every value is read."""
        return self.exact

    def applies(self, site: Site, place: str) -> bool:
        """Inputs of bounded nonlinearities, outputs of rectifiers."""
        if place == "input":  # a ReLU6 is a Hardtanh by class, but half its inputs are meant to be flat
            return isinstance(site.module, _BOUNDED) and not isinstance(site.module, _RECTIFIERS)
        return place == "output" and isinstance(site.module, _RECTIFIERS)

    def update(self, state: SaturationState | None, seen: Observation) -> SaturationState:
        """One more tensor."""
        dead = seen.place == "output"
        if self.exact:
            values = seen.by_channel()
            channel, channels, looked = None, len(values), values.numel()
        else:
            values, channel, channels = seen.sample.values.float(), seen.sample.channel, seen.sample.channels
            looked = values.numel()
        hit = values > 0 if dead else self._is_flat(seen.site.module, values)
        valid = values.isfinite()
        finite, hits = (_count(mask, channel, channels) for mask in (valid, hit & valid))
        return self.merge(state, SaturationState(finite, hits, looked, seen.count, dead))  # type: ignore[return-value]

    def measure(self, seen: Sequence[Observation]) -> Mapping[str, Measured]:
        """Of R observations; sampled ones of one kind and layout together."""
        if self.exact:
            return super().measure(seen)
        states: list[SaturationState | None] = [None] * len(seen)
        groups: dict[tuple[int, tuple[float, float] | None], list[int]] = {}
        for row, one in enumerate(seen):
            edges = None if one.place == "output" else self._steep(one.site.module)
            groups.setdefault((id(one.sample.of), edges), []).append(row)
        for (_, edges), rows in groups.items():
            for position, matrix in stacked([seen[row].sample for row in rows]):
                of = seen[rows[0]].sample.of
                valid = np.isfinite(matrix)
                hit = (matrix > 0) if edges is None else (matrix < edges[0]) | (matrix > edges[1])
                finite, hits = (_count_rows(mask, of) for mask in (valid, hit & valid))
                for i, its_finite, its_hits in zip(position, finite, hits, strict=True):
                    states[rows[i]] = SaturationState(its_finite, its_hits, matrix.shape[1], of.count, edges is None)
        return self.finish(states)  # type: ignore[arg-type]  # every row has one by now

    def merge(self, a: SaturationState | None, b: SaturationState | None) -> SaturationState | None:
        """Sums of counts; of the layer as one channel where the channels differ."""
        if a is None or b is None:
            return a or b
        if a.seen.shape != b.seen.shape:
            a, b = (one._replace(seen=one.seen.sum()[None], hits=one.hits.sum()[None]) for one in (a, b))
        return SaturationState(a.seen + b.seen, a.hits + b.hits, a.looked + b.looked, a.total + b.total, a.dead)

    def finish(self, states: Sequence[SaturationState]) -> Mapping[str, Measured]:
        """``saturated`` or ``dead`` of R states, NaN where a state is of the other kind."""
        return {
            name: measured
            for name, dead in (("saturated", False), ("dead", True))
            if (measured := _measured(states, dead)) is not None
        }

    def _is_flat(self, module: nn.Module, values: Tensor) -> Tensor:
        low, high = self._steep(module)
        return (values < low) | (values > high)

    def _steep(self, module: nn.Module) -> tuple[float, float]:
        """The interval where the slope is at least ``flat`` of its largest."""
        if isinstance(module, nn.Hardtanh):
            return module.min_val, module.max_val
        if isinstance(module, nn.Hardsigmoid):
            return -3.0, 3.0
        if isinstance(module, nn.Softsign):  # 1 / (1 + |x|)^2
            edge = self.flat**-0.5 - 1
        else:  # 1 - tanh(x)^2; a sigmoid is a tanh at half the argument
            edge = math.atanh(math.sqrt(1 - self.flat)) * (2 if isinstance(module, nn.Sigmoid) else 1)
        return -edge, edge


def _count(mask: Tensor, channel: Tensor | None, channels: int) -> Tensor:
    if mask.dim() == 2:
        return mask.sum(1)
    if channel is None:
        return mask.sum()[None]
    where = channel.to(mask.device)
    return torch.zeros(channels, dtype=torch.int64, device=mask.device).index_add_(0, where, mask.long())


def _count_rows(mask: NDArray[np.bool_], of: Population) -> NDArray[np.float64]:
    """``[R, C]`` how often each row's mask is true, by channel."""
    if of.channel is None:
        total: NDArray[np.float64] = mask.sum(1, keepdims=True).astype(np.float64)
        return total
    grouping = of.grouping
    counts = np.zeros((len(mask), of.channels))
    ordered = mask[:, grouping.order].astype(np.int32)
    counts[:, grouping.present] = np.add.reduceat(ordered, grouping.starts, axis=1)
    return counts


def _host(counts: Tensor | NDArray[np.float64]) -> NDArray[np.float64]:
    host: NDArray[np.float64] = counts.double().cpu().numpy() if isinstance(counts, Tensor) else counts
    return host


def _measured(states: Sequence[SaturationState], dead: bool) -> Measured | None:
    if not any(state.dead == dead for state in states):
        return None
    value, error = np.full(len(states), np.nan), np.full(len(states), np.nan)
    channels: list[NDArray[np.float64] | None] = [None] * len(states)
    source = [COMPUTED] * len(states)
    for row, state in enumerate(states):
        if state.dead != dead:
            continue
        seen, hits = _host(state.seen), _host(state.hits)
        exact = state.looked == state.total
        source[row] = COMPUTED if exact else SAMPLED
        value[row], error[row], channels[row] = (_dead if dead else _share)(seen, hits)
        if exact:
            error[row] = 0.0
        elif dead and seen.min() < _LOOKS:
            value[row], channels[row] = np.nan, None
    return Measured(value, source, error, channels)


_Result = tuple[float, float, NDArray[np.float64]]


def _share(seen: NDArray[np.float64], hits: NDArray[np.float64]) -> _Result:
    n, z2 = max(seen.sum(), 1.0), 1.959964**2
    share = hits.sum() / n if seen.sum() else math.nan
    half = math.sqrt(z2) / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    reach = half + abs((share + z2 / (2 * n)) / (1 + z2 / n) - share)
    return share, reach, _ratio(hits, seen)


def _dead(seen: NDArray[np.float64], hits: NDArray[np.float64]) -> _Result:
    silent = np.where(seen > 0, (hits == 0).astype(float), np.nan)
    looked = seen > 0
    share = float(silent[looked].mean()) if looked.any() else math.nan
    return share, 1 - 0.05 ** (1 / max(seen.min(), 1.0)), silent


def _ratio(hits: NDArray[np.float64], seen: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(hits, seen, out=np.full_like(hits, np.nan), where=seen > 0)
