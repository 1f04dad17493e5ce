"""Ways in which the same values lie in memory."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["LAYOUTS"]


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
    """The first axis innermost."""
    order = tuple(reversed(range(x.ndim)))
    return x.permute(order).contiguous().permute(order)


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
