"""Convolutions whose windows do not overlap, and circular ones."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnprobe.measures.jacobian.closed.union import EPS, Block, numel_of, svd_error, svdvals, union
from bnprobe.measures.jacobian.values import SingularValues

__all__ = ["CONVOLUTIONS", "TRANSPOSED", "convolution", "transposed_convolution"]

CONVOLUTIONS: frozenset[type[nn.Module]] = frozenset({nn.Conv1d, nn.Conv2d, nn.Conv3d})
TRANSPOSED: frozenset[type[nn.Module]] = frozenset({nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d})


def convolution(module: Any, x: Tensor) -> SingularValues | None:
    """Two kinds: windows without overlap (stride = kernel, 1 x 1, one window), and circular padding at stride 1.

    None for any other.
    """
    axes = len(module.kernel_size)
    if x.dim() != axes + 2 or x.shape[1] != module.in_channels:
        return None
    lengths, reach = x.shape[2:], _reach(module)
    paddings = _paddings(module, reach)
    outputs = [
        (length + sum(padding) - extent) // stride + 1
        for length, padding, extent, stride in zip(lengths, paddings, reach, module.stride, strict=True)
    ]
    shape = (module.out_channels * math.prod(outputs), numel_of(x))
    if not any(map(sum, paddings)) and _apart(module, reach, outputs):
        weight = module.weight.detach().reshape(module.groups, module.out_channels // module.groups, -1)
        return _repeated(weight, math.prod(outputs), shape, x)
    if module.padding_mode == "circular" and set(module.stride) == {1} and tuple(outputs) == tuple(lengths):
        return _circular(module, shape, x)
    return None


def transposed_convolution(module: Any, x: Tensor) -> SingularValues | None:
    """Where no two inputs reach the same output and none is cut off: the transpose of a convolution without overlap."""
    axes = len(module.kernel_size)
    if x.dim() != axes + 2 or x.shape[1] != module.in_channels or any(module.padding):
        return None
    lengths, reach = x.shape[2:], _reach(module)
    if not _apart(module, reach, lengths):
        return None
    outputs = [
        (length - 1) * stride + extent + extra
        for length, stride, extent, extra in zip(lengths, module.stride, reach, module.output_padding, strict=True)
    ]
    weight = module.weight.detach().reshape(module.groups, module.in_channels // module.groups, -1)
    shape = (module.out_channels * math.prod(outputs), numel_of(x))
    return _repeated(weight, lengths.numel(), shape, x)


def _repeated(weight: Tensor, positions: int, shape: tuple[int, int], x: Tensor) -> SingularValues:
    """The values of each group's matrix ``[G, m, n]``, once for every position."""
    values, error = svdvals(weight)
    return union([Block(values.reshape(1, -1), error.reshape(1, -1), positions)], shape, len(x))


def _circular(module: Any, shape: tuple[int, int], x: Tensor) -> SingularValues:
    r"""At each frequency the kernel's transform, a matrix of output by input channels (Sedghi, Gupta & Long 2019).

    Frequencies come in conjugate pairs with the same singular values; one of each pair is computed. A shift of the
    whole output, as uneven padding makes, changes nothing.

    *Error.* That of the decompositions, and of a transform of F entries, ``eps * log2(F)`` times the sum of absolute
    weights between two channels (Higham 2002, section 24.1, with a factor of 4 for its roots of unity).
    """
    weight, lengths = module.weight.detach().double(), x.shape[2:]
    kernel = weight.new_zeros(*weight.shape[:2], lengths.numel())
    places = torch.zeros(1, dtype=torch.long, device=x.device)
    for taps, dilation, length in zip(module.kernel_size, module.dilation, lengths, strict=True):
        along = torch.arange(taps, device=x.device) * dilation % length
        places = (places[:, None] * length + along).flatten()
    kernel.index_add_(2, places, weight.flatten(2))
    transform = torch.fft.rfftn(kernel.view(*weight.shape[:2], *lengths), dim=tuple(range(2, weight.dim())))
    groups, last = module.groups, lengths[-1]
    matrices = transform.reshape(groups, -1, *transform.shape[1:]).movedim((1, 2), (-2, -1))  # [G, ..., last, m, n]
    values = torch.linalg.svdvals(matrices)
    error = svd_error(values, torch.linalg.matrix_norm(matrices), max(matrices.shape[-2:]))
    weights = weight.abs().flatten(2).sum(-1).view(groups, -1, weight.shape[1])
    spread = torch.linalg.matrix_norm(weights).view(groups, *[1] * (values.dim() - 1))
    error = (error + 4 * EPS * (1 + math.log2(lengths.numel())) * spread).expand_as(values)
    half = last - last // 2  # frequencies below this one, but 0, stand for two
    single = [0] if last % 2 else [0, last // 2]
    blocks = []
    for which, times in ((single, 1), (range(1, half), 2)):
        index = torch.tensor(list(which), dtype=torch.long, device=x.device)
        chosen = [one.index_select(-2, index).reshape(1, -1) for one in (values, error)]
        blocks.append(Block(chosen[0], chosen[1], times))
    return union(blocks, shape, len(x))


def _reach(module: Any) -> list[int]:
    """How far a window extends along each axis."""
    return [dilation * (kernel - 1) + 1 for dilation, kernel in zip(module.dilation, module.kernel_size, strict=True)]


def _paddings(module: Any, reach: Sequence[int]) -> list[tuple[int, int]]:
    if module.padding == "valid":
        return [(0, 0) for _ in reach]
    if module.padding == "same":
        return [((extent - 1) // 2, extent // 2) for extent in reach]
    return [(padding, padding) for padding in module.padding]


def _apart(module: Any, reach: Sequence[int], windows: Sequence[int]) -> bool:
    return all(
        stride >= extent or count == 1 for stride, extent, count in zip(module.stride, reach, windows, strict=True)
    )
