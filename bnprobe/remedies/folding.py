"""Batch norm in eval mode folded into the layer before it, which then does the work of both."""

import copy
import warnings
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights, fuse_linear_bn_eval

from bnprobe.errors import ArgumentError, NotMeasuredError, SelectionError
from bnprobe.hooks.segments import unheard_in_python
from bnprobe.hooks.sites import unwrap
from bnprobe.hooks.tensors import tensors_in
from bnprobe.measures.untouched import untouched
from bnprobe.remedies.batch_norms import batch_norms, exchanged, why_its_own
from bnprobe.remedies.calling import Forward, call
from bnprobe.remedies.feeding import Pairs, Weighted, pairs_seen, pairs_traced

__all__ = ["fold"]

_UNSEEN = "no convolution feeds it alone (linear layers need batch=)"
Layer = TypeVar("Layer", bound=nn.Module)


def fold(
    model: nn.Module,
    bn: nn.Module | None = None,
    *,
    batch: Any = None,
    forward: Forward | None = None,
    tolerance: float | None = None,
) -> nn.Module:
    r"""A copy in which convolutions and linear layers do the work of the batch norm behind them, for prediction.

    .. math:: W' = \frac{\gamma}{\sqrt{v + \epsilon}} W, \qquad
        b' = \beta + \frac{\gamma}{\sqrt{v + \epsilon}} (b - \mu)

    With ``bn``, ``model`` is the layer before it: a convolution, grouped or transposed ones as well, or a linear layer
    whose output is ``[N, C]``. Without, every batch norm is folded whose input is the output of such a layer, used by
    nothing else, each called once in a forward; where it stood there is an ``nn.Identity``. Which these are is seen in
    a forward on ``batch``, whose function calls are followed; without a batch it is read off the code by ``torch.fx``,
    which does not know shapes, so that linear layers are left, and which cannot follow every model. An output that is
    kept aside (as an attribute, say) and used after the forward is seen by neither.

    It is computed in float64 with ``torch.nn.utils.fusion`` and rounded once.

    Source: Jacob et al. 2018, section 3.2; Ioffe and Szegedy 2015, section 3.1, algorithm 2.

    Args:
        model: in eval mode; it is left as it is. Wrappers are taken off.
        bn: the batch norm whose input is the output of ``model``.
        batch: as a loader yields it, see :func:`recalibrate`; with ``bn``, the input of the layer. On it the copy's
            output is compared.
        forward: ``(model, batch) -> output``, how the model is called on the batch instead.
        tolerance: largest difference of an output as a share of its standard deviation. Default the square root of the
            dtype's epsilon, ours: 3e-4 for float32; rounding grows with depth and with gains.

    Returns:
        The copy: the folded layer, or the model.

    Raises:
        ArgumentError: something is in training mode, or the two layers do not fit each other.
        SelectionError: there is no batch norm, or none can be folded; the message says why.
        NotMeasuredError: the model cannot be read without a batch; or outputs on the batch differ by more than the
            tolerance, or are not finite.

    Warns:
        UserWarning: which batch norm layers were left, and why.
    """
    root = unwrap(model)
    if bn is None:
        return _fold_model(root, batch, forward, tolerance)
    if (why := _why_not(root, bn)) or not isinstance(root, Weighted) or not isinstance(bn, _BatchNorm):
        raise ArgumentError(f"cannot fold {type(bn).__name__} into {type(root).__name__}: {why}")
    folded = _folded(root, bn)
    if batch is not None:
        _require_parity(nn.Sequential(root, bn).eval(), folded, batch, forward, tolerance)
    return folded


def _fold_model(root: nn.Module, batch: Any, forward: Forward | None, tolerance: float | None) -> nn.Module:
    norms = batch_norms(root)
    training = [name or "the model" for name, module in {"": root, **norms}.items() if module.training]
    if training:
        raise ArgumentError(f"fold needs eval mode; in training mode: {_some(training)}")
    pairs, left = _judge(_pairs(root, batch, forward), norms, batch is not None)
    told = "; ".join(f"{name!r}: {why}" for name, why in left.items())
    if not pairs:
        raise SelectionError(f"no batch norm layer can be folded: {told}")
    new: dict[int, nn.Module] = {id(after): nn.Identity().eval() for _, after in pairs}
    twin = exchanged(root, new | {id(before): _folded(before, after) for before, after in pairs})
    if batch is not None:
        _require_parity(root, twin, batch, forward, tolerance)
    if left:
        warnings.warn(f"batch norm layers were left as they are: {told}", stacklevel=3)
    return twin


def _pairs(root: nn.Module, batch: Any, forward: Forward | None) -> Pairs:
    with untouched(root):
        if batch is None:
            return pairs_traced(root)
        with torch.no_grad(), unheard_in_python():
            return pairs_seen(root, lambda: call(root, batch, forward))


def _judge(pairs: Pairs, norms: dict[str, _BatchNorm], seen: bool) -> tuple[Pairs, dict[str, str]]:
    """The pairs that can be folded, and why the other batch norms cannot."""
    feeder = {id(after): before for before, after in pairs}
    good: Pairs = []
    left = {}
    for name, after in norms.items():
        before = feeder.get(id(after))
        if before is None:
            left[name] = "no convolution or linear layer feeds it alone" if seen else _UNSEEN
            continue
        why = _why_not(before, after)
        if why:
            left[name] = why
        else:
            good.append((before, after))
    return good, left


def _why_not(before: nn.Module, after: nn.Module) -> str:
    """Why two layers cannot be folded into one, or an empty string."""
    if not isinstance(before, Weighted):
        return f"{type(before).__name__} is no convolution or linear layer"
    if not isinstance(after, _BatchNorm):
        return f"{type(after).__name__} is no batch norm"
    if before.training or after.training:
        return "it needs eval mode: by the statistics of a batch the gain is not fixed"
    if after.running_mean is None or after.running_var is None:
        return "it keeps no running statistics"
    channels = before.out_channels if isinstance(before, _ConvNd) else before.out_features
    if channels != after.num_features:
        return f"{channels} channels come, {after.num_features} are normalized"
    return next((f"{type(one).__name__}: {why}" for one in (before, after) if (why := why_its_own(one))), "")


def _folded(before: Weighted, after: _BatchNorm) -> nn.Module:
    """The layer before, with the weight and bias of both; on its device, in its dtype."""
    wide, norm = _wide(before), _wide(after)
    plain = {"weight": torch.ones(norm.num_features), "bias": torch.zeros(norm.num_features)}
    for name, values in plain.items():  # not all of torch's functions take None
        if getattr(norm, name) is None:
            setattr(norm, name, nn.Parameter(values.to(torch.float64)))
    if isinstance(wide, nn.Linear):
        folded: Weighted = fuse_linear_bn_eval(wide, norm)
    elif isinstance(wide, _ConvTransposeNd) and wide.groups > 1:
        folded = _folded_groups(wide, norm)
    else:
        folded = fuse_conv_bn_eval(wide, norm, isinstance(wide, _ConvTransposeNd))
    folded.weight = _like(folded.weight, before.weight)
    if folded.bias is not None:
        folded.bias = _like(folded.bias, before.weight if before.bias is None else before.bias)
    return folded


def _wide(layer: Layer) -> Layer:
    """A copy in float64, on the host, as not every device has that."""
    return copy.deepcopy(layer).to("cpu").to(torch.float64)


def _folded_groups(before: _ConvTransposeNd, after: _BatchNorm) -> _ConvTransposeNd:
    """A transposed convolution has its groups one behind the other on the axis of its inputs: each is one by itself."""
    shared = (before.weight, before.bias, after.running_mean, after.running_var, after.weight, after.bias)
    parts = [[None] * before.groups if one is None else one.chunk(before.groups) for one in shared]
    folded = [
        fuse_conv_bn_weights(w, b, mean, variance, after.eps, gamma, beta, True)
        for w, b, mean, variance, gamma, beta in zip(*parts, strict=True)
    ]
    before.weight, before.bias = (nn.Parameter(torch.cat(values)) for values in zip(*folded, strict=True))
    return before


def _like(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().to(like.dtype).to(like.device), requires_grad=like.requires_grad)


def _require_parity(
    model: nn.Module, twin: nn.Module, batch: Any, forward: Forward | None, tolerance: float | None
) -> None:
    with untouched(model, twin) as origin, torch.no_grad(), unheard_in_python():
        outputs = []
        for one in (model, twin):
            origin.streams.restore()
            found = [(path, tensor) for path, tensor in tensors_in(call(one, batch, forward))]
            outputs.append([(path, tensor) for path, tensor in found if tensor.is_floating_point()])
    for (path, was), (_, now) in zip(*outputs, strict=True):
        where = f"output {path}" if path else "the output"
        limit = torch.finfo(was.dtype).eps ** 0.5 if tolerance is None else tolerance
        was, now = was.to("cpu").to(torch.float64), now.to("cpu").to(torch.float64)
        if not was.isfinite().all():
            raise NotMeasuredError(f"{where} on the batch is not finite, so that parity cannot be checked")
        scale = float(was.std(correction=0)) or float(was.abs().max())
        difference = float((was - now).abs().max()) / scale if was.numel() and scale else 0.0
        if not difference <= limit:
            raise NotMeasuredError(
                f"{where} of the folded model differs by {difference:.2g} standard deviations (tolerance {limit:.2g})"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
