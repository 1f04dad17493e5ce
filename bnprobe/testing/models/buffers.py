"""When running statistics move."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnprobe.hooks.sites import Site
from bnprobe.testing.models.model import Model, batch_norms, counter_of, samples_of
from bnprobe.testing.models.registry import model_law
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.properties.broken import NotApplicable, compare, require, require_equal
from bnprobe.testing.tolerance import roundoff

__all__ = ["batch_statistics_once", "evaluation_changes_nothing"]


def _pass(model: Model, module: nn.Module, batch: Any) -> None:
    """Forward, and backward where there is a gradient."""
    try:
        model.gradients(module, batch)
    except NotApplicable:  # frozen, or a loss without a gradient: the forward has been
        return


@model_law()
def evaluation_changes_nothing(model: Model, x: Any) -> None:
    """In evaluation mode forward and backward change no buffer and no parameter, and leave every module in that mode.

    Broken by a batch norm that keeps updating its running statistics, by counters and moving averages of one's own.
    """
    module = model.fresh(training=False)
    batch = model.batch(x, module)
    awake = [site.name for site in batch_norms(module) if site.module.training]
    require(not awake, f"eval() leaves batch norms in training mode: {', '.join(awake)}")
    before = {name: one.detach().clone() for name, one in module.state_dict(keep_vars=True).items()}
    modes = {name: one.training for name, one in module.named_modules()}
    _pass(model, module, batch)
    for name, one in module.state_dict(keep_vars=True).items():
        if isinstance(one, Tensor) and name in before:
            require_equal(name, one.detach(), before[name], "evaluation writes nothing")
    awake = [name for name, one in module.named_modules() if one.training != modes.get(name, one.training)]
    require(not awake, f"modules are in training mode after a forward in evaluation mode: {', '.join(awake)}")


@model_law()
def batch_statistics_once(model: Model, x: Any) -> None:
    """In training mode a forward and backward move the running statistics of every batch norm once, by its momentum.

    A layer that the model itself keeps in evaluation mode (frozen) is left out. Broken by activation checkpointing,
    which runs the forward again; by a layer that is called twice (shared) or never; by a layer that keeps no
    statistics though it has buffers for them.
    """
    module = model.fresh(training=True)
    batch = model.batch(x, module)
    if samples_of(batch) < 2:
        return
    norms = [site for site in batch_norms(module) if site.module.training]
    if not norms:
        raise NotApplicable("the model has no batch norm in training mode with running statistics")
    for site in norms:
        if (counter := counter_of(site)) is not None:
            counter.zero_()
    _pass(model, module, batch)
    for site in norms:
        counter = counter_of(site)
        if counter is not None:
            times = int(counter)
            require(times == 1, f"{site.name} normalized {times} batches in one forward and backward, the law has 1")
    _by_momentum(model, x, norms)


def _by_momentum(model: Model, x: Any, norms: list[Site]) -> None:
    """With momentum 1 a layer has the batch's own statistics after one forward; with another, that share of them."""
    names = [
        site.name for site in norms
        # Of other layers with a counter not: what they return in training may depend on the momentum.
        if (isinstance(site.module, _BatchNorm) or counter_of(site) is None)
        and isinstance(site.module.momentum, float) and 0 < site.module.momentum < 1
    ]  # fmt: skip
    ends = []
    for momentum in (None, 1.0):
        module = model.fresh(training=True)
        sites = {site.name: site for site in batch_norms(module)}
        for name in names:
            if momentum is not None:
                sites[name].module.momentum = momentum  # type: ignore[assignment] # a number, as it was
        torch.manual_seed(0)  # dropout
        _pass(model, module, model.batch(x, module))
        ends.append(sites)
    start = {site.name: site for site in batch_norms(model.fresh(training=True))}
    for name in names:
        weight = float(start[name].module.momentum)  # type: ignore[arg-type] # a number
        for kept in ("running_mean", "running_var"):
            old, batch, got = (wide(getattr(sites[name].module, kept)) for sites in (start, ends[1], ends[0]))
            want = (1 - weight) * old + weight * batch
            size = float(old.abs().max() + batch.abs().max()) if old.numel() else 0.0
            u = roundoff(getattr(start[name].module, kept).dtype)
            compare(f"{name}.{kept}", got, want, 64 * u * size, f"64 u times the largest, u = {u:.1g}")
