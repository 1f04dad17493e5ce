"""Norms of layers' weights and of their gradients."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from bnprobe.hooks.sites import Site

__all__ = ["LearningRates", "WeightNorms", "by_holder"]


class WeightNorms:
    """Euclidean norms of the weights of some layers, and of the gradients that lie at them.

    A layer's weights are its own parameters with ``weight`` in their names (a recurrent layer has several; a
    parametrised one its originals); biases are left out. Norms are taken in float32 or wider.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self._layers = [(site.name, site.module) for site in sites if _weights(site.module)]

    def read(self, scale: Tensor | None = None) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Per layer ``norm`` and, where every weight has a gradient, ``grad_norm``; 0-dimensional tensors.

        Gradients are divided by ``scale``, where an optimizer is to do so itself (fused ones, from a gradient scaler).
        A weight that does not take part (frozen, or not reached by the loss) has no gradient norm rather than 0.
        """
        layers = [(name, _weights(module)) for name, module in self._layers]
        norms = _norms([weight.detach() for _, weights in layers for weight in weights])
        graded = [(name, [weight.grad for weight in weights]) for name, weights in layers]
        complete = {name: [g for g in grads if g is not None] for name, grads in graded if None not in grads}
        grad_norms = _norms([gradient for gradients in complete.values() for gradient in gradients])
        for name, weights in layers:
            numbers = {"norm": _joint([next(norms) for _ in weights])}
            if name in complete:
                joint = _joint([next(grad_norms) for _ in complete[name]])
                numbers["grad_norm"] = joint if scale is None else joint / scale
            yield name, numbers


class LearningRates:
    """The learning rate that an optimizer applies to the first parameter of each layer."""

    def __init__(self, sites: Sequence[Site], optimizer: torch.optim.Optimizer) -> None:
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
        for name, first in self._firsts:
            rate = groups[self._group_of[id(first)]].get("lr") if id(first) in self._group_of else None
            if rate is not None:
                yield name, rate.detach().clone() if isinstance(rate, Tensor) else float(rate)


def by_holder(sites: Sequence[Site], optimizers: Sequence[torch.optim.Optimizer]) -> list[list[Site]]:
    """The layers by the first optimizer that holds a parameter of theirs; those that none holds go to the last."""
    held = [{id(p) for group in one.param_groups for p in group["params"]} for one in optimizers]
    parts: list[list[Site]] = [[] for _ in optimizers] or [[]]
    for site in sites:
        own = {id(p) for p in site.module.parameters()}
        parts[next((i for i, ids in enumerate(held) if own & ids), -1)].append(site)
    return parts


def _weights(module: nn.Module) -> list[Tensor]:
    own = [(name, parameter) for name, parameter in module.named_parameters(recurse=False)]
    originals = getattr(module, "parametrizations", None)
    if isinstance(originals, nn.Module):
        own += list(originals.named_parameters())
    return [p for name, p in own if "weight" in name and _has_norm(p)]


def _has_norm(parameter: nn.Parameter) -> bool:
    """Whether it holds real numbers of at least 16 bits, here: not on the meta device, not in a subclass of its own."""
    real = parameter.dtype.is_floating_point and parameter.dtype.itemsize > 1
    return type(parameter) is nn.Parameter and real and parameter.device.type != "meta"


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


def _joint(norms: list[Tensor]) -> Tensor:
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
