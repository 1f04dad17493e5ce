"""Norms of layers' weights and of their gradients."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

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
        self._modules = [(site.name, site.module) for site in sites]
        self._slots: list[tuple[str, list[tuple[nn.Module, str]]]] = []
        self._looks: list[object] = []
        self._names: tuple[str, ...] = ()

    def read(self, scale: Tensor | None = None) -> Iterator[tuple[str, Sequence[str], list[Tensor]]]:
        """``norm`` and ``grad_norm``, each with the names of the layers and their values, 0-dimensional tensors.

        Gradients are divided by ``scale``, where an optimizer is to do so itself (fused ones, from a gradient scaler).
        A weight that does not take part (frozen, or not reached by the loss) has no gradient norm rather than 0.
        """
        layers = self._present()
        weights = [weight for some in layers for weight in some]
        yield "norm", self._names, _joined(_norms([weight.detach() for weight in weights]), map(len, layers))
        gradients = [[weight.grad for weight in some] for some in layers]
        complete = [i for i, some in enumerate(gradients) if all(one is not None for one in some)]
        graded = [gradient for i in complete for gradient in gradients[i] if gradient is not None]
        names = self._names if len(complete) == len(layers) else [self._names[i] for i in complete]
        norms = _joined(_norms(graded), [len(layers[i]) for i in complete])
        yield "grad_norm", names, norms if scale is None else [norm / scale for norm in norms]

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
        self._firsts = [(site.name, next(site.module.parameters(recurse=False), None)) for site in sites]
        self._optimizer = optimizer
        self._known: list[tuple[str, int]] = []
        self._names: tuple[str, ...] = ()
        self._size = -1

    def read(self) -> tuple[Sequence[str], list[Tensor | float]]:
        """Names of layers and their rates of now; a rate that is a tensor is copied, not waited for."""
        groups = self._optimizer.param_groups
        size = sum(len(group["params"]) for group in groups)
        if size != self._size:  # groups may be added while training goes on
            group_of = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
            known = [(name, group_of[id(first)]) for name, first in self._firsts if id(first) in group_of]
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


def _joined(norms: Iterator[Tensor], sizes: Iterable[int]) -> list[Tensor]:
    """One norm a layer, of all its weights together."""
    return [_joint([next(norms) for _ in range(size)]) if size > 1 else next(norms) for size in sizes]


def _joint(norms: list[Tensor]) -> Tensor:
    joint: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return joint
