"""What evaluation mode gives: the same for a sample whoever shares its batch, and what training gives."""

from typing import Any

import torch
from torch import Tensor, nn

from bnprobe.hooks.outputs import outputs_at
from bnprobe.testing.models.model import Model, counter_of, samples_of, take, with_batch_statistics
from bnprobe.testing.models.registry import model_law
from bnprobe.testing.properties.broken import NotApplicable, compare, require

__all__ = ["batch_mates", "batch_size", "order_of_samples", "pooled_moments"]


def _evaluated(model: Model, x: Any) -> tuple[nn.Module, Any, list[Tensor], list[float], str, int]:
    """The model in evaluation mode, the batch, the outputs, their tolerances and why, N.

    In double precision where the model runs in it, with the tolerances of its own: parts of it may be narrower.
    """
    bounds, why = model.rounding(x)
    module, batch = model.widest(x)
    n = samples_of(batch)
    with torch.no_grad():
        every = model.outputs(module, batch)
    if not any(one.ndim and len(one) == n for one in every):
        raise NotApplicable("no output has an axis of samples")
    return module, batch, every, bounds, why, n


def _compare(what: str, got: list[Tensor], want: list[Tensor], bounds: list[float], why: str) -> None:
    for i, (mine, other, bound) in enumerate(zip(got, want, bounds, strict=True)):
        compare(f"output {i} {what}" if len(got) > 1 else f"output {what}", mine, other, bound, why)


def _with_samples(outputs: list[Tensor], n: int) -> list[int]:
    return [i for i, one in enumerate(outputs) if one.ndim and len(one) == n]


@model_law()
def batch_mates(model: Model, x: Any) -> None:
    """In evaluation mode a sample's output is the same whoever shares its batch.

    The other samples are exchanged for copies of the first one. Broken by a batch norm that stays in training mode, or
    has no running statistics; by attention or statistics across the batch.
    """
    module, batch, every, bounds, why, n = _evaluated(model, x)
    with torch.no_grad():
        other = model.outputs(module, take(batch, torch.zeros(n, dtype=torch.long)))
    for i in _with_samples(every, n):
        _compare("with other mates", [other[i][:1]], [every[i][:1]], [bounds[i]], why)


@model_law()
def batch_size(model: Model, x: Any) -> None:
    """In evaluation mode samples one by one, and in two parts, give what they give together.

    Broken by what :func:`batch_mates` is broken by, and by shapes that are special-cased: a ``squeeze()`` that takes
    the axis of samples away, a reshape with a fixed batch size.
    """
    module, batch, every, bounds, why, n = _evaluated(model, x)
    parts = {"one by one": [torch.tensor([i]) for i in range(n)]}
    if n > 2:
        parts["in two parts"] = list(torch.split(torch.arange(n), n // 2 + 1))
    with torch.no_grad():
        for what, indices in parts.items():
            pieces = [model.outputs(module, take(batch, index)) for index in indices]
            for i in _with_samples(every, n):
                whole = every[i].shape[1:]
                for piece in pieces:
                    shape = tuple(piece[i].shape)
                    require(shape[1:] == whole and len(shape) > 0, f"output {i} {what} has the shape {shape}, together "
                            f"{tuple(every[i].shape)}")  # fmt: skip
                _compare(what, [torch.cat([piece[i] for piece in pieces])], [every[i]], [bounds[i]], why)


@model_law()
def order_of_samples(model: Model, x: Any) -> None:
    """In evaluation mode samples in another order give the same outputs in that order.

    Broken by what depends on the place in the batch: ghost batches, a state that is carried from sample to sample.
    """
    module, batch, every, bounds, why, n = _evaluated(model, x)
    order = torch.arange(n).flip(0)
    with torch.no_grad():
        other = model.outputs(module, take(batch, order))
    for i in _with_samples(every, n):
        want = every[i][order.to(every[i].device)]
        _compare("in reversed order", [other[i]], [want], [bounds[i]], why)


@model_law(at_most=10)
def pooled_moments(model: Model, x: Any) -> None:
    """Evaluation gives what training gives where the running statistics are the batch's own mean and biased variance.

    Only batch norms are in training mode, all else (dropout) in evaluation mode. Broken by a batch norm that normalizes
    otherwise in the two modes, by parts of the model that are not switched by ``eval()``, by branches on ``training``.
    """
    module, batch = model.widest(x)
    norms = with_batch_statistics(module)
    if samples_of(batch) < 2:
        return
    if not norms:
        raise NotApplicable("the model has no batch norm with running statistics")
    module.requires_grad_(True)  # outputs_at sees what has a graph
    for site in norms:
        site.module.momentum = 1.0  # type: ignore[assignment] # a number, as it was
        if (counter := counter_of(site)) is not None:
            counter.zero_()
    trained, seen = outputs_at(module, {site.name: site.module for site in norms}, lambda: model.outputs(module, batch))
    trained = [one.detach() for one in trained]
    for site in norms:
        counter = counter_of(site)
        if counter is not None and int(counter) > 1:
            raise NotApplicable(f"{site.name} is called {int(counter)} times in a forward: it has more than one batch")
        if site.name in seen:
            axis = site.channel_axis(seen[site.name]) or 1
            m = seen[site.name].numel() // max(seen[site.name].shape[axis], 1)
            with torch.no_grad():
                site.module.running_var.mul_((m - 1) / m)  # type: ignore[operator] # a tensor
    module.eval()
    with torch.no_grad():
        got = model.outputs(module, batch)
    bounds, why = model.rounding(x, with_batch_statistics)
    _compare("of evaluation", got, trained, [2 * one for one in bounds], f"of both modes, {why}")
