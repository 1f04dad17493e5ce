"""Population statistics of the cached batches: what batch norm's running averages ought to hold.

The total mean and variance of a layer's inputs over all batches together, each layer's with the layers before it
already normalized by theirs; so the composition of the batches has no say (Wu and Johnson 2021, section 3). Exact after
as many passes as there are layers, if each pass settled one; to exchange all at once may go astray in deep networks.
So a draft comes first: samples of all batches, mixed at random into new ones, each normalized by its own statistics,
which are nearly those of all. Passes over the batches as they are follow, until one more changes nothing that matters;
the last gives the statistics, and the moments of every single batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.hooks.tensors import with_tensors
from bnprobe.measures.evidence.moments import Moments, observe

if TYPE_CHECKING:
    from bnprobe.measures.evidence.patient import Patient

__all__ = ["Pooled", "install", "pooled"]

DRAFT_BATCHES, LEAST_MIXED = 8, 64  # ours: batches of the draft, and samples in each: their mean is off by an eighth
SETTLED, MOST_PASSES = 0.03, 5  # ours: three hundredths of a standard deviation move no judgement


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
    patient.origin.rewind()
    set_modes(patient, "batch")
    best = Pooled.of(observe(patient.batch_norms, enumerate(_draft(patient)), patient.run))
    set_modes(patient, "stored")
    names = [site.name for site in patient.batch_norms]
    ends = [*names[:1], *names[-1:]]
    for _ in range(MOST_PASSES):
        install(patient, best)
        now = Pooled.of(observe(patient.batch_norms, numbered, patient.run, ends), best)
        if now.change > best.change:  # going astray
            break
        best = now
        if best.change < SETTLED:
            break
    return best


def _draft(patient: "Patient") -> Sequence[Any]:
    """Samples of all batches mixed at random into new ones; where that cannot be, some of the batches as they are."""
    batches = patient.batches
    spread = batches[:: -(-len(batches) // DRAFT_BATCHES)]  # over all, for neighbours may be alike
    if len(batches) == 1 or any(_rest(batch) != _rest(batches[0]) for batch in batches):
        return spread
    try:
        whole = patient.joined(batches)
        count = patient.samples(whole)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(patient.seed))
        size = max(LEAST_MIXED, count // len(batches))
        return [patient.part(whole, rows) for rows in torch.split(order, size) if 2 * len(rows) > size][:DRAFT_BATCHES]
    except NotMeasuredError:  # samples of different shapes
        return spread


def _rest(batch: Any) -> str:
    """What a batch holds beside tensors with a row a sample: if it differs, samples belong to their batches."""
    return repr(with_tensors(batch, lambda one: one if not one.dim() else one.new_zeros(0)))


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
