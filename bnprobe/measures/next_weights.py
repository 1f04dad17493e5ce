"""What an optimizer's next step would make of the weights, without taking it."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as hooks

from bnprobe.errors import ArgumentError

__all__ = ["check_optimizers", "next_weights"]

# Whose step asks for more than gradients.
_REFUSED = {
    "LBFGS": "its step evaluates the loss at weights of its own choice",
    "ZeroRedundancyOptimizer": "its step waits for other processes",
    "DistributedOptimizer": "its step waits for other processes",
}
_OF_A_SCALER = {"grad_scale", "found_inf"}  # which it leaves there while the step runs


def check_optimizers(optimizer: Any, parameters: Sequence[Tensor]) -> tuple[torch.optim.Optimizer, ...]:
    """One or several optimizers as a tuple.

    Raises:
        ArgumentError: one is none, or of a kind whose step cannot be taken on a copy; or none of them has any of
            ``parameters``.
    """
    found = tuple(optimizer) if isinstance(optimizer, list | tuple) else (optimizer,)
    for one in found:
        if not isinstance(one, torch.optim.Optimizer):
            raise ArgumentError(f"optimizer must be a torch.optim.Optimizer; got {type(one).__name__}")
        for kind in type(one).__mro__:
            if kind.__name__ in _REFUSED:
                raise ArgumentError(f"{kind.__name__} cannot be asked for its next step: {_REFUSED[kind.__name__]}")
    held = {id(one) for one in _parameters(found)}
    if not any(id(one) in held for one in parameters):
        raise ArgumentError("the optimizer holds no parameter of the model that trains; hand in the one that trains it")
    return found


def next_weights(
    optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> list[Tensor]:
    """Values of ``parameters`` after one step of the optimizers with these gradients.

    The step is a real one, of copies of the optimizers (settings, state and all) over copies of the parameters: their
    hooks, and hooks for all optimizers, do not run. Parameters that no optimizer has stay as they are.

    Raises:
        ArgumentError: an optimizer cannot be copied, or the copy's step fails.
    """
    given = {id(one): gradient for one, gradient in zip(parameters, gradients, strict=True)}
    twins: dict[int, Any] = {}
    for parameter in _parameters(optimizers):
        twin = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        gradient = given.get(id(parameter))
        twin.grad = None if gradient is None else gradient.detach().clone()
        twins[id(parameter)] = twin
    after = dict(twins)
    with _unhooked(), torch.enable_grad():
        for one in optimizers:
            _step(one, twins)
    return [after[id(one)].detach() if id(one) in after else one.detach().clone() for one in parameters]


def _step(optimizer: torch.optim.Optimizer, memo: dict[int, Any]) -> None:
    kind = type(optimizer)
    try:
        _copied(optimizer, memo).step()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a third party's optimizer does
        raise ArgumentError(
            f"{kind.__name__} cannot be asked for its next step: on a copy of it that raised "
            f"{type(error).__name__}: {error}"
        ) from error


def _copied(optimizer: torch.optim.Optimizer, memo: dict[int, Any]) -> torch.optim.Optimizer:
    """A copy with all attributes but hooks, what a gradient scaler left, and methods put on the object.

    Such methods are bound to the original: a learning-rate scheduler's ``step`` would step that.
    """
    kind = type(optimizer)
    twin: torch.optim.Optimizer = kind.__new__(kind)
    memo[id(optimizer)] = twin
    kept = {
        name: value
        for name, value in vars(optimizer).items()
        if name not in _OF_A_SCALER
        and not (name.startswith("_optimizer_") and name.endswith("_hooks"))
        and not (callable(value) and callable(getattr(kind, name, None)))
    }
    twin.__setstate__(copy.deepcopy(kept, memo))
    return twin


@contextmanager
def _unhooked() -> Iterator[None]:
    """Without hooks for all optimizers."""
    tables: list[dict[int, Any]] = [hooks._global_optimizer_pre_hooks, hooks._global_optimizer_post_hooks]
    saved = [dict(table) for table in tables]
    try:
        for table in tables:
            table.clear()
        yield
    finally:
        for table, before in zip(tables, saved, strict=True):
            table.clear()
            table.update(before)


def _parameters(optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    """All parameters of some optimizers, each once."""
    found: Mapping[int, Tensor] = {
        id(one): one for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]
    }
    return list(found.values())
