"""A batch of values as a recipe: short enough to print, exact enough to build the same tensor again."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnprobe.errors import ArgumentError
from bnprobe.testing.strategies.kinds import KINDS
from bnprobe.testing.strategies.layouts import LAYOUTS

__all__ = ["Batch", "tensor"]


@dataclass(frozen=True, repr=False)
class Batch:
    """What a tensor is made of; its ``repr`` is an expression that makes it again.

    Attributes:
        shape: of the tensor, for instance ``(N, C, H, W)``.
        kind: how the values are distributed, a key of :data:`bnprobe.testing.strategies.kinds.KINDS`.
        seed: of the values.
        dtype: name of a floating-point dtype of torch.
        layout: how they lie in memory, a key of :data:`bnprobe.testing.strategies.layouts.LAYOUTS`.
        axis: of the channels; kinds give each channel its own mean and scale.

    Raises:
        ArgumentError: a kind, layout or dtype that there is not.
    """

    shape: tuple[int, ...]
    kind: str = "gaussian"
    seed: int = 0
    dtype: str = "float32"
    layout: str = "contiguous"
    axis: int = 1

    def __post_init__(self) -> None:
        for what, value, known in (("kind", self.kind, KINDS), ("layout", self.layout, LAYOUTS)):
            if value not in known:
                raise ArgumentError(f"{what} must be one of {', '.join(known)}; got {value!r}")
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ArgumentError(f"dtype must be the name of a dtype of torch; got {self.dtype!r}")

    def tensor(self, device: str | torch.device = "cpu") -> Tensor:
        """The tensor, without a gradient."""
        dtype = getattr(torch, self.dtype)
        channels = self.shape[self.axis]
        # As [C, N, positions]: kinds know which values belong to one channel, and which to one sample.
        rest = [size for place, size in enumerate(self.shape) if place not in (0, self.axis)]
        values = KINDS[self.kind](
            np.random.default_rng(self.seed), (channels, self.shape[0], prod(rest)), torch.finfo(dtype)
        )
        moved = np.moveaxis(values.reshape(channels, self.shape[0], *rest), 0, self.axis)
        return LAYOUTS[self.layout](torch.from_numpy(np.ascontiguousarray(moved)).to(dtype)).to(device)

    def __repr__(self) -> str:
        """An expression, without what is at its default."""
        defaults = {"seed": 0, "dtype": "float32", "layout": "contiguous", "axis": 1}
        told: list[Any] = [repr(self.shape), repr(self.kind)]
        told += [f"{name}={getattr(self, name)!r}" for name, usual in defaults.items() if getattr(self, name) != usual]
        return f"Batch({', '.join(told)})"


def tensor(
    x: Batch | Tensor | list[Any], device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Tensor:
    """The tensor of a recipe; a tensor itself; of nested lists, what ``torch.tensor`` makes.

    The last so that every example that hypothesis prints is code: it shows tensors of very few values by their values.
    """
    if isinstance(x, Batch):
        return x.tensor(device)
    return x.to(device) if isinstance(x, Tensor) else torch.tensor(x, device=device, dtype=dtype)
