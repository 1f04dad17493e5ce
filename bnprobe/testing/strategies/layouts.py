"""Ways in which the same values lie in memory."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["LAYOUTS"]


_FORMATS = {
    4: (torch.contiguous_format, torch.channels_last),
    5: (torch.contiguous_format, torch.channels_last_3d),
}


def _contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def _channels_last(x: Tensor) -> Tensor:
    """Of 4 and 5 axes; of others, axis 1 innermost, which is the same thing without the name."""
    if x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if x.ndim == 5:
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _transposed(x: Tensor) -> Tensor:
    """The first axis innermost; strides of axes of length 1, which mean nothing, as torch itself would set them.

    Others are the subject of a law of their own: torch's questions after the layout have two answers there.
    """
    order = tuple(reversed(range(x.ndim)))
    moved = x.permute(order).contiguous().permute(order)
    for memory_format in _FORMATS.get(x.ndim, ()):
        if moved.is_contiguous(memory_format=memory_format):
            return moved.clone(memory_format=memory_format)
    strides = [max(x.numel(), 1) if size == 1 else stride for size, stride in zip(x.shape, moved.stride(), strict=True)]
    return moved.as_strided(moved.shape, strides)


def _strided(x: Tensor) -> Tensor:
    """Every second element of a larger tensor."""
    larger = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan)
    view = larger[..., 1::2]
    view.copy_(x)
    return view


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": _contiguous,
    "channels_last": _channels_last,
    "transposed": _transposed,
    "strided": _strided,
}
