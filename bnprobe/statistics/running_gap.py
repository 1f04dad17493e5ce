"""How far a batch-normalization layer's running statistics are from the batch's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.hooks.sites import Site
from bnprobe.records import COMPUTED, Measured
from bnprobe.statistics.base import Observation, Statistic

__all__ = ["RunningGap"]


class GapState(NamedTuple):
    """Sums over the batches seen of signed gaps, ``[C]`` each."""

    batches: int
    mean: Tensor
    variance: Tensor
    source: str


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
        if running_mean.shape != batch.mean.shape or batch.size < 2:  # one value has no variance
            return state
        eps = float(getattr(module, "eps", 0.0))
        biased = running_var * ((batch.size - 1) / batch.size) + eps
        variance = batch.variance + eps
        mean_gap = (batch.mean - running_mean) * variance.rsqrt()
        return self.merge(state, GapState(1, mean_gap, (variance / biased).log(), batch.source))

    def merge(self, a: GapState | None, b: GapState | None) -> GapState | None:
        """Sums of gaps."""
        if a is None or b is None:
            return a or b
        source = a.source if a.source == b.source else COMPUTED
        return GapState(a.batches + b.batches, a.mean + b.mean, a.variance + b.variance, source)

    def finish(self, states: Sequence[GapState]) -> Mapping[str, Measured]:
        """Both gaps of R states."""
        signed = {
            "mean_gap": [_host(state.mean / state.batches) for state in states],
            "variance_gap": [_host(state.variance / state.batches) for state in states],
        }
        source, exact = [state.source for state in states], np.zeros(len(states))
        return {
            name: Measured(np.array([np.abs(gap).mean() for gap in gaps]), source, exact, gaps)
            for name, gaps in signed.items()
        }


def _host(values: Tensor) -> NDArray[np.float64]:
    return values.to("cpu", torch.float64).numpy()
