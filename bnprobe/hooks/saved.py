"""Moments that autograd has already computed: what a norm layer's backward node keeps from its forward.

A training forward of batch, layer or group normalization saves the mean and the inverse standard deviation of
every group that it normalized (``grad_fn._saved_result1`` and ``_saved_result2``). Reading them costs nothing.
They are believed only where the node surely belongs to this layer's own input.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnprobe.hooks.sites import Site

__all__ = ["GroupMoments", "batch_moments", "computed_moments", "merge_moments", "output_moments", "saved_moments"]

_BATCH_NODES = {"NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0"}
_SAMPLE_NODES = {"NativeLayerNormBackward0", "NativeGroupNormBackward0"}


class GroupMoments(NamedTuple):
    """Mean and biased variance of equally large groups of values that together are the whole tensor.

    Attributes:
        size: values in each group.
        mean, variance: ``[G]``; G is C where ``by_channel``.
        by_channel: whether group g is channel g.
        source: ``saved`` or ``computed``.
        eps: what was added to the variance before it was saved: its rounding scales with their sum.
    """

    size: int
    mean: Tensor
    variance: Tensor
    by_channel: bool
    source: str
    eps: float = 0.0


def merge_moments(a: GroupMoments, b: GroupMoments) -> GroupMoments:
    """Moments over both, channel by channel where both have the same channels, else of the layer as one group."""
    if not (a.by_channel and b.by_channel and a.mean.shape == b.mean.shape):
        a, b = _as_one(a), _as_one(b)
    size = a.size + b.size
    share, apart = b.size / size, b.mean - a.mean
    mean = a.mean + share * apart
    variance = (1 - share) * a.variance + share * b.variance + share * (1 - share) * apart.square()
    source = a.source if a.source == b.source else "computed"
    return GroupMoments(size, mean, variance, a.by_channel, source, max(a.eps, b.eps))


def _as_one(moments: GroupMoments) -> GroupMoments:
    mean = moments.mean.mean(0, keepdim=True)
    variance = moments.variance.mean(0, keepdim=True) + (moments.mean - mean).square().mean(0, keepdim=True)
    return GroupMoments(moments.size * moments.mean.numel(), mean, variance, False, moments.source, moments.eps)


def saved_moments(site: Site, inputs: Tensor, output: Tensor) -> GroupMoments | None:
    """Moments of a norm layer's input, ``[C]`` for batch norm, one a sample (and group) for layer and group norm.

    The variance is ``1 / invstd^2 - eps``: exact to the rounding of the layer's own arithmetic, absolutely about
    ``eps * 1e-7`` where the channel is nearly constant.
    """
    node = output.grad_fn
    if node is None or inputs.numel() == 0:
        return None
    name = node.name()
    if name not in (_BATCH_NODES if site.family == "batch_norm" else _SAMPLE_NODES):
        return None
    eps = _eps(node, site.module)
    if eps is None or _unpacks_by_hook(node) or not _normalizes(node, inputs):
        return None
    mean, invstd = (getattr(node, f"_saved_result{k}").detach().reshape(-1) for k in (1, 2))
    if mean.numel() == 0 or inputs.numel() % mean.numel():
        return None  # batch norm in eval mode saves nothing
    variance = (invstd.square().reciprocal() - eps).clamp_min_(0)
    by_channel = site.family == "batch_norm"
    return GroupMoments(inputs.numel() // mean.numel(), mean, variance, by_channel, "saved", eps)


def output_moments(site: Site, inputs: GroupMoments) -> GroupMoments | None:
    """Moments of a batch norm's output: mean beta, variance ``gamma^2 v / (v + eps)``."""
    layer = site.module
    if not inputs.by_channel or not isinstance(layer, _BatchNorm) or type(layer).forward is not _BatchNorm.forward:
        return None
    if inputs.source != "saved" and not (layer.training or layer.running_mean is None):
        return None  # it normalized by its running buffers
    variance = inputs.variance / (inputs.variance + layer.eps)
    if hasattr(layer, "parametrizations"):  # reading a parametrised weight runs somebody's code
        return None
    gamma, beta = layer.weight, layer.bias
    if gamma is not None:
        variance = variance * gamma.detach().square()
    mean = beta.detach().clone() if beta is not None else torch.zeros_like(variance)
    return GroupMoments(inputs.size, mean, variance, True, inputs.source, 0.0 if gamma is None else inputs.eps)


def batch_moments(site: Site, inputs: Tensor) -> GroupMoments | None:
    """Moments of a batch norm's input by a pass over ``[N, C, ...]``, where autograd saved none.

    Only of PyTorch's own batch norm: over which axes and values somebody else's normalizes is not known.
    """
    if not isinstance(site.module, _BatchNorm) or inputs.dim() < 2 or inputs.numel() == 0:
        return None
    values = inputs.detach()
    values = values if values.dtype == torch.float64 else values.float()
    variance, mean = torch.var_mean(values, dim=[0, *range(2, values.dim())], correction=0)
    return GroupMoments(values.numel() // values.shape[1], mean, variance, True, "computed")


def computed_moments(site: Site, inputs: Tensor) -> GroupMoments | None:
    """What :func:`saved_moments` would find, by a pass over the input: inside a compiled graph autograd shows nothing.

    Only of PyTorch's own batch, layer and group norm.
    """
    layer = site.module
    if isinstance(layer, nn.LayerNorm) and type(layer).forward is nn.LayerNorm.forward:
        rows = inputs.numel() // math.prod(layer.normalized_shape)
    elif isinstance(layer, nn.GroupNorm) and type(layer).forward is nn.GroupNorm.forward:
        rows = inputs.shape[0] * layer.num_groups
    else:
        return batch_moments(site, inputs)
    if inputs.numel() == 0:
        return None
    values = inputs.detach().reshape(rows, -1)
    values = values if values.dtype == torch.float64 else values.float()
    variance, mean = torch.var_mean(values, dim=1, correction=0)
    return GroupMoments(values.shape[1], mean, variance, False, "computed")


def _unpacks_by_hook(node: torch.autograd.graph.Node) -> bool:
    """Whether reading the node's tensors runs hooks: a checkpoint's (it would run the layers again) or a user's."""
    return any(
        getattr(getattr(node, f"_raw_saved_{name}", None), "unpack_hook", True) is not None
        for name in ("input", "result1", "result2")
    )


def _eps(node: torch.autograd.graph.Node, module: nn.Module) -> float | None:
    for attribute in ("_saved_eps", "_saved_epsilon"):  # native and cuDNN spelling; layer norm keeps none
        if hasattr(node, attribute):
            return float(getattr(node, attribute))
    eps = getattr(module, "eps", None)
    return float(eps) if isinstance(eps, float | int) else None


def _normalizes(node: torch.autograd.graph.Node, inputs: Tensor) -> bool:
    """Whether the node's input is the layer's: a subclass may transform it on the way."""
    try:
        saved: Tensor = node._saved_input  # type: ignore[attr-defined]  # a node's own attributes
    except RuntimeError:  # changed in place since, or already freed: nothing can be said
        return False
    return bool(saved.data_ptr() == inputs.data_ptr() and saved.numel() == inputs.numel())
