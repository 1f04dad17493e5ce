"""Which positions of padded sequences are padding: by the user's lengths, or by runs of one and the same vector."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.hooks.tensors import tensors_in
from bnprobe.measures.evidence.patient import Patient

__all__ = ["Padding", "find", "lengths_of", "runs"]

LEAST_SHARE = 0.02  # of all positions: less padding moves no statistic by what matters
LEAST_SAMPLES = 0.1


@dataclass(frozen=True)
class Padding:
    """Where the batches' sequences are and how long they are.

    Attributes:
        place: which of a batch's tensors.
        axis: of that tensor.
        lengths: of each batch ``[N]``.
        sizes: of each batch, entries of the axis.
    """

    place: int
    axis: int
    lengths: tuple[Tensor, ...]
    sizes: tuple[int, ...]

    @property
    def share(self) -> float:
        """Of all positions that are padding."""
        every = sum(size * len(one) for size, one in zip(self.sizes, self.lengths, strict=True))
        return 1 - sum(float(one.sum()) for one in self.lengths) / every


def find(patient: Patient) -> Padding:
    """The padded tensor of the batches.

    Raises:
        NotMeasuredError: none is.
    """
    batches = [[one for _, one in tensors_in(batch)] for batch in patient.batches]
    if patient.given.lengths is not None:
        return _of_lengths([patient.given.lengths(batch) for batch in patient.batches], batches)
    for place, one in enumerate(batches[0]):
        if one.dim() < (3 if one.is_floating_point() else 2) or one.is_complex() or one.dtype == torch.bool:
            continue
        tensors = [some[place] for some in batches if place < len(some)]
        if len(tensors) < len(batches) or any(other.dim() != one.dim() for other in tensors):
            continue
        for axis in range(1, one.dim()):
            found = _at(tensors, place, axis)
            if found is not None:
                return found
    raise NotMeasuredError("no padding was found (trailing runs of one and the same vector); lengths= would tell")


def runs(x: Tensor, axis: int, trailing: bool = True) -> Tensor:
    """Lengths of the runs of one vector at each sample's end (or start) along an axis, ``[N]``; 1 where it is alone."""
    rows = x.detach().movedim(axis, 1).flatten(2) if x.dim() > 2 else x.detach()[:, :, None]
    rows = rows.flip(1) if trailing else rows
    same = (rows == rows[:, :1]).all(2)
    return same.long().cumprod(1).sum(1)


def lengths_of(x: Tensor, axis: int) -> Tensor:
    """What is left of each sample without its trailing run; whole where the run is a single position."""
    size = x.shape[axis]
    found = runs(x, axis)
    return torch.where(found > 1, size - found, size).clamp_min(1).cpu()


def _at(tensors: list[Tensor], place: int, axis: int) -> Padding | None:
    """Padding is the same value everywhere, of unequal length, and at the end rather than at both ends."""
    if any(one.shape[axis] < 3 or not one.numel() for one in tensors):
        return None
    lengths = tuple(lengths_of(one, axis) for one in tensors)
    sizes = tuple(one.shape[axis] for one in tensors)
    padding = Padding(place, axis, lengths, sizes)
    padded = torch.cat([one < size for one, size in zip(lengths, sizes, strict=True)])
    if padding.share < LEAST_SHARE or float(padded.double().mean()) < LEAST_SAMPLES:
        return None
    leading = torch.cat([(runs(one, axis, trailing=False) > 1).cpu() for one in tensors])
    if float(leading.double().mean()) > 0.5 * float(padded.double().mean()):
        return None  # empty on both sides: a border
    whole = torch.cat(lengths)
    if int(whole.min()) == int(whole.max()) and len(set(sizes)) == 1:
        return None  # a margin of the same width everywhere
    each = zip(tensors, lengths, sizes, strict=True)
    last = torch.cat([_last(one, axis)[(part < size).to(one.device)] for one, part, size in each])
    return padding if bool((last == last[:1]).all()) else None


def _last(x: Tensor, axis: int) -> Tensor:
    """The last vector of each sample, ``[N]`` of its values' first and largest: enough to tell one from another."""
    rows = x.detach().select(axis, x.shape[axis] - 1).reshape(len(x), -1).double()
    return torch.stack([rows[:, 0], rows.amax(1), rows.amin(1)], 1)


def _of_lengths(given: list[Any], batches: list[list[Tensor]]) -> Padding:
    lengths = tuple(torch.as_tensor(one).long().cpu() for one in given)
    if any(one.dim() != 1 for one in lengths):
        raise NotMeasuredError("lengths= must give one number a sample, [N]")
    most = [int(one.max()) for one in lengths]
    for place, one in enumerate(batches[0]):
        if one.is_floating_point() and one.dim() < 3:
            continue
        fitting = [axis for axis in range(1, one.dim()) if one.shape[axis] >= most[0]]
        axes = sorted(fitting, key=lambda axis: one.shape[axis])
        each = zip(batches, lengths, strict=True)
        if axes and all(len(some) > place and len(some[place]) == len(part) for some, part in each):
            sizes = tuple(some[place].shape[axes[0]] for some in batches)
            return Padding(place, axes[0], lengths, sizes)
    raise NotMeasuredError(f"no tensor of a batch has an axis of {most[0]} positions, as lengths= says")
