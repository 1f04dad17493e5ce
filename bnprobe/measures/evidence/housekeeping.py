"""Small things about norm layers: biases without effect, decay on gains, gains and variances near zero."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnprobe.evidence import Fact
from bnprobe.hooks.outputs import calls_at
from bnprobe.hooks.sites import Site, named_layers
from bnprobe.hooks.tensors import tensors_in
from bnprobe.measures.evidence.patient import Patient, set_modes

__all__ = ["Source", "fed_by", "few", "measure"]

SMALL_GAIN = 1e-2
NEAR_EPS = 10.0


def measure(patient: Patient) -> list[Fact]:
    """Of each layer ``tiny_variance_share`` (running variance below 10 epsilon), ``small_gain_share`` (|gamma| < 0.01).

    And ``bias_before_norm`` (1: a convolution or linear layer with bias feeds this batch norm, which takes it out
    again), and with an optimizer ``affine_decay``: the weight decay of its gain or shift.
    """
    facts = []
    decayed = _decay(patient)
    feeding = fed_by(patient)
    for site in patient.norms:
        facts += _values(site)
        source = feeding.get(site.name)
        if source is not None and site.family == "batch_norm":
            has = isinstance(getattr(source.module, "bias", None), Tensor)
            facts.append(Fact("bias_before_norm", float(has), site.name))
        own = [decayed[id(one)] for one in site.module.parameters(recurse=False) if id(one) in decayed]
        if own:
            facts.append(Fact("affine_decay", max(own), site.name))
    return facts


@dataclass(frozen=True, eq=False)
class Source:
    """A convolution or linear layer, its name, and what it was given of :func:`few` samples."""

    name: str
    module: nn.Module
    given: Tensor


def few(patient: Patient) -> Any:
    """Two samples, for what is kept of every layer."""
    first = patient.batches[0]
    return patient.part(first, range(min(2, patient.samples(first))))


def fed_by(patient: Patient) -> dict[str, Source]:
    """Norm layers, and the convolution or linear layer whose output they are given as it is."""
    wanted = (nn.modules.conv._ConvNd, nn.Linear)
    sources = {name: module for name, module in named_layers(patient.root) if isinstance(module, wanted)}
    norms = {site.name: site.module for site in patient.norms}
    made: dict[int, tuple[Source, Tensor]] = {}
    found: dict[str, Source] = {}

    def see(name: str, _: int, x: Tensor, output: object) -> None:
        if name in sources:
            y = next((one for _, one in tensors_in(output)), None)
            if y is not None:
                made[id(y)] = (Source(name, sources[name], x), y)  # kept, so that no other tensor takes its place
        elif id(x) in made:
            found.setdefault(name, made[id(x)][0])

    patient.origin.rewind()
    set_modes(patient, "stored")
    with calls_at({**sources, **norms}, see), torch.no_grad():
        patient.run(few(patient))
    return found


def _values(site: Site) -> list[Fact]:
    module: Any = site.module
    facts = []
    variance, gain, eps = (getattr(module, name, None) for name in ("running_var", "weight", "eps"))
    if isinstance(variance, Tensor) and isinstance(eps, float | int) and variance.numel():
        share = float((variance.detach() < NEAR_EPS * eps).double().mean())
        facts.append(Fact("tiny_variance_share", share, site.name, count=variance.numel()))
    if isinstance(gain, Tensor) and gain.is_floating_point() and gain.numel():
        share = float((gain.detach().abs() < SMALL_GAIN).double().mean())
        facts.append(Fact("small_gain_share", share, site.name, count=gain.numel()))
    return facts


def _decay(patient: Patient) -> dict[int, float]:
    """Weight decay by parameter, where it has some."""
    if patient.given.optimizer is None:
        return {}
    return {
        id(one): float(group["weight_decay"])
        for group in patient.given.optimizer.param_groups
        if float(group.get("weight_decay") or 0) > 0
        for one in group["params"]
    }
