"""Population statistics of the cached batches: what batch norm's running averages ought to hold.

The total mean and variance of a layer's inputs over all batches together, each layer's with the layers before it
already normalized by theirs; so the composition of the batches has no say (Wu and Johnson 2021, section 3). Exact after
as many passes as there are layers. Here passes over some of the batches are repeated until one more changes nothing
that matters, then over all of them; the last gives the statistics, and the moments of every single batch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnprobe.measures.evidence.moments import Moments, observe

if TYPE_CHECKING:
    from bnprobe.measures.evidence.patient import Patient

__all__ = ["Pooled", "install", "pooled"]

SETTLED = 0.01  # ours: a hundredth of a standard deviation moves no judgement
DRAFT_BATCHES, DRAFT_PASSES = 8, 6  # ours: healthy networks settle in two or three
FULL_SETTLED, FULL_PASSES = 0.03, 4  # ours: other batches than the draft's move the mean by as much at random


@dataclass(frozen=True)
class Pooled:
    """Statistics by layer.

    Attributes:
        mean, variance: ``[C]`` in float64 on the CPU; variances are biased (divided by n).
        count: values a channel.
        moments: of each batch, taken with these statistics (but for ``change``) in the layers before.
        passes: how many it took.
        change: of the last pass against the one before, in standard deviations (means) or of the logarithm
            (variances): the median over channels, of the layer where it is largest. An error bound for practical ends.
    """

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]
    count: dict[str, int]
    moments: Moments
    passes: int
    change: float

    @classmethod
    def of(cls, moments: Moments, before: "Pooled | None" = None) -> "Pooled":
        """All batches together."""
        whole = {name: layer.together() for name, layer in moments.items()}
        count = {name: chunk[0] for name, chunk in whole.items()}
        mean = {name: chunk[1] for name, chunk in whole.items()}
        variance = {name: chunk[2] for name, chunk in whole.items()}
        change = float("inf") if before is None else _change(before, mean, variance)
        return cls(mean, variance, count, moments, 1 if before is None else before.passes + 1, change)


def pooled(patient: "Patient") -> Pooled:
    """Measure them."""
    from bnprobe.measures.evidence.patient import set_modes

    numbered = list(enumerate(patient.batches))
    draft = numbered[:: -(-len(numbered) // DRAFT_BATCHES)]  # spread over all, for neighbours may be alike
    patient.origin.rewind()
    set_modes(patient, "batch")
    now = Pooled.of(observe(patient.batch_norms, draft, patient.run))
    set_modes(patient, "stored")
    while now.change >= SETTLED and now.passes < DRAFT_PASSES:
        install(patient, now)
        now = Pooled.of(observe(patient.batch_norms, draft, patient.run), now)
    names = [site.name for site in patient.batch_norms]
    ends = [*names[:1], *names[-1:]]
    for _ in range(FULL_PASSES):
        install(patient, now)
        now = Pooled.of(observe(patient.batch_norms, numbered, patient.run, ends), now)
        if now.change < FULL_SETTLED:
            break
    return now


def install(patient: "Patient", statistics: Pooled) -> None:
    """Put them into the layers as running statistics, the variance with n / (n - 1) as PyTorch keeps it."""
    for site in patient.tracked:
        if site.name in statistics.mean:
            count = statistics.count[site.name]
            unbiased = statistics.variance[site.name] * (count / max(count - 1, 1))
            with torch.no_grad():
                site.module.running_mean.copy_(statistics.mean[site.name])  # type: ignore[operator]
                site.module.running_var.copy_(unbiased)  # type: ignore[operator]


def _change(before: Pooled, mean: dict[str, Tensor], variance: dict[str, Tensor]) -> float:
    worst = 0.0
    for name, now in mean.items():
        if name not in before.mean:
            return float("inf")
        alive = (variance[name] > 0) & (before.variance[name] > 0)
        if alive.any():
            moved = ((now - before.mean[name]).abs() / variance[name].sqrt())[alive]
            stretched = (variance[name] / before.variance[name]).log().abs()[alive]
            worst = max(worst, float(moved.median()), float(stretched.median()))
    return worst
