"""What the normalization layers are set to: flags, momenta, buffers. Nothing runs."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bnprobe.evidence import Fact
from bnprobe.hooks.sites import Site
from bnprobe.measures.evidence.patient import Patient

__all__ = ["measure"]


def measure(patient: Patient) -> list[Fact]:
    """Facts of each normalization layer, and of the root.

    ``training``, ``affine_frozen``, ``momentum`` (NaN becomes missing: momentum None), ``cumulative`` (momentum None),
    ``eps``, ``tracks``, ``has_buffers``, ``updates_seen`` (num_batches_tracked), ``default_statistics`` (all 0 and 1),
    ``nonfinite_statistics``, ``half_buffers``, ``synchronized``.
    """
    facts = [Fact("training", float(patient.modes[""]))]
    for site in patient.norms:
        facts += [Fact(name, float(value), site.name) for name, value in _flags(patient, site)]
        facts += _buffers(site)
    return facts


def _flags(patient: Patient, site: Site) -> Iterable[tuple[str, float]]:
    module: Any = site.module
    yield "training", patient.modes[site.name]
    own = list(module.parameters(recurse=False))
    if own:
        yield "affine_frozen", not any(one.requires_grad for one in own)
    momentum = getattr(module, "momentum", math.nan)
    if momentum is None:
        yield "cumulative", 1
    elif isinstance(momentum, int | float):
        yield "momentum", momentum
    eps = getattr(module, "eps", None)
    if isinstance(eps, int | float):
        yield "eps", eps
    if hasattr(module, "track_running_stats"):
        yield "tracks", module.track_running_stats
    yield "has_buffers", isinstance(getattr(module, "running_mean", None), Tensor)
    yield "synchronized", isinstance(module, nn.SyncBatchNorm)


def _buffers(site: Site) -> Iterable[Fact]:
    module: Any = site.module
    seen = getattr(module, "num_batches_tracked", None)
    if isinstance(seen, Tensor):
        yield Fact("updates_seen", float(seen), site.name)
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return
    yield Fact("default_statistics", float(bool((mean == 0).all() and (variance == 1).all())), site.name)
    bad = ~torch.isfinite(mean) | ~torch.isfinite(variance) | (variance < 0)
    yield Fact("nonfinite_statistics", float(bad.sum()), site.name, count=bad.numel())
    yield Fact("half_buffers", float(mean.dtype in (torch.float16, torch.bfloat16)), site.name)
    yield Fact("running_mean", layer=site.name, count=mean.numel(), channels=mean.detach().double().cpu().numpy())
    yield Fact("running_var", layer=site.name, count=mean.numel(), channels=variance.detach().double().cpu().numpy())
