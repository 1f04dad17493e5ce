"""What a disease costs, measured without the doctor: losses by stored, batch and pooled statistics, need of mates."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.doctor.data import Loss, cross_entropy

__all__ = ["accuracy", "mean_loss", "pool", "swap", "triangle"]


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [one for one in model.modules() if isinstance(one, _BatchNorm)]


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[Any], loss: Loss = cross_entropy) -> float:
    """The loss averaged over batches, in the mode that the model is in."""
    return float(torch.stack([loss(model, batch) for batch in batches]).mean())


@torch.no_grad()
def accuracy(model: nn.Module, batches: Sequence[Any]) -> float:
    """Share of right labels, in the mode that the model is in."""
    return float(torch.cat([(model(x).argmax(1) == y).float() for x, y in batches]).mean())


@torch.no_grad()
def pool(model: nn.Module, batches: Sequence[Any], call: Callable[[nn.Module, Any], Any] | None = None) -> nn.Module:
    """A copy in eval mode whose running statistics are moments over all batches, layer by layer in execution order."""
    call = call or (lambda model, batch: model(batch[0]))
    model = copy.deepcopy(model).eval()
    order: dict[_BatchNorm, None] = {}
    handles = [one.register_forward_pre_hook(lambda module, _: order.setdefault(module)) for one in _norms(model)]
    call(model, batches[0])
    for handle in handles:
        handle.remove()
    for norm in order:
        seen: list[Tensor] = []
        handle = norm.register_forward_pre_hook(functools.partial(_keep, seen))
        for batch in batches:
            call(model, batch)
        handle.remove()
        values = torch.cat([one.transpose(0, 1).flatten(1) for one in seen], dim=1).double()
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.copy_(values.mean(1))
            norm.running_var.copy_(values.var(1, correction=0))
    return model


def _keep(seen: list[Tensor], _: nn.Module, args: tuple[Tensor, ...]) -> None:
    seen.append(args[0])


def triangle(
    model: nn.Module, batches: Sequence[Any], loss: Loss = cross_entropy,
    call: Callable[[nn.Module, Any], Any] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Losses on the same batches by stored, batch and pooled statistics, all else in eval mode."""
    stored = copy.deepcopy(model).eval()
    batch = copy.deepcopy(stored)
    for norm in _norms(batch):
        norm.train()
    return {
        "stored": mean_loss(stored, batches, loss),
        "batch": mean_loss(batch, batches, loss),
        "pooled": mean_loss(pool(model, batches, call or (lambda model, batch: loss(model, batch))), batches, loss),
    }


@torch.no_grad()
def swap(call: Callable[[Tensor], Tensor], batches: Sequence[Any], samples: int = 8) -> float:
    """Mean change of a sample's output where its mates change, in standard deviations of the output."""
    x = torch.cat([batch[0] for batch in batches[:4]])
    half = max(len(batches[0][0]), samples + 1) - samples
    mine, one, two = x[:samples], x[samples : samples + half], x[samples + half : samples + 2 * half]
    left, right = call(torch.cat([mine, one])), call(torch.cat([mine, two]))
    return float((left[:samples] - right[:samples]).abs().mean() / left.std())
