"""Numbers of weights around an optimizer's update, read on their device without waiting for it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnprobe.hooks.sites import Site

__all__ = ["NUMBERS", "Row", "Slot", "WeightReader", "slots_of", "to_host", "unreadable"]

# What is read of a weight, in this order: norms of the weight and of its gradient and their inner product, then the
# norm after the update, that of what the update took away, and the inner product of these two.
NUMBERS = ("norm", "grad_norm", "dot_grad", "norm_after", "change_norm", "dot_change")


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a weight is kept.

    Attributes:
        name: as in ``named_parameters()`` of the unwrapped model.
        layer: name of the layer.
        place: of its records: ``weight`` for a parameter of this name, else ``weight.<name>``.
        owner, leaf: the module that has it, and under which name.
    """

    name: str
    layer: str
    place: str
    owner: nn.Module
    leaf: str

    @property
    def now(self) -> Any:
        """The parameter; None where there is none any more."""
        held = self.owner._parameters  # a scripted module's know no `get`
        if self.leaf not in held:
            return None
        return held[self.leaf]


def slots_of(sites: Iterable[Site]) -> Iterator[Slot]:
    """Parameters of layers themselves, and the originals of their parametrized ones."""
    for site in sites:
        owners = [("", site.module)]
        if "parametrizations" in site.module._modules:
            inner = site.module.get_submodule("parametrizations")
            owners += [(f"parametrizations.{path}." if path else "", one) for path, one in inner.named_modules()]
        for path, owner in owners:
            for leaf in owner._parameters:
                if owner._parameters[leaf] is not None:
                    own = f"{path}{leaf}"
                    place = "weight" if own == "weight" else f"weight.{own}"
                    yield Slot(f"{site.name}.{own}" if site.name else own, site.name, place, owner, leaf)


def unreadable(weight: Any) -> str:
    """Why a weight is not read; empty where it is."""
    if weight is None or is_lazy(weight):
        return "it has no values yet" if weight is not None else "it is gone"
    if type(weight) is not nn.Parameter:
        return f"it is a {type(weight).__name__}"
    if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
        return f"its dtype is {weight.dtype}"
    return "it is on the meta device" if weight.device.type == "meta" else ""


class Row(NamedTuple):
    """Numbers of some weights of one dtype on one device, at one update.

    Attributes:
        which: positions of the weights.
        values: ``[6 * W]``, by :data:`NUMBERS`, then by weight.
    """

    which: tuple[int, ...]
    values: Tensor


@dataclass
class _Part:
    """What has been read of some weights before their update."""

    which: tuple[int, ...]
    weights: list[Tensor]
    copies: list[Tensor]
    norms: Sequence[Tensor]
    grad_norms: Sequence[Tensor]
    dots: Sequence[Tensor]
    wide: torch.dtype


class WeightReader:
    """Reads weights before and after their update; keeps a copy of them between the two.

    The angle of an update is taken from the difference of the weights: from their cosine it would be lost in rounding.
    Sums are made in float32, or float64 where the weights are.

    Args:
        slots: the weights.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = tuple(slots)
        self._copies: dict[int, Tensor] = {}

    @torch.no_grad()
    def before(self, which: Sequence[int], *, graded: bool, scale: Tensor | None = None) -> list[_Part]:
        """Read and copy the weights ``which``, and their gradients if they are final (``graded``).

        Gradients are divided by ``scale``, where an optimizer is to do so itself.
        """
        groups: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = {}
        for i in which:
            weight = self.slots[i].now
            if not unreadable(weight):
                groups.setdefault((weight.device, weight.dtype), []).append((i, weight))
        parts = []
        for (_, dtype), members in groups.items():
            rows, weights = tuple(i for i, _ in members), [weight for _, weight in members]
            wide = dtype if dtype.itemsize >= 4 else torch.float32
            copies = [self._copy_of(i, weight) for i, weight in members]
            torch._foreach_copy_(copies, weights)
            part = _Part(rows, weights, copies, torch._foreach_norm(weights, 2, dtype=wide), (), (), wide)
            if graded:
                _read_gradients(part, scale)
            parts.append(part)
        return parts

    @torch.no_grad()
    def after(self, parts: Sequence[_Part], *, graded: bool) -> list[Row]:
        """Read the weights again; their gradients too if they are final now (``graded``)."""
        rows = []
        for part in parts:
            if graded and not part.dots:
                _read_gradients(part, None)
            now = [self.slots[i].now for i in part.which]
            if any(one is None or one.shape != copy.shape for one, copy in zip(now, part.copies, strict=True)):
                continue  # somebody has exchanged them meanwhile
            torch._foreach_sub_(part.copies, now)  # what the update took away
            norms, changes = (torch._foreach_norm(some, 2, dtype=part.wide) for some in (now, part.copies))
            dots = [_dot(one, change, part.wide) for one, change in zip(now, part.copies, strict=True)]
            numbers = (part.norms, *_gradients(part), norms, changes, dots)
            rows.append(Row(part.which, torch.stack([one for some in numbers for one in some])))
        return rows

    def forget(self, which: Iterable[int]) -> None:
        """Give the copies of these weights up."""
        for i in which:
            self._copies.pop(i, None)

    def _copy_of(self, index: int, weight: Tensor) -> Tensor:
        """Memory for a copy, laid out as the weight is."""
        copy = self._copies.get(index)
        same = copy is not None and copy.dtype == weight.dtype and copy.device == weight.device
        if copy is None or not same or copy.shape != weight.shape or copy.stride() != weight.stride():
            copy = self._copies[index] = torch.empty_like(weight, requires_grad=False)
        return copy


def _read_gradients(part: _Part, scale: Tensor | None) -> None:
    """Of the weights that were copied: after an optimizer has run a closure, the weights themselves are others."""
    gradients = [weight.grad for weight in part.weights]
    there = [one for one in gradients if one is not None and not one.is_sparse]
    norms = iter(torch._foreach_norm(there, 2, dtype=part.wide) if there else ())
    none = torch.full((), torch.nan, dtype=part.wide, device=part.weights[0].device)
    usable = [one is not None and not one.is_sparse for one in gradients]
    part.grad_norms = [next(norms) if good else none for good in usable]
    part.dots = [
        _dot(copy, one, part.wide) if good and one is not None else none
        for copy, one, good in zip(part.copies, gradients, usable, strict=True)
    ]
    if scale is not None:
        by = scale.to(none.device, part.wide, non_blocking=True).reshape(())
        part.grad_norms, part.dots = [one / by for one in part.grad_norms], [one / by for one in part.dots]


def _gradients(part: _Part) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Norms and inner products, NaN where there are none."""
    if part.dots:
        return part.grad_norms, part.dots
    none = [torch.full((), torch.nan, dtype=part.wide, device=part.weights[0].device)] * len(part.weights)
    return none, none


def _dot(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """Inner product; both are dense."""
    if a.dim() == 4 and not a.is_contiguous() and a.stride() == b.stride():
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)  # channels_last, which then needs no copy
    return torch.dot(a.reshape(-1).to(wide), b.reshape(-1).to(wide))


def to_host(rows: Sequence[Row]) -> list[NDArray[np.float64]]:
    """Of each row ``[6, W]``; those of one dtype on one device in one copy."""
    found: list[NDArray[np.float64]] = [np.empty(0)] * len(rows)
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, row in enumerate(rows):
        kinds.setdefault((row.values.device, row.values.dtype), []).append(i)
    for places in kinds.values():
        whole = torch.cat([rows[i].values for i in places]).cpu().double().numpy()
        ends = np.cumsum([rows[i].values.numel() for i in places])
        for i, values in zip(places, np.split(whole, ends[:-1]), strict=True):
            found[i] = values.reshape(len(NUMBERS), -1)
    return found
