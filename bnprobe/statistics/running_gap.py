"""How far a batch-normalization layer's running statistics are from the batch's own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.hooks.saved import GroupMoments, solve_moments
from bnprobe.hooks.sites import Site
from bnprobe.records import COMPUTED, Measured
from bnprobe.statistics.base import Observation, Statistic

__all__ = ["RunningGap"]


class GapState(NamedTuple):
    """Sums over the batches seen of signed gaps, ``[C]`` each; or one batch whose gaps are not computed yet.

    Attributes:
        batches: how many.
        gaps: sums of the mean's gaps and of the variance's.
        one: the batch's moments, the running mean and variance at that time, and the layer's eps.
        source: where the batches' moments came from.
    """

    batches: int
    gaps: tuple[Tensor, Tensor] | None
    one: tuple[GroupMoments, Tensor, Tensor, float] | None
    source: str

    def sums(self) -> tuple[Tensor, Tensor]:
        """Both sums."""
        if self.gaps is not None:
            return self.gaps
        assert self.one is not None
        batch, mean, variance, eps = self.one
        return _gaps(batch.mean, batch.variance, mean, variance, (batch.size - 1) / batch.size, eps)


def _gaps(mean: Any, variance: Any, running_mean: Any, running_variance: Any, shrunk: Any, eps: Any) -> tuple[Any, Any]:
    """Gaps of the mean and of the variance; the same arithmetic in torch and numpy."""
    wide, ratio = variance + eps, (variance + eps) / (running_variance * shrunk + eps)
    return (mean - running_mean) * wide**-0.5, torch.log(ratio) if isinstance(ratio, Tensor) else np.log(ratio)


@dataclass(frozen=True)
class RunningGap(Statistic):
    """Batch mean and variance against the running buffers, as they stand when the layer's forward ends.

    ``mean_gap`` is (batch mean - running mean) / batch standard deviation; ``variance_gap`` is
    ln(batch variance / running variance), where the running variance is multiplied by (n - 1) / n first, since PyTorch
    stores the unbiased variance and normalizes by the biased one. Both get ``eps`` beside the variances, as the layer
    does. Channel values are signed; the layer's value is the mean of their absolute values over channels. Several
    batches of a step are averaged.

    A gap of 0.1 moves every activation by a tenth of its standard deviation between training and evaluation.
    """

    @property
    def knows_layers(self) -> bool:
        """The buffers are the layer's."""
        return True

    @property
    def reads_all(self) -> bool:
        """The buffers move on: they are compared while the hook runs."""
        return True

    def applies(self, site: Site, place: str) -> bool:
        """Inputs of batch normalization."""
        return place == "input" and site.family == "batch_norm"

    def update(self, state: GapState | None, seen: Observation) -> GapState | None:
        """One more batch; one without running buffers or moments changes nothing."""
        module, batch = seen.site.module, seen.moments
        running_mean, running_var = seen.buffer("running_mean"), seen.buffer("running_var")
        if batch is None or not batch.by_channel or running_mean is None or running_var is None:
            return state
        if running_mean.shape != batch.raw[0].shape or batch.size < 2:  # one value has no variance
            return state
        eps = float(getattr(module, "eps", 0.0))
        one = (batch, running_mean.detach().clone(), running_var.detach().clone(), eps)
        return self.merge(state, GapState(1, None, one, batch.source))

    def merge(self, a: GapState | None, b: GapState | None) -> GapState | None:
        """Sums of gaps."""
        if a is None or b is None:
            return a or b
        source = a.source if a.source == b.source else COMPUTED
        sums = tuple(x + y for x, y in zip(a.sums(), b.sums(), strict=True))
        return GapState(a.batches + b.batches, (sums[0], sums[1]), None, source)

    def finish(self, states: Sequence[GapState]) -> Mapping[str, Measured]:
        """Both gaps of R states."""
        signed: dict[str, list[NDArray[np.float64]]] = {name: [np.empty(0)] * len(states) for name in _NAMES}
        for row, state in enumerate(states):
            for name, total in zip(_NAMES, state.gaps or (), strict=False):
                signed[name][row] = _host(total) / state.batches
        single = [row for row, state in enumerate(states) if state.one is not None]
        for rows, gaps in _all_gaps([states[row].one for row in single]):
            for name, values in zip(_NAMES, gaps, strict=True):
                for i, one in zip(rows, values, strict=True):
                    signed[name][single[i]] = one
        source, exact = [state.source for state in states], np.zeros(len(states))
        return {
            name: Measured(np.array([np.abs(gap).mean() for gap in gaps]), source, exact, gaps)
            for name, gaps in signed.items()
        }


_NAMES = ("mean_gap", "variance_gap")
_One = tuple[GroupMoments, Tensor, Tensor, float]


def _all_gaps(ones: Sequence[_One | None]) -> Iterator[tuple[list[int], tuple[Any, Any]]]:
    """``(rows, both gaps [r, C])``, batches of one kind and width together."""
    there = [one for one in ones if one is not None]
    for rows, mean, variance in solve_moments([batch for batch, *_ in there]):
        means = torch.stack([there[row][1] for row in rows]).cpu().double().numpy()
        variances = torch.stack([there[row][2] for row in rows]).cpu().double().numpy()
        shrunk = np.array([(there[row][0].size - 1) / there[row][0].size for row in rows])[:, None]
        eps = np.array([there[row][3] for row in rows])[:, None]
        with np.errstate(all="ignore"):
            yield rows, _gaps(mean, variance, means, variances, shrunk, eps)


def _host(values: Tensor) -> NDArray[np.float64]:
    return values.to("cpu", torch.float64).numpy()
