"""Norms of layers' weights and of their gradients."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnprobe.hooks.sites import Site

__all__ = ["LearningRates", "ShardedNorm", "WeightNorms", "by_holder"]


@dataclass(frozen=True)
class ShardedNorm:
    """A norm of which each process holds a part: squares over shards add up.

    Attributes:
        square: 0-dimensional, of the shards that went in.
        held: values in them.
        copies: how often every shard is held (hybrid sharding keeps replicas).
        size: values in the whole.
    """

    square: Tensor
    held: int
    copies: int
    size: int

    def merge(self, other: "ShardedNorm") -> "ShardedNorm":
        """Of both processes' shards."""
        return ShardedNorm(self.square + other.square, self.held + other.held, self.copies, self.size)

    def whole(self) -> Tensor | None:
        """The norm, or None while shards are missing."""
        return (self.square / self.copies).sqrt() if self.held == self.copies * self.size else None


class WeightNorms:
    """Euclidean norms of the weights of some layers, and of the gradients that lie at them.

    A layer's weights are its own parameters with ``weight`` in their names (a recurrent layer has several; a
    parametrised one its originals); biases are left out. Norms are taken in float32 or wider. Of weights that are
    sharded (FSDP2), only this process' shard is read, for a norm of the whole would have to wait for the others.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self._modules = [(site.name, site.module) for site in sites]
        self._slots: list[tuple[str, list[tuple[nn.Module, str]]]] = []
        self._looks: list[object] = []
        self._names: tuple[str, ...] = ()

    def read(self, scale: Tensor | None = None) -> Iterator[tuple[str, Sequence[str], list[Tensor | ShardedNorm]]]:
        """``norm`` and ``grad_norm``, each with the names of the layers and their values, 0-dimensional tensors.

        Gradients are divided by ``scale``, where an optimizer is to do so itself (fused ones, from a gradient scaler).
        A weight that does not take part (frozen, or not reached by the loss) has no gradient norm rather than 0.
        """
        layers = self._present()
        weights = [weight for some in layers for weight in some]
        if len(weights) == len(layers) and all(type(weight) is nn.Parameter for weight in weights):
            yield from self._read_single(weights, scale)  # the common case, in fewer steps
            return
        yield "norm", *_joined(self._names, layers, _norms([_local(weight) for weight in weights]))
        complete = [
            (name, [weight.grad for weight in some])
            for name, some in zip(self._names, layers, strict=True)
            if all(weight.grad is not None for weight in some)
        ]
        graded = [[gradient for gradient in some if gradient is not None] for _, some in complete]
        norms = _norms([_local(gradient) for some in graded for gradient in some])
        if scale is not None:
            norms = (norm / scale for norm in norms)
        yield "grad_norm", *_joined([name for name, _ in complete], graded, norms)

    def _read_single(
        self, weights: Sequence[Tensor], scale: Tensor | None
    ) -> Iterator[tuple[str, Sequence[str], list[Tensor | ShardedNorm]]]:
        """Of layers with one plain weight each."""
        yield "norm", self._names, list(_norms(weights))
        gradients = [weight.grad for weight in weights]
        there = [gradient for gradient in gradients if gradient is not None]
        names = self._names
        if len(there) < len(gradients):
            names = tuple(name for name, one in zip(names, gradients, strict=True) if one is not None)
        norms = _norms(there)
        yield "grad_norm", names, list(norms) if scale is None else [norm / scale for norm in norms]

    def _present(self) -> list[list[Tensor]]:
        """The weights as they are now: which attributes hold them is looked up again when a layer's change."""
        looks: list[object] = [(type(one), len(one._parameters), len(one._modules)) for _, one in self._modules]
        if looks != self._looks:
            self._slots = [(name, slots) for name, module in self._modules if (slots := _slots(module))]
            self._names, self._looks = tuple(name for name, _ in self._slots), looks
        return [[owner._parameters[name] for owner, name in slots] for _, slots in self._slots]  # type: ignore[misc]


class LearningRates:
    """The learning rate that an optimizer applies to the first parameter of each layer."""

    def __init__(self, sites: Sequence[Site], optimizer: torch.optim.Optimizer) -> None:
        self._layers = [(site.name, site.module) for site in sites]
        self._optimizer = optimizer
        self._known: list[tuple[str, int]] = []
        self._names: tuple[str, ...] = ()
        self._size = -1

    def read(self) -> tuple[Sequence[str], list[Tensor | float]]:
        """Names of layers and their rates of now; a rate that is a tensor is copied, not waited for."""
        groups = self._optimizer.param_groups
        size = sum(len(group["params"]) for group in groups)
        if size != self._size:  # groups may be added while training goes on
            firsts = [(name, next(layer.parameters(recurse=False), None)) for name, layer in self._layers]
            group_of = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
            known = [(name, group_of[id(first)]) for name, first in firsts if id(first) in group_of]
            self._known = [(name, i) for name, i in known if groups[i].get("lr") is not None]
            self._names, self._size = tuple(name for name, _ in self._known), size
        rates: list[Any] = [group.get("lr") for group in groups]
        now: list[Any] = [rate.detach().clone() if isinstance(rate, Tensor) else rate for rate in rates]
        return self._names, [now[i] for _, i in self._known]


def _slots(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where a layer's weights are kept: modules and the names of their parameters."""
    own = [(module, "", name) for name, _ in module.named_parameters(recurse=False)]
    if "parametrizations" in module._modules:  # a scripted module's know no `get`
        for path, inner in module.get_submodule("parametrizations").named_modules():
            own += [(inner, path, name) for name in inner._parameters]
    return [
        (owner, name)
        for owner, path, name in own
        if ("weight" in name or "weight" in path)
        and owner._parameters[name] is not None
        and _has_norm(owner._parameters[name])
    ]


def by_holder(sites: Sequence[Site], optimizers: Sequence[torch.optim.Optimizer]) -> list[list[Site]]:
    """The layers by the first optimizer that holds a parameter of theirs; those that none holds go to the last."""
    held = [{id(p) for group in one.param_groups for p in group["params"]} for one in optimizers]
    parts: list[list[Site]] = [[] for _ in optimizers] or [[]]
    for site in sites:
        own = {id(p) for p in site.module.parameters()}
        parts[next((i for i, ids in enumerate(held) if own & ids), -1)].append(site)
    return parts


def _has_norm(parameter: Any) -> bool:
    """Whether it holds real numbers of at least 16 bits, here: not on the meta device, not in a subclass of its own."""
    real = parameter.dtype.is_floating_point and parameter.dtype.itemsize > 1
    plain = type(parameter) is nn.Parameter or _is_sharded(parameter)
    return plain and real and parameter.device.type != "meta"


def _is_sharded(tensor: Tensor) -> bool:
    kind = type(tensor)
    return kind is not nn.Parameter and kind.__name__ == "DTensor" and kind.__module__.startswith("torch.distributed")


def _local(tensor: Tensor) -> Tensor:
    """What this process holds; an operation on a DTensor itself may wait for the other processes."""
    if not _is_sharded(tensor):
        return tensor.detach()
    local: Tensor = tensor._local_tensor  # type: ignore[attr-defined]  # to_local() is an autograd function
    return local.detach()


@torch.no_grad()
def _norms(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    dense = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors]
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(dense):
        groups.setdefault((tensor.device, tensor.dtype), []).append(i)
    result: list[Tensor] = list(dense)
    for (_, dtype), rows in groups.items():
        wide = dtype if dtype.itemsize >= 4 else torch.float32
        for i, norm in zip(rows, torch._foreach_norm([dense[i] for i in rows], 2, dtype=wide), strict=True):
            result[i] = norm
    return iter(result)


def _joined(
    names: Sequence[str], layers: Sequence[Sequence[Tensor]], norms: Iterator[Tensor]
) -> tuple[Sequence[str], list[Tensor | ShardedNorm]]:
    """One norm a layer, of all its weights together; without the layers whose weights are partly sharded."""
    joint = [_joint([next(norms) for _ in some], some) for some in layers]
    if all(one is not None for one in joint):
        return names, [one for one in joint if one is not None]
    there = [(name, one) for name, one in zip(names, joint, strict=True) if one is not None]
    return [name for name, _ in there], [one for _, one in there]


def _joint(norms: list[Tensor], tensors: Sequence[Tensor]) -> Tensor | ShardedNorm | None:
    """One norm of a layer's tensors from each one's; None where some are sharded and others not, or sums are open."""
    joint: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    layouts = [_layout(tensor) for tensor in tensors]
    if layouts == [None] * len(layouts):
        return joint
    copies = {layout[0] for layout in layouts if layout is not None}
    if None in layouts or len(copies) > 1 or 0 in copies:
        return None
    held, size = (sum(layout[k] for layout in layouts if layout is not None) for k in (1, 2))
    return ShardedNorm(joint.square(), held, copies.pop(), size)


def _layout(tensor: Any) -> tuple[int, int, int] | None:
    """Of a sharded tensor how often it is held (0: its parts are sums still to be made), values here and in all."""
    if not _is_sharded(tensor):
        return None
    ways = [(placement, tensor.device_mesh.size(i)) for i, placement in enumerate(tensor.placements)]
    known = all(placement.is_shard() or placement.is_replicate() for placement, _ in ways)
    copies = math.prod(size for placement, size in ways if placement.is_replicate()) if known else 0
    return copies, tensor._local_tensor.numel(), tensor.numel()
