"""How a model is called on a batch of a loader, and batches that can be read again."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bnprobe.hooks.tensors import with_tensors

__all__ = ["Batches", "Forward", "call", "evaluating"]

Forward: TypeAlias = Callable[[nn.Module, Any], Any]


class Batches:
    """The first so many batches of a loader, read once and kept where they are wanted again.

    Args:
        loader: any iterable; one that can be read once, and an endless one, are right.
        limit: how many at most; None: all.
        keep: whether they are going to be read again.
    """

    def __init__(self, loader: Iterable[Any], limit: int | None, keep: bool) -> None:
        self._rest = islice(iter(loader), limit)
        self._keep, self._kept = keep, list[Any]()

    def __iter__(self) -> Iterator[Any]:
        yield from self._kept
        for batch in self._rest:
            if self._keep:
                self._kept.append(batch)
            yield batch


def call(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """The model's output for a batch, whose tensors are copied: a model may write into its input.

    Of a tuple or list ``(x, y, ...)`` the first entry is the input. A mapping is passed as keyword arguments where
    ``model.forward`` takes its keys, else as one argument; a tuple as one argument where ``model.forward`` takes one,
    else as positional arguments. Tensors go to the device of the model's parameters where these are on one.

    Args:
        model: without wrappers.
        batch: of a loader.
        forward: ``(model, batch) -> output``, instead of all this but for the copy.
    """
    if forward is not None:
        return forward(model, with_tensors(batch, torch.clone))
    if _plain_sequence(batch) and batch:
        batch = batch[0]
    device = _device(model)
    x = with_tensors(batch, lambda one: one.to(device or one.device, copy=True))
    if isinstance(x, Mapping) and all(isinstance(key, str) for key in x) and _binds(model, **x):
        return model(**x)
    if _plain_sequence(x) and not _binds(model, x):
        return model(*x)
    return model(x)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, by its flag alone: ``model.eval()`` may be the user's and do more than that."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _plain_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list) and not hasattr(value, "_fields")


def _binds(model: nn.Module, *args: Any, **kwargs: Any) -> bool:
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # no signature: of a scripted module, say
        return not kwargs
    return True


def _device(model: nn.Module) -> torch.device | None:
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    devices = {one.device for one in tensors}
    return devices.pop() if len(devices) == 1 else None
