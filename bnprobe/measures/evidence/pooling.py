"""Population statistics of the cached batches: what batch norm's running averages ought to hold.

The total mean and variance of a layer's inputs over all batches together, each layer's with the layers before it
already normalized by theirs; so the composition of the batches has no say (Wu and Johnson 2021, section 3). Exact after
as many passes as there are layers; here passes are repeated until a further one changes nothing that matters.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnprobe.hooks.outputs import inputs_at
from bnprobe.hooks.sites import Site

if TYPE_CHECKING:
    from bnprobe.measures.evidence.patient import Patient

__all__ = ["Pooled", "channel_sums", "install", "pooled"]

# Ours: a change of a hundredth of a standard deviation moves no judgement; healthy networks get there in three passes.
SETTLED = 0.01
MOST_PASSES = 8


@dataclass(frozen=True)
class Pooled:
    """Statistics by layer.

    Attributes:
        mean, variance: ``[C]`` in float64; variances are biased (divided by n).
        count: values a channel.
        passes: how many it took.
        change: the largest change of the last pass, in standard deviations (means) or of the logarithm (variances).
    """

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]
    count: dict[str, int]
    passes: int
    change: float


def pooled(patient: "Patient") -> Pooled:
    """Measure them."""
    from bnprobe.measures.evidence.patient import set_modes

    patient.origin.rewind()
    set_modes(patient, "batch")
    now = _pass(patient, patient.tracked, first=True)
    set_modes(patient, "stored")
    passes, change = 1, float("inf")
    while change >= SETTLED and passes <= MOST_PASSES:
        install(patient, now)
        before, now = now, _pass(patient, patient.tracked)
        passes, change = passes + 1, _change(before, now)
    return Pooled(now.mean, now.variance, now.count, passes, change)


def install(patient: "Patient", statistics: Pooled) -> None:
    """Put them into the layers as running statistics, the variance with n / (n - 1) as PyTorch keeps it."""
    for site in patient.tracked:
        if site.name in statistics.mean:
            count = statistics.count[site.name]
            unbiased = statistics.variance[site.name] * (count / max(count - 1, 1))
            with torch.no_grad():
                site.module.running_mean.copy_(statistics.mean[site.name])  # type: ignore[operator]
                site.module.running_var.copy_(unbiased)  # type: ignore[operator]


def channel_sums(site: Site, x: Tensor) -> tuple[int, Tensor, Tensor] | None:
    """Values a channel, sum and sum of squares ``[C]`` in float64; None where the channels' axis is not known."""
    axis = site.channel_axis(x)
    if axis is None or not x.numel():
        return None
    values = x.detach().movedim(axis, 0).flatten(1).double()
    return values.shape[1], values.sum(1), values.square().sum(1)


def _pass(patient: "Patient", sites: list[Site], first: bool = False) -> Pooled:
    by_name = {site.name: site for site in sites}
    counts: dict[str, int] = {}
    sums: dict[str, tuple[Tensor, Tensor]] = {}

    def see(name: str, _: int, x: Tensor, __: object) -> None:
        found = channel_sums(by_name[name], x)
        if found is None or not bool(torch.isfinite(found[2]).all()):
            return
        count, total, squares = found
        counts[name] = counts.get(name, 0) + count
        old = sums.get(name)
        sums[name] = (total, squares) if old is None else (old[0] + total, old[1] + squares)

    with inputs_at({site.name: site.module for site in sites}, see), torch.no_grad():
        for batch in patient.batches:
            try:
                patient.run(batch)
            except ValueError:
                if not first:  # a last batch of one sample: there are no batch statistics of it
                    raise
    mean = {name: total / counts[name] for name, (total, _) in sums.items()}
    variance = {name: (sums[name][1] / counts[name] - mean[name].square()).clamp_min(0) for name in sums}
    return Pooled(mean, variance, counts, 1, float("inf"))


def _change(before: Pooled, now: Pooled) -> float:
    worst = 0.0
    for name, mean in now.mean.items():
        if name not in before.mean:
            return float("inf")
        variance = now.variance[name]
        alive = variance > 0
        if alive.any():
            moved = ((mean - before.mean[name]).abs() / variance.sqrt())[alive]
            stretched = (variance.log() - before.variance[name].clamp_min(1e-300).log()).abs()[alive]
            worst = max(worst, float(moved.max()), float(stretched.max()))
    return worst
