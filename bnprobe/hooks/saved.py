"""Moments that autograd has already computed: what a norm layer's backward node keeps from its forward.

A training forward of batch, layer or group normalization saves the mean and the inverse standard deviation of
every group that it normalized (``grad_fn._saved_result1`` and ``_saved_result2``). Reading them costs nothing.
They are believed only where the node surely belongs to this layer's own input.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnprobe.hooks.sites import Site

__all__ = [
    "GroupMoments",
    "batch_moments",
    "computed_moments",
    "merge_moments",
    "output_moments",
    "saved_moments",
    "solve_moments",
]

_BATCH_NODES = {"NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0"}
_SAMPLE_NODES = {"NativeLayerNormBackward0", "NativeGroupNormBackward0"}

# How mean and biased variance come from the raw tensors and eps; the same arithmetic in torch and numpy.
Solve = Callable[..., tuple[Any, Any]]


def _as_they_are(_eps: float, mean: Any, variance: Any) -> tuple[Any, Any]:
    return mean, variance


def _from_invstd(eps: float, mean: Any, invstd: Any) -> tuple[Any, Any]:
    return mean, (invstd**-2 - eps).clip(0)


def _normalized(eps: float, invstd: Any) -> tuple[Any, Any]:
    return 0 * invstd, (1 - eps * invstd**2).clip(0)  # v / (v + eps)


def _normalized_affine(eps: float, invstd: Any, gamma: Any, beta: Any) -> tuple[Any, Any]:
    return beta, gamma**2 * (1 - eps * invstd**2).clip(0)


class GroupMoments:
    """Mean and biased variance of equally large groups of values that together are the whole tensor.

    Kept as autograd saved them: what has to be computed of them is computed for many steps at once, at a flush.

    Attributes:
        size: values in each group.
        raw: tensors ``[G]`` each, of which ``solve`` makes mean and variance.
        by_channel: whether group g is channel g (then G is C).
        source: ``saved`` or ``computed``.
        eps: what was added to the variance before it was saved: its rounding scales with their sum.
    """

    __slots__ = ("by_channel", "eps", "raw", "size", "solve", "source")

    def __init__(
        self,
        size: int,
        raw: tuple[Tensor, ...],
        by_channel: bool,
        source: str,
        eps: float = 0.0,
        solve: Solve = _as_they_are,
    ) -> None:
        self.size, self.raw, self.by_channel, self.source, self.eps, self.solve = (
            size,
            raw,
            by_channel,
            source,
            eps,
            solve,
        )

    @property
    def mean(self) -> Tensor:
        """``[G]``."""
        mean: Tensor = self.solve(self.eps, *self.raw)[0]
        return mean

    @property
    def variance(self) -> Tensor:
        """``[G]``."""
        variance: Tensor = self.solve(self.eps, *self.raw)[1]
        return variance

    @property
    def nbytes(self) -> int:
        """Size of what is kept."""
        return sum(one.nbytes for one in self.raw)


def solve_moments(
    many: Sequence[GroupMoments | None],
) -> list[tuple[list[int], NDArray[np.float64], NDArray[np.float64]]]:
    """``(rows, mean [r, G], variance [r, G])`` on the host, those of one kind and size together in one copy."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for row, one in enumerate(many):
        if one is not None:
            first = one.raw[0]
            kinds = tuple(part.dtype for part in one.raw)
            alike.setdefault((one.solve, one.eps, first.shape, kinds, first.device), []).append(row)
    result = []
    for (solve, eps, *_), rows in alike.items():
        parts = zip(*(one.raw for row in rows if (one := many[row]) is not None), strict=True)
        raw = [torch.stack(part).cpu().double().numpy() for part in parts]
        with np.errstate(all="ignore"):
            mean, variance = solve(eps, *raw)  # type: ignore[operator]  # the first of the key
        result.append((rows, mean, variance))
    return result


def merge_moments(a: GroupMoments, b: GroupMoments) -> GroupMoments:
    """Moments over both, channel by channel where both have the same channels, else of the layer as one group."""
    (mean_a, variance_a), (mean_b, variance_b) = a.solve(a.eps, *a.raw), b.solve(b.eps, *b.raw)
    size_a, size_b = a.size, b.size
    by_channel = a.by_channel and b.by_channel and mean_a.shape == mean_b.shape
    if not by_channel:
        size_a, mean_a, variance_a = _as_one(size_a, mean_a, variance_a)
        size_b, mean_b, variance_b = _as_one(size_b, mean_b, variance_b)
    size = size_a + size_b
    share, apart = size_b / size, mean_b - mean_a
    mean = mean_a + share * apart
    variance = (1 - share) * variance_a + share * variance_b + share * (1 - share) * apart.square()
    source = a.source if a.source == b.source else "computed"
    return GroupMoments(size, (mean, variance), by_channel, source, max(a.eps, b.eps))


def _as_one(size: int, mean: Tensor, variance: Tensor) -> tuple[int, Tensor, Tensor]:
    pooled = mean.mean(0, keepdim=True)
    spread = variance.mean(0, keepdim=True) + (mean - pooled).square().mean(0, keepdim=True)
    return size * mean.numel(), pooled, spread


def saved_moments(site: Site, inputs: Tensor, output: Tensor) -> GroupMoments | None:
    """Moments of a norm layer's input, ``[C]`` for batch norm, one a sample (and group) for layer and group norm.

    The variance is ``1 / invstd^2 - eps``: exact to the rounding of the layer's own arithmetic, absolutely about
    ``eps * 1e-7`` where the channel is nearly constant.
    """
    node = output.grad_fn
    if node is None:
        return None
    by_channel = site.family == "batch_norm"
    if node.name() not in (_BATCH_NODES if by_channel else _SAMPLE_NODES) or inputs.numel() == 0:
        return None
    eps = _eps(node, site.module)
    if eps is None or _unpacks_by_hook(node) or not _normalizes(node, inputs):
        return None
    mean, invstd = node._saved_result1, node._saved_result2  # type: ignore[attr-defined]  # a node's own attributes
    groups = mean.numel()
    if groups == 0 or inputs.numel() % groups:
        return None  # batch norm in eval mode saves nothing
    if mean.dtype.itemsize < 4:
        return None  # a layer whose weights are half precision saves three digits
    if mean.requires_grad or mean.dim() != 1:  # a group norm's hold on to their graph
        mean, invstd = mean.detach().reshape(-1), invstd.detach().reshape(-1)
    return GroupMoments(inputs.numel() // groups, (mean, invstd), by_channel, "saved", eps, _from_invstd)


def output_moments(site: Site, inputs: GroupMoments, output: Tensor) -> GroupMoments | None:
    """Moments of a batch norm's output: mean beta, variance ``gamma^2 v / (v + eps)``; not where it was rounded."""
    if output.dtype.itemsize < 4:
        return None
    layer = site.module
    if not inputs.by_channel or not isinstance(layer, _BatchNorm) or type(layer).forward is not _BatchNorm.forward:
        return None
    if inputs.source != "saved" and not (layer.training or layer.running_mean is None):
        return None  # it normalized by its running buffers
    if "parametrizations" in layer._modules:  # reading a parametrised weight runs somebody's code
        return None
    parameters, eps = layer._parameters, float(layer.eps)
    invstd = inputs.raw[1] if inputs.solve is _from_invstd else (inputs.variance + eps).rsqrt()
    gamma, beta = parameters.get("weight"), parameters.get("bias")
    if gamma is None:
        return GroupMoments(inputs.size, (invstd,), True, inputs.source, eps, _normalized)
    if beta is None or any(type(one) not in (Tensor, nn.Parameter) for one in (gamma, beta)):
        return None  # operations on sharded ones may wait for other processes
    raw = (invstd, gamma.detach().clone(), beta.detach().clone())
    return GroupMoments(inputs.size, raw, True, inputs.source, eps, _normalized_affine)


def batch_moments(site: Site, inputs: Tensor) -> GroupMoments | None:
    """Moments of a batch norm's input by a pass over ``[N, C, ...]``, where autograd saved none.

    Only of PyTorch's own batch norm: over which axes and values somebody else's normalizes is not known.
    """
    if not isinstance(site.module, _BatchNorm) or inputs.dim() < 2 or inputs.numel() == 0:
        return None
    values = inputs.detach()
    values = values if values.dtype == torch.float64 else values.float()
    variance, mean = torch.var_mean(values, dim=[0, *range(2, values.dim())], correction=0)
    return GroupMoments(values.numel() // values.shape[1], (mean, variance), True, "computed")


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
    return GroupMoments(values.shape[1], (mean, variance), False, "computed")


def _unpacks_by_hook(node: torch.autograd.graph.Node) -> bool:
    """Whether reading the node's tensors runs hooks: a checkpoint's (it would run the layers again) or a user's."""
    try:
        raw = (node._raw_saved_input, node._raw_saved_result1, node._raw_saved_result2)  # type: ignore[attr-defined]
    except AttributeError:
        return True
    return any(one.unpack_hook is not None for one in raw)


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
