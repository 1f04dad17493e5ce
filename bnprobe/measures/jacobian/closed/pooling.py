"""Average pooling: along each axis a small matrix of averages; the Jacobian is their Kronecker product."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnprobe.measures.jacobian.closed.union import EPS, Block, svdvals, union
from bnprobe.measures.jacobian.values import SingularValues

__all__ = ["AVERAGE_POOLS", "average_pooling"]

AVERAGE_POOLS: dict[type[nn.Module], int] = {
    nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3,
    nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3,
}  # fmt: skip
_LONGEST = 1024  # longer axes with overlapping windows would need a large decomposition


class Windows(NamedTuple):
    """Along one axis, for each output: which inputs ``[start, stop)`` it averages, and what it divides their sum by."""

    start: Tensor
    stop: Tensor
    divisor: Tensor


def average_pooling(module: nn.Module, x: Tensor) -> SingularValues | None:
    """Products of the axes' singular values, once for every channel.

    Windows that do not overlap are orthogonal rows: an axis' values are their lengths, ``sqrt(count) / divisor``.
    None where a long axis has overlapping windows.
    """
    axes = AVERAGE_POOLS[type(module)]
    lengths = x.shape[-axes:]
    if x.dim() < axes + 2:
        return None
    windows = _adaptive_windows(module, lengths) if "Adaptive" in type(module).__name__ else _windows(module, lengths)
    values, error = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for length, window in zip(lengths, windows, strict=True):
        along = _axis_values(window, length)
        if along is None:
            return None
        one, its_error = along
        error = (values[..., None] * its_error + error[..., None] * (one + its_error)).reshape(1, -1)
        values = (values[..., None] * one).reshape(1, -1)
    outputs, channels = math.prod(len(window.start) for window in windows), math.prod(x.shape[1:-axes])
    error = error + 4 * EPS * values
    shape = (channels * outputs, channels * lengths.numel())
    return union([Block(values.to(x.device), error.to(x.device), channels)], shape, len(x))


def _axis_values(windows: Windows, length: int) -> tuple[Tensor, Tensor] | None:
    start, stop, divisor = windows
    if bool((stop[:-1] <= start[1:]).all()):
        values = (stop - start).double().sqrt() / divisor
        return values, 2 * EPS * values
    if length > _LONGEST:
        return None
    inputs = torch.arange(length)
    inside = (inputs >= start[:, None]) & (inputs < stop[:, None])
    return svdvals(inside.double() / divisor[:, None])


def _windows(module: Any, lengths: Sequence[int]) -> list[Windows]:
    """Of average pooling; the divisor is a product over the axes also where windows are cut at the border."""
    kernels, strides, paddings = (
        _per_axis(one, len(lengths)) for one in (module.kernel_size, module.stride, module.padding)
    )
    windows = []
    for length, kernel, stride, padding in zip(lengths, kernels, strides, paddings, strict=True):
        outputs = _outputs(length, kernel, stride, padding, module.ceil_mode)
        left = torch.arange(outputs) * stride - padding
        right = (left + kernel).clamp(max=length + padding)
        start, stop = left.clamp(min=0), right.clamp(max=length)
        divisor = (right - left) if module.count_include_pad else (stop - start)
        windows.append(Windows(start, stop, divisor.double()))
    if getattr(module, "divisor_override", None) is not None:
        ones = [torch.ones_like(window.divisor) for window in windows]
        ones[0] = ones[0] * abs(module.divisor_override)
        windows = [Windows(window.start, window.stop, one) for window, one in zip(windows, ones, strict=True)]
    return windows


def _outputs(length: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    span = length + 2 * padding - kernel
    outputs = (-(-span // stride) if ceil_mode else span // stride) + 1
    # A window that would begin in the right padding is left out.
    return outputs - 1 if ceil_mode and (outputs - 1) * stride >= length + padding else outputs


def _adaptive_windows(module: Any, lengths: Sequence[int]) -> list[Windows]:
    windows = []
    for length, size in zip(lengths, _per_axis(module.output_size, len(lengths)), strict=True):
        outputs = torch.arange(length if size is None else size)
        start = outputs * length // len(outputs)
        stop = -(-(outputs + 1) * length // len(outputs))
        windows.append(Windows(start, stop, (stop - start).double()))
    return windows


def _per_axis(setting: Any, axes: int) -> Sequence[Any]:
    return tuple(setting) if isinstance(setting, Sequence) else (setting,) * axes
