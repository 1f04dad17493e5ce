"""What may be invariant, as one backward pass shows it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.measures.scale_invariance.held import Held

__all__ = ["Hypothesis", "Products", "balanced", "products", "scalings", "together", "vanishing"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Products:
    """Of one parameter and its gradient, channel by channel, ``[C]``.

    Attributes:
        reached: whether a gradient arrives at all.
        inner: <w, gradient>.
        weight, gradient: norms.
        total: sum of the gradient's entries.
    """

    reached: bool
    inner: Array
    weight: Array
    gradient: Array
    total: Array

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Channels of which something can be said: neither weight nor gradient are exactly zero."""
        alive: NDArray[np.bool_] = (self.weight > 0) & (self.gradient > 0)
        return alive

    @property
    def size(self) -> Array:
        """|w| |gradient|."""
        return self.weight * self.gradient


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """Parameters that may be scaled (or shifted) without changing the loss, each unit by a number of its own.

    Attributes:
        members: places among the parameters.
        units: for each member the unit of each channel, ``[C]``; -1 where a channel is left alone.
        count: number of units.
        shift: whether they are shifted instead of scaled.
        doubt: size of the inner product that should be zero, relative to the norms.
        floor: ``[units]``, where the gradient itself vanishes: how large it would be expected; else None.
    """

    members: tuple[int, ...]
    units: tuple[NDArray[np.int64], ...]
    count: int
    shift: bool = False
    floor: Array | None = None
    doubt: float = 0.0

    def of_channels(self, numbers: Array, member: int, otherwise: float) -> Array:
        """A number for each channel of a member, from one for each unit."""
        units = self.units[self.members.index(member)]
        return np.where(units >= 0, numbers[units], otherwise)


def products(held: Sequence[Held], own: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Products]:
    """Of every parameter, in one copy from the device."""
    kept: list[Tensor] = []
    for one, weight, gradient in zip(held, own, gradients, strict=True):
        if gradient is not None:
            w, g = wide(one.rows(weight)), wide(one.rows(gradient))
            norms = torch.linalg.vector_norm(w, dim=1), torch.linalg.vector_norm(g, dim=1)
            kept.append(torch.stack([(w * g).sum(1), *norms, g.sum(1)]))
    flat = iter(host(torch.cat(kept, 1)).T) if kept else iter(())
    found = []
    for one, gradient in zip(held, gradients, strict=True):
        if gradient is None:
            nothing = np.zeros(one.channels)
            found.append(Products(False, nothing, nothing, nothing, nothing))
        else:
            inner, weight_norm, gradient_norm, total = np.array([next(flat) for _ in range(one.channels)]).T
            found.append(Products(True, inner, weight_norm, gradient_norm, total))
    return found


def wide(tensor: Tensor) -> Tensor:
    """In double precision, where the device has it."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def host(tensor: Tensor) -> Array:
    """As float64 in host memory."""
    array: Array = tensor.detach().cpu().double().numpy()
    return array


def scalings(found: Sequence[Products], tolerance: float, noise: float = 0.0) -> Iterator[Hypothesis]:
    """Parameters along which the gradient vanishes (Euler), in the finest units in which it does.

    First channel by channel; then in blocks of neighbouring channels, as group norm and fused projections make them;
    then as a whole; at last, to within ``noise``, some channels of it.

    A gradient that is nothing but rounding points anywhere (behind batch norm over two values, a sign, it vanishes):
    then it has no say, and scaling by powers of two has, which the rounding errors follow to the last bit.
    """
    largest = max((one.gradient.max(initial=0.0) for one in found), default=0.0)
    for index, one in enumerate(found):
        alive = one.alive
        if not alive.any():
            continue
        flat = (np.abs(one.inner) <= tolerance * one.size) | (one.gradient <= noise * largest)
        units = _units(one, flat, tolerance)
        some = alive & (np.abs(one.inner) <= noise * one.size)  # of many channels, more are nearly flat by accident
        if units is None and some.any():
            units = np.where(some, np.cumsum(some) - 1, -1)
        if units is not None:
            yield Hypothesis((index,), (units,), int(units.max()) + 1, doubt=_doubt(one, units))


def vanishing(held: Sequence[Held], found: Sequence[Products], tolerance: float, noise: float) -> Iterator[Hypothesis]:
    """Parameters of one number a channel whose gradient is zero.

    Of some the loss may not know the size, of others not even the value (a bias before batch norm). That
    it is no dead unit's gradient is seen from the layer's other parameters: theirs is not zero in the same channel.
    """
    for index, one in enumerate(found):
        if not one.reached or held[index].tensor.numel() != held[index].channels:
            continue
        expected = _expected(held, found, index)
        still = (one.gradient <= tolerance * expected) & (expected > 0)
        if not still[expected > 0].all():  # of many channels, some have a small gradient by accident
            still &= one.gradient <= noise * expected
        if still.any():
            doubt = float((one.gradient[still] / expected[still]).max())
            units, count = np.where(still, np.cumsum(still) - 1, -1), int(still.sum())
            if one.weight[still].all():
                yield Hypothesis((index,), (units,), count, floor=expected[still], doubt=doubt)
            if held[index].tensor.dim() == 1:
                yield Hypothesis((index,), (units,), count, shift=True, floor=expected[still], doubt=doubt)


def balanced(
    held: Sequence[Held], found: Sequence[Products], taken: set[int], tolerance: float
) -> Iterator[Hypothesis]:
    """Vectors with gradients whose sum vanishes: all entries, or blocks of them, may be shifted by the same amount."""
    for index, one in enumerate(found):
        if index in taken or held[index].tensor.dim() != 1 or not one.gradient.any():
            continue
        for units in _blocks(len(one.total)):
            count = int(units.max()) + 1
            sums = np.bincount(units, one.total, count)
            if (np.abs(sums) <= tolerance * np.sqrt(np.bincount(units, one.gradient**2, count))).all():
                yield Hypothesis((index,), (units,), count, shift=True)
                break


def together(
    held: Sequence[Held], found: Sequence[Products], single: Sequence[Hypothesis], tolerance: float, noise: float
) -> list[Hypothesis]:
    """Hypotheses about all parameters of a layer by a common factor, and those of ``single`` that these leave over.

    A beta near zero makes its gamma almost invariant: where a parameter alone is off by more than noise, and together
    with the others of its layer by much less, it is the layer that is meant.
    """
    layers: dict[str, list[int]] = {}
    for index, one in enumerate(held):
        if found[index].alive.any():
            layers.setdefault(one.layer_name, []).append(index)
    doubts = {one.members[0]: (one.doubt if one.floor is None and one.count == 1 else 0.0) for one in single}
    joint = []
    for members in layers.values():
        size = sum(_length(found[index]) for index in members)
        doubt = abs(sum(float(found[index].inner.sum()) for index in members)) / size
        alone = max((doubts[index] for index in members if index in doubts), default=1.0)
        if len(members) > 1 and doubt <= tolerance and alone > max(noise / 30, 8 * doubt):
            units = tuple(np.zeros(len(found[index].inner), np.int64) for index in members)
            joint.append(Hypothesis(tuple(members), units, 1, doubt=doubt))
    replaced = {member for one in joint for member in one.members}
    return [*(one for one in single if one.members[0] not in replaced), *joint]


def _length(one: Products) -> float:
    """|w| |gradient| of the whole tensor."""
    return float(np.linalg.norm(one.weight) * np.linalg.norm(one.gradient))


def _doubt(one: Products, units: NDArray[np.int64]) -> float:
    """Largest of the units."""
    used, count = units >= 0, int(units.max()) + 1
    inner = np.abs(np.bincount(units[used], one.inner[used], count))
    weight, gradient = (
        np.sqrt(np.bincount(units[used], norms[used] ** 2, count)) for norms in (one.weight, one.gradient)
    )
    size = weight * gradient
    return float((inner[size > 0] / size[size > 0]).max(initial=0.0))


def _units(one: Products, flat: NDArray[np.bool_], tolerance: float) -> NDArray[np.int64] | None:
    """The finest units of the whole tensor along all of which the gradient vanishes."""
    count = len(one.inner)
    if flat[one.alive].all():
        return np.arange(count)
    for units in _blocks(count):
        groups = int(units.max()) + 1
        inner = np.abs(np.bincount(units, one.inner, groups))
        weight, gradient = (np.sqrt(np.bincount(units, norms**2, groups)) for norms in (one.weight, one.gradient))
        if (inner <= tolerance * weight * gradient).all():
            return units
    return None


def _blocks(count: int) -> Iterator[NDArray[np.int64]]:
    """``[C]`` block of each channel, from the smallest blocks of two or more to one block of all."""
    for size in range(2, count + 1):
        if count % size == 0:
            yield np.arange(count) // size
    if count == 1:
        yield np.zeros(1, np.int64)


def _expected(held: Sequence[Held], found: Sequence[Products], index: int) -> Array:
    """``[C]``: how large the gradient of a vector would be if it were not zero; 0 where nothing can be said."""
    one, count = held[index], held[index].channels
    beside = [
        found[other].gradient
        for other in range(len(held))
        if other != index and held[other].layer_name == one.layer_name and held[other].channels == count
        and found[other].reached
    ]  # fmt: skip
    if beside:
        largest: Array = np.max(beside, axis=0)
        return largest
    vectors = [found[other].gradient.max() for other in range(len(held)) if held[other].tensor.dim() == 1]
    return np.where(found[index].gradient > 0, max(vectors), 0.0)
