"""A measurement leaves no trace: model and random streams are afterwards bitwise what they were."""

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnprobe.errors import ArgumentError

__all__ = ["Origin", "RandomStreams", "untouched"]

_CONTAINERS = (dict, list, set, deque)
_PLAIN = (type(None), bool, int, float, str)  # most of what modules hold, and nothing to remember


@contextmanager
def untouched(*modules: nn.Module) -> Iterator["Origin"]:
    """Inside, modules and random streams may be used at will; afterwards they are as before, also after an exception.

    Put back are, bit by bit: parameters, their gradients and ``requires_grad`` flags, buffers, other tensors that
    modules hold, every attribute (training modes, counters, hooks, submodules; and the entries of dicts, lists and
    sets among the attributes, at any depth), and the streams of torch (CPU and each initialised accelerator), numpy
    and ``random``. What modules keep elsewhere (files, globals, objects of other classes) is not.

    Costs a copy of every tensor, for as long as it lasts.

    Args:
        modules: what is going to be used; their submodules are included.

    Yields:
        The state at the beginning; :meth:`Origin.rewind` goes back to it.

    Raises:
        ArgumentError: a lazy module has not seen its first batch: what a forward makes of it cannot be undone.
    """
    origin = Origin(modules)
    try:
        yield origin
    finally:
        origin.restore()


class RandomStreams:
    """The states of the global random streams, at the moment of making."""

    def __init__(self) -> None:
        self._python, self._cpu = random.getstate(), torch.get_rng_state()
        self._numpy = np.random.get_state()  # noqa: NPY002 - the user's stream is the global one
        self._devices: list[tuple[Callable[[Any], None], Any]] = []
        for kind in ("cuda", "xpu"):
            module = getattr(torch, kind)
            if module.is_initialized():  # else asking would initialise it
                self._devices.append((module.set_rng_state_all, module.get_rng_state_all()))
        if torch.backends.mps.is_available():
            self._devices.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))

    def restore(self) -> None:
        """Put all of them back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._cpu)
        for put, state in self._devices:
            put(state)


class Origin:
    """What modules and random streams were like; made by :func:`untouched`."""

    def __init__(self, modules: tuple[nn.Module, ...]) -> None:
        self._modules = list({id(one): one for root in modules for one in root.modules()}.values())
        self._tensors: dict[int, _TensorState] = {}
        self._containers: dict[int, tuple[Any, list[Any] | None, list[Any]]] = {}
        for module in self._modules:
            self._note(module.__dict__)
            if isinstance(module, torch.jit.ScriptModule):  # keeps its tensors elsewhere
                self._note([*module.parameters(recurse=False), *module.buffers(recurse=False)])
        self.streams = RandomStreams()

    def remember(self, value: Any) -> None:
        """From now on put this back too: a container (or tensor) as it is at this moment, with all that it holds.

        For what is no part of the modules: ``vars(optimizer)``, say, before a step that is to be undone.
        """
        self._note(value)

    def rewind(self) -> None:
        """Make the next forward start where the first did: same buffers, same random numbers, same counters.

        Buffers are replaced by fresh copies, not overwritten: a graph of an earlier forward stays valid.
        """
        self._restore_containers()
        copies: dict[int, Tensor] = {}
        for module in self._modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue  # its buffers cannot be exchanged; they are put back at the end
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    saved = self._tensors[id(buffer)].values
                    module._buffers[name] = copies.setdefault(id(buffer), _same_kind(buffer, saved.clone()))
        for state in self._tensors.values():
            state.undo_writes()
        self.streams.restore()

    def restore(self) -> None:
        """Put everything back."""
        self._restore_containers()
        for state in self._tensors.values():
            state.restore()
        self.streams.restore()

    def _note(self, value: Any) -> None:
        """Remember a container and all that it holds."""
        if isinstance(value, Tensor):
            if id(value) not in self._tensors:
                self._tensors[id(value)] = _TensorState(value)
            return
        if isinstance(value, tuple):
            for one in value:
                self._note(one)
            return
        if not isinstance(value, _CONTAINERS) or id(value) in self._containers:
            return
        keys, entries = (list(value), list(value.values())) if isinstance(value, dict) else (None, list(value))
        self._containers[id(value)] = (value, keys, entries)
        for one in entries:
            if not isinstance(one, _PLAIN):
                self._note(one)

    def _restore_containers(self) -> None:
        for container, keys, entries in self._containers.values():
            now = container.values() if keys is not None else container
            same = len(now) == len(entries) and all(map(is_, now, entries))
            if same and (keys is None or all(map(is_, container, keys))):
                continue
            container.clear()
            put = container.extend if isinstance(container, list | deque) else container.update
            put(entries if keys is None else zip(keys, entries, strict=True))


class _TensorState:
    """One tensor's values, flag and gradient."""

    def __init__(self, tensor: Tensor) -> None:
        if is_lazy(tensor):
            raise ArgumentError(
                f"the model holds a {type(tensor).__name__} of a lazy module; run it once on a batch before measuring"
            )
        self._tensor, self._requires_grad, self._grad = tensor, tensor.requires_grad, _grad(tensor)
        self._storage = tensor.detach()
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            self.values = self._storage.clone()
            self._grad_values = None if self._grad is None else self._grad.detach().clone()
        self._version = _version(tensor)

    def undo_writes(self) -> None:
        """Its values, if they were written to."""
        if _version(self._tensor) != self._version:
            self._put_values()
            self._version = _version(self._tensor)

    def restore(self) -> None:
        """Everything."""
        tensor = self._tensor
        self._put_values()
        if tensor.is_leaf and tensor.requires_grad != self._requires_grad:
            tensor.requires_grad_(self._requires_grad)
        if tensor.is_leaf:
            if tensor.grad is not self._grad:
                tensor.grad = self._grad
            if self._grad is not None and self._grad_values is not None:
                self._grad.data.copy_(self._grad_values)

    def _put_values(self) -> None:
        """Through ``data``, so that graphs which the user still holds do not see a write that changes nothing."""
        tensor, storage = self._tensor, self._storage
        if tensor.shape != storage.shape or _pointer(tensor) != _pointer(storage):
            tensor.data = storage
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            tensor.data.copy_(self.values)


def _same_kind(like: Tensor, copy: Tensor) -> Tensor:
    return nn.Buffer(copy) if isinstance(like, nn.Buffer) else copy.requires_grad_(like.requires_grad)


def _grad(tensor: Tensor) -> Tensor | None:
    return tensor.grad if tensor.is_leaf else None  # asking others for it warns


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _pointer(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a wrapper without memory of its own
        return 0
