"""Cutting a piece out of a model's forward: from one layer's input to another's output, or a layer by itself.

Nothing is rebuilt: the model runs as it is, and hooks put the piece's inputs in and take its outputs out. So whatever
lies between (sums, concatenations, functions, shared layers) is part of the piece.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from bnprobe.errors import ArgumentError, NotMeasuredError, SelectionError
from bnprobe.hooks.sites import named_layers, unwrap
from bnprobe.hooks.taps import Taps
from bnprobe.hooks.tensors import tensors_in, with_tensors

__all__ = [
    "Captured",
    "Segment",
    "SegmentChoice",
    "arguments_of",
    "capture",
    "cut",
    "find_layer",
    "of_call",
    "outputs_of",
    "plain_forward",
    "unheard_in_python",
    "whole",
]

SegmentChoice: TypeAlias = str | tuple[str, str] | None
Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


class _Reached(BaseException):
    """Everything that was wanted of a forward is there."""


@dataclass(frozen=True, eq=False)
class Captured:
    """One call of a layer, seen in a forward.

    Attributes:
        arguments: positional and keyword arguments, tensors copied.
        inputs: the tensors among them that carry the signal, see :class:`Segment`.
        autocast: (device kind, dtype) where the call ran under autocast.
        moment: what the caller of :func:`capture` noted then.
    """

    arguments: Arguments
    inputs: tuple[Tensor, ...]
    autocast: tuple[tuple[str, torch.dtype], ...]
    moment: Any


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of a model's forward, as a function of tensors.

    The *inputs* are the floating-point tensors among the arguments of the layer where the piece starts which autograd
    would send a gradient to (that leaves out masks and position codes), each once, however often it is passed
    (self-attention). Where autograd would send one to none, as behind frozen layers, they are all floating-point
    tensors there; parameters never are. The *outputs* are the floating-point tensors that the end returns: the tensor,
    or those directly in the tuple or list; in a mapping or dataclass the first one. States of recurrent layers and
    attention weights are left out. Several inputs or outputs make one Jacobian, one behind the other.

    Attributes:
        module: what is called.
        arguments: with which arguments.
        inputs: the tensors at the start, as the forward brings them there.
        start, end: where the piece starts and ends inside ``module``; None: its own input, its own output.
        names: of where it starts and ends, for messages.
        autocast: as in :class:`Captured`.
        moment: as in :class:`Captured`.
    """

    module: nn.Module
    arguments: Arguments
    inputs: tuple[Tensor, ...]
    start: nn.Module | None = None
    end: nn.Module | None = None
    autocast: tuple[tuple[str, torch.dtype], ...] = ()
    moment: Any = None
    names: tuple[str, str] = ("the model's input", "the model's output")

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs for inputs of the same shapes, with their graph.

        Raises:
            NotMeasuredError: no output is a floating-point tensor, or the end is not reached.
        """
        with plain_forward(self.module), ExitStack() as stack:
            for kind, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            if self.start is None or self.end is None:
                args, kwargs = _exchange(self.arguments, self.inputs, inputs)
                return outputs_of(self.module, self.module(*args, **kwargs))
            return self._run_through(self.start, self.end, inputs)

    def to(self, dtype: torch.dtype) -> "Segment":
        """The same piece at the same input in another precision, outside of autocast; the module is not converted."""
        twins: dict[int, Tensor] = {}

        def convert(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point() or isinstance(tensor, nn.Parameter):
                return tensor
            return twins.setdefault(id(tensor), tensor.to(dtype))

        args, kwargs = self.arguments
        arguments = tuple(with_tensors(one, convert) for one in args), with_tensors(kwargs, convert)
        inputs = tuple(convert(one) for one in self.inputs)
        return replace(self, arguments=arguments, inputs=inputs, autocast=())

    def _run_through(self, start: nn.Module, end: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
        begun, found = False, []

        def put_in(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
            nonlocal begun
            if begun:
                return None
            begun = True
            present = _signals((args, kwargs))
            if [one.shape for one in present] != [one.shape for one in inputs]:
                raise NotMeasuredError(f"{self.names[0]} is another in every forward")
            return _exchange((args, kwargs), present, inputs)

        def take_out(module: nn.Module, _: Any, output: Any) -> None:
            if begun:
                found.extend(outputs_of(module, output))
                raise _Reached

        handles = [start.register_forward_pre_hook(put_in, prepend=True, with_kwargs=True)]
        try:
            handles.append(end.register_forward_hook(take_out))
            args, kwargs = _with_gradients(self.arguments)
            self.module(*args, **kwargs)
        except _Reached:
            return found
        finally:
            for handle in handles:
                handle.remove()
        raise NotMeasuredError(f"in this forward {self.names[1]} does not come after {self.names[0]}")


def whole(module: nn.Module, x: Any) -> Segment:
    """A model from its input to its output.

    Raises:
        NotMeasuredError: no tensor of ``x`` is floating-point.
    """
    args, kwargs = _copied(arguments_of(x))
    inputs = tuple(_floating((args, kwargs)))
    if not inputs:
        raise NotMeasuredError(f"the model's input is {_kinds((args, kwargs))}: not differentiable; choose a layer")
    return Segment(module, (args, kwargs), inputs)


def cut(root: nn.Module, x: Any, layer: SegmentChoice, note: Callable[[], Any] = lambda: None) -> Segment:
    """The piece of ``root`` that ``layer`` names, at the input that ``x`` causes there.

    Args:
        root: the model, wrappers taken off.
        x: its input: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        layer: None: end to end. A name: that layer's first call, run by itself with the arguments that it was given.
            Two names: from the input of the first one's first call to the output of the second's first call that ends
            after that; what went another way is held constant.
        note: called when the starting layer is, its result is kept as ``moment``.

    Raises:
        SelectionError: no such layer.
        NotMeasuredError: it is not called in this forward, or has no floating-point tensor as input.
        ArgumentError: ``layer`` is none of these.
    """
    if layer is None:
        return whole(root, x)
    names = (layer, layer) if isinstance(layer, str) else layer
    if not (isinstance(names, tuple) and len(names) == 2 and all(isinstance(name, str) for name in names)):
        raise ArgumentError(f"layer must be None, a layer's name or a pair of names; got {layer!r}")
    start, end = (find_layer(root, name) for name in names)
    calls = capture(root, x, {names[0]: start}, note)
    if names[0] not in calls:
        raise NotMeasuredError(f"{names[0]!r} is not called in this forward")
    call = calls[names[0]]
    if start is end:
        return of_call(start, call, names[0])
    _require_inputs(call, names[0])
    return Segment(root, _copied(arguments_of(x)), call.inputs, start, end, names=_ends(*names))


def of_call(module: nn.Module, call: Captured, name: str) -> Segment:
    """A layer by itself, with the arguments of one of its calls.

    Raises:
        NotMeasuredError: no argument of the call is a floating-point tensor.
    """
    _require_inputs(call, name)
    return Segment(
        module, call.arguments, call.inputs, autocast=call.autocast, moment=call.moment, names=_ends(name, name)
    )


def capture(
    root: nn.Module, x: Any, layers: Mapping[str, nn.Module], note: Callable[[], Any] = lambda: None
) -> dict[str, Captured]:
    """The first call of each of ``layers`` in one forward; layers that are not called are missing."""
    calls: dict[str, Captured] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name in calls:
                return
            signals = {id(one) for one in _signals((args, kwargs))}
            twins: dict[int, Tensor] = {}
            arguments = _copied((args, kwargs), twins)
            inputs = tuple(twin for key, twin in twins.items() if key in signals)
            calls[name] = Captured(arguments, inputs, _autocast(), note())
            if len(calls) == len(layers):
                raise _Reached

        return hook

    handles = []
    with plain_forward(root):
        args, kwargs = _with_gradients(_copied(arguments_of(x)))
        try:
            for name, module in layers.items():
                handles.append(module.register_forward_pre_hook(keep(name), prepend=True, with_kwargs=True))
            root(*args, **kwargs)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
    return calls


def find_layer(root: nn.Module, name: str) -> nn.Module:
    """The layer of a name as in ``named_modules()``, wrappers looked through.

    Raises:
        SelectionError: there is none; the message lists near names.
    """
    names = dict(named_layers(root))
    if name in names:
        return names[name]
    try:
        return unwrap(root.get_submodule(name))  # a shared layer's second name
    except AttributeError:
        near = get_close_matches(name, names, n=5, cutoff=0.4) or list(names)[1:13]
        raise SelectionError(f"layer: there is no {name!r}; near names: {', '.join(near)}") from None


def arguments_of(x: Any) -> Arguments:
    """The arguments that a model's input stands for."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (tuple(x), {}) if isinstance(x, tuple | list) else ((x,), {})


def outputs_of(module: nn.Module, output: Any) -> list[Tensor]:
    """The tensors that count as what ``module`` returned, see :class:`Segment`."""
    found = [one for _, one in tensors_in(output) if one.is_floating_point()]
    if isinstance(output, tuple | list) and not hasattr(output, "_fields"):
        found = [one for one in output if isinstance(one, Tensor) and one.is_floating_point()] or found[:1]
    else:
        found = found[:1]
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        found = found[:1]
    if not found:
        raise NotMeasuredError(f"its output is {_kinds(output)}: not differentiable")
    return list({id(one): one for one in found}.values())


@contextmanager
def plain_forward(root: nn.Module) -> Iterator[None]:
    """With gradients, in Python, through attention that has second derivatives, and unheard by attached probes."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(unheard_in_python())
        if torch.backends.cudnn.enabled and any(isinstance(one, nn.RNNBase) for one in root.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # its recurrent layers have no second ones
        yield


@contextmanager
def unheard_in_python() -> Iterator[None]:
    """What is compiled runs in Python, where hooks are called, and attached probes hear nothing of it."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_unheard())
        yield


@contextmanager
def _unheard() -> Iterator[None]:
    """Attached probes hear nothing: a measurement is no training step."""
    both = (_global_forward_pre_hooks, _global_forward_hooks)
    saved = [list(hooks.items()) for hooks in both]
    try:
        for hooks in both:
            for key, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), Taps):
                    del hooks[key]
        yield
    finally:
        for hooks, items in zip(both, saved, strict=True):
            hooks.clear()
            hooks.update(items)


def _signals(arguments: Arguments) -> list[Tensor]:
    """The inputs among a call's arguments."""
    floating = _floating(arguments)
    return [one for one in floating if one.requires_grad] or floating


def _floating(arguments: Arguments) -> list[Tensor]:
    every = {id(one): one for _, one in tensors_in(list(arguments))}.values()
    return [one for one in every if one.is_floating_point() and not isinstance(one, nn.Parameter)]


def _with_gradients(arguments: Arguments) -> Arguments:
    """With inputs from which autograd follows what depends on them."""
    sources = _floating(arguments)
    return _exchange(arguments, sources, [one.detach().clone().requires_grad_().clone() for one in sources])


def _copied(arguments: Arguments, twins: dict[int, Tensor] | None = None) -> Arguments:
    """With every tensor detached and copied, as a layer may write into it; the same tensor has the same copy."""
    twins = {} if twins is None else twins

    def copy(tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return tensor
        if id(tensor) not in twins:
            with torch.inference_mode(False):
                twins[id(tensor)] = tensor.detach().clone()
        return twins[id(tensor)]

    args, kwargs = arguments
    return (
        tuple(with_tensors(one, copy) for one in args),
        {name: with_tensors(one, copy) for name, one in kwargs.items()},
    )


def _exchange(arguments: Arguments, old: Sequence[Tensor], new: Sequence[Tensor]) -> Arguments:
    """With some tensors exchanged, and copies of all others."""
    place = {id(one): other for one, other in zip(old, new, strict=True)}

    def put(tensor: Tensor) -> Tensor:
        other = place.get(id(tensor))
        if other is None:
            return tensor if isinstance(tensor, nn.Parameter) or tensor.requires_grad else tensor.clone()
        return other

    args, kwargs = arguments
    return tuple(with_tensors(one, put) for one in args), {name: with_tensors(one, put) for name, one in kwargs.items()}


def _autocast() -> tuple[tuple[str, torch.dtype], ...]:
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind))


def _ends(start: str, end: str) -> tuple[str, str]:
    return f"the input of {start!r}", f"the output of {end!r}"


def _require_inputs(call: Captured, name: str) -> None:
    if not call.inputs:
        raise NotMeasuredError(f"the input of {name!r} is {_kinds(call.arguments)}: not differentiable")


def _kinds(value: Any) -> str:
    kinds = {str(one.dtype).removeprefix("torch.") for _, one in tensors_in(value)}
    return " and ".join(sorted(kinds)) or "no tensor"
