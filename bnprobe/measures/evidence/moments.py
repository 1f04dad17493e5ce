"""Moments of every batch at every batch norm's input, where samples do not influence one another yet."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnprobe.hooks.outputs import inputs_at
from bnprobe.measures.evidence.pooling import channel_sums, install

if TYPE_CHECKING:
    from bnprobe.measures.evidence.patient import Patient

__all__ = ["LayerMoments", "Moments", "moments"]


@dataclass
class LayerMoments:
    """Of one layer over ``B`` batches, all calls of a forward together, in float64 on the CPU.

    Attributes:
        batches: ``[B]`` numbers of the batches that reached it.
        counts: ``[B]`` values a channel.
        means, variances: ``[B, C]``; variances are biased (divided by n).
        samples: of the first and last layer, of each batch ``[N, C]``: each sample's mean over positions.
    """

    batches: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    variances: list[Tensor] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)


Moments = dict[str, LayerMoments]


def moments(patient: "Patient") -> Moments:
    """Measure them in evaluation mode with pooled statistics, so that no sample has been moved by its batch mates."""
    from bnprobe.measures.evidence.patient import set_modes

    pooled = patient.pooled
    patient.origin.rewind()
    set_modes(patient, "stored")
    install(patient, pooled)
    sites = {site.name: site for site in patient.batch_norms}
    names = [site.name for site in patient.batch_norms if site.name in pooled.mean or site not in patient.tracked]
    kept = {*names[:1], *names[-1:]}
    found: Moments = {}
    seen: dict[str, tuple[int, Tensor, Tensor]] = {}
    rows: dict[str, Tensor] = {}

    def see(name: str, _: int, x: Tensor, __: object) -> None:
        part = channel_sums(sites[name], x)
        if part is None:
            return
        old = seen.get(name)
        seen[name] = part if old is None else (old[0] + part[0], old[1] + part[1], old[2] + part[2])
        axis = sites[name].channel_axis(x)
        if name in kept and old is None and axis is not None and axis > 0:
            rows[name] = x.detach().movedim(axis, 1).flatten(2).double().mean(2) if x.dim() > 2 else x.detach().double()

    for number, batch in enumerate(patient.batches):
        seen.clear()
        rows.clear()
        with inputs_at({name: sites[name].module for name in sites}, see), torch.no_grad():
            patient.run(batch)
        for name, (count, total, squares) in seen.items():
            layer = found.setdefault(name, LayerMoments())
            mean = total / count
            layer.batches.append(number)
            layer.counts.append(count)
            layer.means.append(mean.cpu())
            layer.variances.append((squares / count - mean.square()).clamp_min(0).cpu())
            if name in rows:
                layer.samples.append(rows[name].cpu())
    return found
