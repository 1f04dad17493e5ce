"""Group norm in the place of batch norm."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnprobe.errors import ArgumentError, SelectionError
from bnprobe.hooks.outputs import inputs_at
from bnprobe.hooks.sites import LayerChoice, unwrap
from bnprobe.measures.untouched import untouched
from bnprobe.remedies.batch_norms import batch_norms, exchanged, why_its_own
from bnprobe.remedies.calling import Forward, call, evaluating

__all__ = ["to_group_norm"]

_GROUPS = 32  # Wu and He 2018, section 4
_VALUES = 16  # a group, at least: below, the statistics of one sample are noise


def to_group_norm(
    model: nn.Module,
    groups: int | None = None,
    *,
    batch: Any = None,
    forward: Forward | None = None,
    layers: LayerChoice = None,
) -> nn.Module:
    """A copy of the model with group norm for batch norm: no sample depends on others, training and eval are alike.

    Gamma, beta, eps, dtype, device and mode are kept; running statistics have no counterpart. The outputs are not those
    of before: the model has to be trained on. An optimizer has to be made anew, for the copy's parameters.

    A group of one value has no variance, and group norm of it returns beta whatever comes in: such groups are refused.
    How many values a group has depends on the spatial extent, which ``batch`` shows (the smallest of all calls counts);
    without it one position is assumed, the worst case, and groups get wide.

    On the CPU, the backward pass of PyTorch's (2.13) group norm ends the process where the input is in channels_last
    layout and needs no gradient itself: keep such inputs contiguous.

    Source: Wu and He 2018, *Group Normalization*.

    Args:
        model: any module; it is left as it is. Wrappers are taken off.
        groups: of every layer. Default at most 32 (Wu and He, section 4), and so few that a group has 16 values of each
            sample at least where the layer has so many (ours).
        batch: as a loader yields it, see :func:`recalibrate`.
        forward: ``(model, batch) -> anything``, how the model is called on the batch instead.
        layers: which; default all batch norm layers. Else as in :func:`bnprobe.attach`; batch norm layers among the
            chosen count.

    Returns:
        The copy.

    Raises:
        SelectionError: no batch norm layer is chosen, or none can be converted.
        ArgumentError: ``groups`` does not divide a layer's channels, or makes groups of one value; a lazy layer has not
            run yet.

    Warns:
        UserWarning: which layers were left as they are, and why: a forward of their own, hooks, parametrizations, one
            value a sample.
    """
    root = unwrap(model)
    found = batch_norms(root, layers)
    extents = dict.fromkeys(found, 1) if batch is None else _extents(root, found, batch, forward)
    left = {name: why for name, layer in found.items() if (why := _why_left(layer, extents[name], groups, batch))}
    new = {
        id(layer): _group_norm(layer, _number_of_groups(name, layer.num_features, extents[name], groups, batch))
        for name, layer in found.items()
        if name not in left
    }
    told = "; ".join(f"{name!r}: {why}" for name, why in left.items())
    if not new:
        raise SelectionError(f"no batch norm layer can be converted: {told}")
    if left:
        warnings.warn(f"batch norm layers were left as they are: {told}", stacklevel=2)
    return exchanged(root, new)


def _why_left(layer: _BatchNorm, extent: int, groups: int | None, batch: Any) -> str:
    if groups is None and layer.num_features * extent < 2:
        return "one value a sample has no variance" + ("" if batch is not None else "; batch= shows its positions")
    return why_its_own(layer)


def _number_of_groups(name: str, channels: int, extent: int, groups: int | None, batch: Any) -> int:
    if groups is None:
        right = (g for g in range(1, min(channels, _GROUPS) + 1) if channels % g == 0)
        return max((g for g in right if channels // g * extent >= _VALUES), default=1)
    if groups < 1 or channels % groups:
        raise ArgumentError(f"groups must divide the channels of every layer; {name!r} has {channels}, got {groups!r}")
    if channels // groups * extent < 2:
        known = "" if batch is not None else " without more than one position, which batch= would show,"
        raise ArgumentError(f"groups={groups} leaves groups of one value in {name!r}:{known} the output would be beta")
    return groups


def _extents(root: nn.Module, layers: dict[str, _BatchNorm], batch: Any, forward: Forward | None) -> dict[str, int]:
    """The fewest positions that a sample has at each layer; 1 where a layer is not called."""
    seen: dict[str, int] = {}

    def see(name: str, _: int, x: Tensor) -> None:
        positions = x[0, 0].numel() if x.dim() > 2 and x.numel() else 1
        seen[name] = min(seen.get(name, positions), positions)

    with untouched(root), evaluating(root), torch.no_grad(), inputs_at(layers, see):
        call(root, batch, forward)
    return {name: seen.get(name, 1) for name in layers}


def _group_norm(layer: _BatchNorm, groups: int) -> nn.GroupNorm:
    affine, shifted = layer.weight is not None, layer.bias is not None
    new = nn.GroupNorm(groups, layer.num_features, layer.eps, affine, bias=shifted)
    for name, old in layer.named_parameters(recurse=False):
        setattr(new, name, nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad))
    new.training = layer.training
    return new
