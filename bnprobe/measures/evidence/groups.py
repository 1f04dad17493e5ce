"""How many values a sample's own statistics are taken over, and whether what comes out still tells samples apart."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.outputs import calls_at
from bnprobe.hooks.sites import Site
from bnprobe.hooks.tensors import tensors_in
from bnprobe.measures.evidence.patient import Patient, set_modes

__all__ = ["elements", "measure"]

PER_SAMPLE = ("group_norm", "instance_norm", "layer_norm", "rms_norm")
MOST_BATCHES = 4


@dataclass
class _Sums:
    """Over what was seen of one layer: least elements a group, values, sums and squares a channel in and out."""

    least: int
    count: int
    inputs: tuple[Tensor, Tensor]
    outputs: tuple[Tensor, Tensor]


def measure(patient: Patient) -> list[Fact]:
    """Of layers that normalize each sample by itself.

    ``group_elements``: least number of values of one sample that one mean and variance are taken over.
    ``input_spread``, ``output_spread``: standard deviation over samples and positions, root mean square over channels;
    that of the output in units of gamma, and missing where gamma is zero.
    """
    sites = {site.name: site for site in patient.norms if site.family in PER_SAMPLE}
    if not sites:
        raise NotMeasuredError("no layer normalizes each sample by itself (group, instance, layer or RMS norm)")
    sums: dict[str, _Sums] = {}
    set_modes(patient, "stored")

    def see(name: str, _: int, x: Tensor, output: object) -> None:
        _note(sums, sites[name], x, output)

    with calls_at({name: site.module for name, site in sites.items()}, see), torch.no_grad():
        for batch in patient.batches[:MOST_BATCHES]:
            patient.run(batch)
    if not sums:
        raise NotMeasuredError("no layer that normalizes each sample by itself was called")
    return [fact for name, found in sums.items() for fact in _facts(sites[name], found)]


def elements(site: Site, x: Tensor) -> int | None:
    """Values of one sample that one mean and variance are taken over; None where the layer does not say."""
    module: Any = site.module
    if site.family in ("layer_norm", "rms_norm"):
        shape = getattr(module, "normalized_shape", None)
        return math.prod(shape) if isinstance(shape, tuple) else None
    if site.family == "group_norm":
        groups = getattr(module, "num_groups", None)
        return x[0].numel() // groups if isinstance(groups, int) and x.dim() > 1 and len(x) else None
    # An instance norm takes inputs without a batch axis, too, which are then one axis short.
    short = {"InstanceNorm1d": 2, "InstanceNorm2d": 3, "InstanceNorm3d": 4}.get(type(module).__name__)
    if getattr(module, "track_running_stats", False) and not module.training:
        return None  # it normalizes by its running statistics
    return math.prod(x.shape[1:] if x.dim() == short else x.shape[2:]) if x.dim() > 1 else None


def _note(sums: dict[str, _Sums], site: Site, x: Tensor, output: object) -> None:
    _, y = next(tensors_in(output), ("", None))
    least = elements(site, x)
    if least is None or y is None or y.shape != x.shape or x.dim() < 2 or not x.numel() or not x.is_floating_point():
        return
    axis = site.channel_axis(x)
    one, other = _channels(x, axis), _channels(y, axis)
    parts = _Sums(
        least, one.shape[1], (one.sum(1), one.square().sum(1)), (other.sum(1), other.square().sum(1))
    )  # fmt: skip
    old = sums.get(site.name)
    if old is None or old.inputs[0].shape != parts.inputs[0].shape:
        sums[site.name] = parts
        return
    old.least, old.count = min(old.least, least), old.count + parts.count
    old.inputs = (old.inputs[0] + parts.inputs[0], old.inputs[1] + parts.inputs[1])
    old.outputs = (old.outputs[0] + parts.outputs[0], old.outputs[1] + parts.outputs[1])


def _channels(x: Tensor, axis: int | None) -> Tensor:
    """``[C, values]``; where the layer normalizes over several axes, each of their entries is a channel."""
    x = x.detach().double()
    return x.flatten(1).T if axis is None else x.movedim(axis, 0).flatten(1)


def _facts(site: Site, sums: _Sums) -> list[Fact]:
    gain = getattr(site.module, "weight", None)
    level = float(gain.detach().double().square().mean().sqrt()) if isinstance(gain, Tensor) else 1.0
    spread_in, spread_out = _spread(sums.count, *sums.inputs), _spread(sums.count, *sums.outputs)
    facts = [
        Fact("group_elements", float(sums.least), site.name, place="input", count=sums.count),
        Fact("input_spread", spread_in, site.name, place="input", count=sums.count),
    ]
    if level > 1e-3 and sums.count > 1:
        facts.append(Fact("output_spread", spread_out / level, site.name, place="output", count=sums.count))
    return facts


def _spread(count: int, total: Tensor, squares: Tensor) -> float:
    """Where it is no more than what rounding leaves of the squares, it is zero."""
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    noise = 1e-12 * squares / count  # of the subtraction in float64, and of float32's outputs
    return float(torch.where(variance > noise, variance, 0.0).mean().sqrt())
