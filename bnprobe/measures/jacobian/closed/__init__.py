"""Closed forms: layers whose singular values follow from a formula, without building the Jacobian.

Wrong numbers are worse than none: a layer counts by its exact class, as torch wrote it.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrize

from bnprobe.measures.jacobian.closed.batch_norm import batch_norm
from bnprobe.measures.jacobian.closed.convolution import (
    CONVOLUTIONS,
    TRANSPOSED,
    convolution,
    transposed_convolution,
)
from bnprobe.measures.jacobian.closed.dropout import DROPOUTS, dropout
from bnprobe.measures.jacobian.closed.linear import linear
from bnprobe.measures.jacobian.closed.per_sample_norm import group_norm, instance_norm, layer_norm
from bnprobe.measures.jacobian.closed.pointwise import KINKED, SMOOTH, pointwise
from bnprobe.measures.jacobian.closed.pooling import AVERAGE_POOLS, average_pooling
from bnprobe.measures.jacobian.closed.selection import SELECTIONS, selection
from bnprobe.measures.jacobian.values import SingularValues

__all__ = ["closed_form"]

_Form: TypeAlias = Callable[[Any, Tensor], SingularValues | None]

_FORMS: dict[type[nn.Module], _Form] = {
    nn.Linear: linear,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: layer_norm,
    nn.GroupNorm: group_norm,
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), instance_norm),
    **dict.fromkeys(KINKED | SMOOTH, pointwise),
    **dict.fromkeys(SELECTIONS, selection),
    **dict.fromkeys(DROPOUTS, dropout),
    **dict.fromkeys(AVERAGE_POOLS, average_pooling),
    **dict.fromkeys(CONVOLUTIONS, convolution),
    **dict.fromkeys(TRANSPOSED, transposed_convolution),
}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Normalization over channels: which inputs the class takes.
_DIMENSIONS: dict[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,),
    nn.InstanceNorm1d: (3,), nn.InstanceNorm2d: (4,), nn.InstanceNorm3d: (5,),
}  # fmt: skip


def closed_form(module: nn.Module, x: Tensor, per: str | None = None) -> SingularValues | None:
    """All singular values of the Jacobian of one layer at its own input, by a formula; None where there is none.

    Axis 0 of ``x`` counts samples. Each has its own Jacobian, but in batch normalization by the batch's statistics,
    which couples them. The error is the rounding of this calculation: it bounds the distance to the singular values
    of the layer's Jacobian in exact arithmetic, with its stored parameters, at ``x``; what rounding does to the layer
    as it runs in its own precision is not in it. It is a first-order bound with constants that hold by a margin in
    the tests, not a proof.

    Nothing is changed: parameters, buffers, gradients and random states are as before. Hooks of the layer do not run;
    with hooks that are not bnprobe's own the layer has no closed form, as a hook may change what comes out.

    Args:
        module: the layer, in the mode (training or evaluation) that is meant.
        x: its input, ``[N, ...]``.
        per: ``"sample"`` holds a batch's statistics fixed, so that each sample has its own Jacobian.

    Returns:
        All ``min(outputs, inputs)`` values, in float64; or None.
    """
    kind = _kind(module)
    if (kind not in _FORMS and kind not in _BATCH_NORMS) or not _is_plain(module, x):
        return None
    if x.dim() not in _DIMENSIONS.get(kind, (x.dim(),)):
        return None
    # Float64 is not lowered by autocast, but a large weight's own float32 would be.
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        found = batch_norm(module, x, per) if kind in _BATCH_NORMS else _FORMS[kind](module, x)  # type: ignore[arg-type]
    if found is None or not found.values.numel() or not bool(found.values.isfinite().all()):
        return None
    return found


def _kind(module: nn.Module) -> type[nn.Module]:
    """The layer's class; of a parametrized layer, which torch gives a class of its own, the one it had before.

    Its weights are then computed on access, which must not change anything: no buffers, such as spectral norm's.
    """
    kind = type(module)
    if parametrize.is_parametrized(module) and not list(module.parametrizations.buffers()):  # type: ignore[union-attr]
        kind = kind.__mro__[1]
    return kind


def _is_plain(module: nn.Module, x: Tensor) -> bool:
    """Whether the layer does what its class says, to an ordinary real tensor of more than nothing."""
    if "forward" in vars(module) or any(_foreign_hooks(module)):
        return False
    if x.device.type in ("meta", "mps") or x.dim() < 2 or not x.numel():  # mps: no double precision
        return False
    tensors = [x, *module.parameters(), *module.buffers()]
    if any(type(one) not in (Tensor, nn.Parameter) or one.layout != torch.strided for one in tensors):
        return False
    if any(one.is_inference() for one in module.parameters()):
        return False
    inexact = [x, *module.parameters()]
    return all(one.is_floating_point() and one.device == x.device and _is_finite(one) for one in inexact)


def _is_finite(one: Tensor) -> bool:
    """By the sum, the cheapest look at every value; huge values whose sum overflows count as not finite."""
    return bool(one.detach().sum(dtype=torch.promote_types(one.dtype, torch.float32)).isfinite())


def _foreign_hooks(module: nn.Module) -> Iterator[bool]:
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    for registry in (
        *(getattr(module, kind) for kind in kinds),
        *(getattr(global_hooks, f"_global{kind}") for kind in kinds),
    ):
        for hook in registry.values():
            yield not str(getattr(hook, "__module__", "")).startswith("bnprobe.")
