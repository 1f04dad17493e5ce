"""Where a layer keeps its scale, shift and running statistics."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Parts", "State", "parts_of"]

_GAMMA = ("weight", "gamma", "scale", "g", "gain")
_BETA = ("bias", "beta", "shift", "b", "offset")
_MEAN = ("running_mean", "moving_mean", "ra_mean")
_VARIANCE = (
    "running_var", "moving_variance", "moving_var", "ra_var", "running_variance", "running_std", "running_sigma"
)  # fmt: skip
_BATCHES = ("num_batches_tracked", "num_batches", "num_tracked_batch")


@dataclass(frozen=True)
class State:
    """Parameters and buffers of a layer as flat double-precision copies on the CPU; None for what it has not."""

    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    variance: Tensor | None
    batches: int | None


@dataclass(frozen=True)
class Parts:
    """The layer's own tensors; None for what it has not.

    Attributes:
        gamma: scale.
        beta: shift.
        mean: running mean.
        variance: running variance, or running standard deviation.
        batches: counter of batches.
        keeper: the module that holds the running statistics, whose ``momentum`` counts.
    """

    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    variance: Tensor | None
    batches: Tensor | None
    keeper: nn.Module

    def state(self) -> State:
        """Copies, as they are now."""
        mean, variance = _flat(self.mean), _flat(self.variance)
        batches = None if self.batches is None else int(self.batches)
        return State(_flat(self.gamma), _flat(self.beta), mean, variance, batches)


def parts_of(module: nn.Module) -> Parts:
    """Find them by the names that layers of the field use, on the module or the first submodule that has them."""
    parameters: dict[str, Tensor] = dict(module.named_parameters())
    buffers = dict(module.named_buffers())
    mean = _named(buffers, _MEAN)
    owner = module
    if mean is not None:
        owner = module.get_submodule(mean.rpartition(".")[0])

    def tensor(name: str | None) -> Tensor | None:
        return None if name is None else (parameters | buffers)[name]

    return Parts(
        tensor(_named(parameters, _GAMMA)),
        tensor(_named(parameters, _BETA)),
        tensor(mean),
        tensor(_named(buffers, _VARIANCE)),
        tensor(_named(buffers, _BATCHES)),
        owner,
    )


def _flat(one: Tensor | None) -> Tensor | None:
    return None if one is None else one.detach().to("cpu", torch.float64, copy=True).reshape(-1)


def _named(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> str | None:
    for wanted in names:
        for name in tensors:
            if name.rpartition(".")[2] == wanted:
                return name
    return None
