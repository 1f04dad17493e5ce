"""What a callable of the user's can change besides the model, so that it can be undone."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from bnprobe.measures.evidence.patient import Patient

__all__ = ["reached", "remember", "wants_argument"]

DEEP = 5  # ours: a method of a trainer, its attribute, a closure in it, what that holds
WIDE = 64  # of a longer list no more is looked at: it is data


def reached(function: Callable[..., Any]) -> list[Any]:
    """Modules, optimizers, schedulers, gradient scalers: what a callable holds that has a state."""
    found: dict[int, Any] = {}
    waiting: list[tuple[Any, int]] = [(function, 0)]
    seen: dict[int, Any] = {}
    while waiting:
        one, depth = waiting.pop()
        if id(one) in seen or depth > DEEP:
            continue
        seen[id(one)] = one
        if hasattr(one, "__dict__") and not isinstance(one, type) and hasattr(type(one), "load_state_dict"):
            found[id(one)] = one
        waiting += [(inner, depth + 1) for inner in islice(_held(one), WIDE)]
    return list(found.values())


def remember(patient: Patient, function: Callable[..., Any] | None, *others: Any) -> None:
    """Have all that a callable can change put back with the model: bit by bit, the same objects.

    Counters and lists of the user's own classes, iterators and files are not: they go on.
    """
    for one in (*(reached(function) if function is not None else ()), *others):
        for part in one.modules() if isinstance(one, nn.Module) else [one]:
            patient.origin.remember(vars(part))


def wants_argument(function: Callable[..., Any]) -> bool:
    """Whether a callable cannot do without one positional argument."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(one.kind in kinds and one.default is inspect.Parameter.empty for one in parameters)


def _held(one: Any) -> Iterator[Any]:
    if isinstance(one, functools.partial):
        yield from (one.func, *one.args, *one.keywords.values())
    elif isinstance(one, MethodType):
        yield from (one.__self__, one.__func__)
    elif isinstance(one, FunctionType):
        yield from _of_function(one)
    elif isinstance(one, dict):
        yield from _interesting(one.values())
    elif isinstance(one, list | tuple):
        yield from _interesting(one)
    elif not isinstance(one, nn.Module | torch.Tensor) and hasattr(one, "__dict__"):
        yield from _interesting(vars(one).values())


def _of_function(function: FunctionType) -> Iterator[Any]:
    """Cells of its closure, defaults, and the globals that its code names."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from _interesting(function.__defaults__ or ())
    yield from _interesting(
        function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__
    )


def _interesting(values: Iterable[Any]) -> Iterator[Any]:
    """Without plain values, tensors, classes and imported modules, behind which there is half of Python."""
    for one in values:
        if (
            one is None
            or isinstance(one, str | bytes | int | float | bool | torch.Tensor | type)
            or inspect.ismodule(one)
        ):
            continue
        yield one
