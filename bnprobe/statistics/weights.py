"""Norms of layers' weights and of their gradients."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnprobe.hooks.sites import Site

__all__ = ["LearningRates", "ShardedNorm", "WeightNorms"]


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
        self._layers = [(site.name, site.module) for site in sites if _weights(site.module)]

    def read(self) -> Iterator[tuple[str, dict[str, Tensor | ShardedNorm]]]:
        """Per layer ``norm`` and, where every weight has a gradient, ``grad_norm``; 0-dimensional tensors.

        A weight that does not take part (frozen, or not reached by the loss) has no gradient norm rather than 0.
        """
        layers = [(name, _weights(module)) for name, module in self._layers]
        norms = _norms([_local(weight) for _, weights in layers for weight in weights])
        graded = [(name, [weight.grad for weight in weights]) for name, weights in layers]
        complete = {name: [g for g in grads if g is not None] for name, grads in graded if None not in grads}
        grad_norms = _norms([_local(gradient) for gradients in complete.values() for gradient in gradients])
        for name, weights in layers:
            numbers = {"norm": _joint([next(norms) for _ in weights], weights)}
            if name in complete:
                gradients = complete[name]
                numbers["grad_norm"] = _joint([next(grad_norms) for _ in gradients], gradients)
            yield name, {key: value for key, value in numbers.items() if value is not None}


class LearningRates:
    """The learning rate that an optimizer applies to the first parameter of each layer."""

    def __init__(self, sites: Sequence[Site], optimizer: torch.optim.Optimizer) -> None:
        self._layers = [site.module for site in sites]
        self._firsts = [(site.name, next(site.module.parameters(recurse=False), None)) for site in sites]
        self._optimizer = optimizer
        self._group_of: dict[int, int] = {}
        self._size = -1

    def read(self) -> Iterator[tuple[str, Tensor | float]]:
        """Per layer the rate of now; a rate that is a tensor is copied, not waited for."""
        groups = self._optimizer.param_groups
        size = sum(len(group["params"]) for group in groups)
        if size != self._size:  # groups may be added while training goes on
            self._group_of = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
            self._size = size
        for i, (name, first) in enumerate(self._firsts):
            if first is not None and id(first) not in self._group_of:  # sharding replaces a layer's parameters
                first = next(self._layers[i].parameters(recurse=False), None)
                self._firsts[i] = name, first
            rate = groups[self._group_of[id(first)]].get("lr") if id(first) in self._group_of else None
            if rate is not None:
                yield name, rate.detach().clone() if isinstance(rate, Tensor) else float(rate)


def _weights(module: nn.Module) -> list[Tensor]:
    own = [(name, parameter) for name, parameter in module.named_parameters(recurse=False)]
    originals = getattr(module, "parametrizations", None)
    if isinstance(originals, nn.Module):
        own += list(originals.named_parameters())
    return [p for name, p in own if "weight" in name and _has_norm(p)]


def _has_norm(parameter: nn.Parameter) -> bool:
    """Whether it holds real numbers of at least 16 bits, here: not on the meta device, not in a subclass of its own."""
    real = parameter.dtype.is_floating_point and parameter.dtype.itemsize > 1
    plain = type(parameter) is nn.Parameter or _is_sharded(parameter)
    return plain and real and parameter.device.type != "meta"


def _is_sharded(tensor: Tensor) -> bool:
    return type(tensor).__name__ == "DTensor" and type(tensor).__module__.startswith("torch.distributed")


def _local(tensor: Tensor) -> Tensor:
    """What this process holds; an operation on a DTensor itself may wait for the other processes."""
    if not _is_sharded(tensor):
        return tensor.detach()
    local: Tensor = tensor._local_tensor  # type: ignore[attr-defined]  # to_local() is an autograd function
    return local.detach()


def _norms(tensors: list[Tensor]) -> Iterator[Tensor]:
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


def _joint(norms: list[Tensor], tensors: Sequence[Tensor]) -> Tensor | ShardedNorm | None:
    """One norm of a layer's tensors from each one's; None where some are sharded and others not, or sums are open."""
    joint = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
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
