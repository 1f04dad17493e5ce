"""Which values a normalization layer normalizes together."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from torch import Tensor

from bnprobe.testing.likes import Settings

__all__ = ["Rows", "rows"]


@dataclass(frozen=True)
class Rows:
    """A view of a tensor as ``[R, m]``: one row holds the values that share a mean and a variance.

    Attributes:
        split: from the tensor's shape to rows.
        join: back.
    """

    split: Callable[[Tensor], Tensor]
    join: Callable[[Tensor], Tensor]


def rows(shape: tuple[int, ...], settings: Settings) -> Rows:
    """How a layer of these settings groups a tensor of this shape, whatever its mode.

    Batch and batch renorm: one row a channel, over samples and positions. Ghost batch norm: one row a channel and
    ghost batch. Instance norm: one row a sample and channel. Group norm: one row a sample and group. Layer and RMS
    norm: one row for each combination of the axes that are not normalized.
    """
    if settings.like in ("layer_norm", "rms_norm"):
        return _per_position(shape, settings.normalized_axes(len(shape)))
    samples, channels = shape[0], shape[1]
    if settings.like == "instance_norm":
        return _reshaped(shape, (samples * channels, -1))
    if settings.like == "group_norm":
        return _reshaped(shape, (samples * settings.groups, -1))
    ghost = settings.ghost or max(samples, 1)
    return _per_channel(shape, (samples // ghost, ghost))


def _reshaped(shape: tuple[int, ...], inner: tuple[int, int]) -> Rows:
    width = prod(shape) // max(inner[0], 1)
    return Rows(lambda x: x.reshape(inner[0], width), lambda x: x.reshape(shape))


def _per_channel(shape: tuple[int, ...], parts: tuple[int, int]) -> Rows:
    """Rows in the order channel, ghost batch."""
    channels, rest = shape[1], shape[2:]
    width = parts[1] * prod(rest)

    def split(x: Tensor) -> Tensor:
        return x.movedim(1, 0).reshape(channels * parts[0], width)

    def join(x: Tensor) -> Tensor:
        return x.reshape(channels, shape[0], *rest).movedim(0, 1)

    return Rows(split, join)


def _per_position(shape: tuple[int, ...], axes: tuple[int, ...]) -> Rows:
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    order = [*kept, *axes]
    sizes = [shape[axis] for axis in order]
    width = prod(shape[axis] for axis in axes)
    back = [order.index(axis) for axis in range(len(shape))]
    count = prod(shape) // max(width, 1)
    return Rows(
        lambda x: x.permute(order).reshape(count, width),
        lambda x: x.reshape(sizes).permute(back),
    )
