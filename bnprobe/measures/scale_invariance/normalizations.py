"""Calls of PyTorch's normalizing functions: what they divide by, over which values."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Normalization", "normalization"]

_BATCH = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_BATCH_OPERATOR = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
_LAYER = ("input", "shape", "weight", "bias", "eps")
_GROUP = ("input", "groups", "weight", "bias", "eps")
_RMS = ("input", "shape", "weight", "eps")
_SIGNATURES: dict[Any, tuple[str, tuple[str, ...]]] = {
    F.batch_norm: ("batch", _BATCH),
    torch.batch_norm: ("batch", _BATCH_OPERATOR),
    F.instance_norm: ("instance", _BATCH),
    torch.instance_norm: ("instance", _BATCH_OPERATOR),
    F.layer_norm: ("layer", _LAYER),
    torch.layer_norm: ("layer", _LAYER),
    F.group_norm: ("group", _GROUP),
    torch.group_norm: ("group", _GROUP),
    F.rms_norm: ("rms", _RMS),
    torch.rms_norm: ("rms", _RMS),
}
_RENAMED = {"use_input_stats": "training", "normalized_shape": "shape", "num_groups": "groups"}
_EPS = 1e-5  # PyTorch's default of all but rms norm


@dataclass(frozen=True, eq=False)
class Normalization:
    """One call that normalizes by statistics of its own input.

    The values fall into groups ``[R, K]``, each with a mean (none for rms norm) and a variance s^2 of its own: batch
    norm ``[1, C]``, instance norm ``[N, C]``, group norm ``[N, G]``, layer and rms norm ``[rows, 1]``.

    Attributes:
        family: ``batch``, ``instance``, ``group``, ``layer`` or ``rms``.
        x: the input.
        weight, bias: gamma and beta, or None.
        eps: what is added to the variance.
        size: of group norm the number of groups G; of layer and rms norm how many of the last axes are normalized.
    """

    family: str
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    size: int = 0

    def variances(self) -> Tensor:
        """``[R, K]``, biased; of rms norm mean squares; single precision or wider."""
        with torch.no_grad():
            x = self.x.detach()
            x = x if x.dtype in (torch.float32, torch.float64) else x.float()
            if self.family == "batch":
                return _batch_variances(x)[None]
            values = self._grouped(x)
            if self.family == "rms":
                return values.square().mean(-1)
            return values.var(-1, correction=0)

    def sums(self, values: Tensor) -> Tensor:
        """``[R, K]``: sums over each group of values shaped like the input."""
        if self.family == "batch":
            return values.sum([axis for axis in range(values.dim()) if axis != 1])[None]
        return self._grouped(values).sum(-1)

    def spread(self, numbers: Tensor) -> Tensor:
        """Numbers ``[R, K]`` of the groups, in a shape that broadcasts against the input's."""
        x = self.x
        if self.family in ("layer", "rms"):
            return numbers.reshape(*x.shape[: x.dim() - self.size], *[1] * self.size)
        if self.family == "group":
            numbers = numbers.repeat_interleave(x.shape[1] // self.size, 1)
        return numbers.reshape(*numbers.shape, *[1] * (x.dim() - 2))

    def normalized(self, x: Tensor | None = None, eps: float | None = None) -> Tensor:
        """x-hat: without gamma and beta."""
        plain = replace(self, x=self.x if x is None else x, weight=None, bias=None)
        return plain.output(self.eps if eps is None else eps)

    def output(self, eps: float | None = None) -> Tensor:
        """What the call returns; running statistics are left alone."""
        x, weight, bias, eps = self.x, self.weight, self.bias, self.eps if eps is None else eps
        if self.family == "batch":
            return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
        if self.family == "instance":
            return F.instance_norm(x, None, None, weight, bias, True, 0.0, eps)
        if self.family == "group":
            if x.device.type == "cpu" and not x.is_contiguous():
                x = x.contiguous()  # else torch (2.13) may crash in the backward, where x is channels last
            return F.group_norm(x, self.size, weight, bias, eps)
        shape = list(x.shape[x.dim() - self.size :])
        if self.family == "rms":
            return F.rms_norm(x, shape, weight, eps)
        return F.layer_norm(x, shape, weight, bias, eps)

    def gained(self, gain: Tensor, eps: float | None = None) -> Tensor:
        """The output with each group's x-hat multiplied by a gain ``[R, K]`` before gamma and beta."""
        if self.family == "batch":
            gain = gain[0]
            weight = gain.to(self.x.dtype) if self.weight is None else self.weight * gain.to(self.weight.dtype)
            return replace(self, weight=weight).output(eps)
        hat = self.normalized(eps=eps)
        return self._affine(hat * self.spread(gain).to(hat.dtype))

    def without_beta(self, output: Tensor) -> Tensor:
        """Outputs less beta."""
        if self.bias is None:
            return output
        return output - (
            self.bias if self.family in ("layer", "rms") else self.bias.reshape(-1, *[1] * (output.dim() - 2))
        )

    def _affine(self, hat: Tensor) -> Tensor:
        dtype = hat.dtype
        for one, operation in ((self.weight, torch.mul), (self.bias, torch.add)):
            if one is not None:
                along = one if self.family in ("layer", "rms") else one.reshape(-1, *[1] * (hat.dim() - 2))
                hat = operation(hat, along)
        return hat.to(dtype)

    def _grouped(self, values: Tensor) -> Tensor:
        """``[R, K, values of a group]``."""
        shape = values.shape
        if self.family == "group":
            return values.reshape(shape[0], self.size, -1)
        if self.family == "instance":
            return values.reshape(*shape[:2], -1)
        return values.reshape(math.prod(shape[: values.dim() - self.size]), 1, -1)


def normalization(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Normalization | None:
    """The call of ``func`` as a normalization; None where it is none, or normalizes by running statistics."""
    if func not in _SIGNATURES:
        return None
    family, names = _SIGNATURES[func]
    given = dict(zip(names, args, strict=False)) | {_RENAMED.get(name, name): value for name, value in kwargs.items()}
    x = given["input"]
    if family in ("batch", "instance") and not given.get("training", family == "instance"):
        return None
    if not x.is_floating_point() or x.numel() == 0:
        return None
    eps = given.get("eps", None if family == "rms" else _EPS)
    size = given.get("groups") or _length(given.get("shape", ()))
    return Normalization(
        family,
        x,
        given.get("weight"),
        given.get("bias"),
        float(torch.finfo(x.dtype).eps if eps is None else eps),
        int(size),
    )


def _length(shape: Any) -> int:
    return 1 if isinstance(shape, int) else len(shape)


def _batch_variances(x: Tensor) -> Tensor:
    if x.device.type in ("cpu", "cuda"):  # the kernel of batch norm itself: twice as quick as a variance over axes
        variances: Tensor = torch.batch_norm_update_stats(x, None, None, 0.0)[1]
        return variances
    return x.var([axis for axis in range(x.dim()) if axis != 1], correction=0)
