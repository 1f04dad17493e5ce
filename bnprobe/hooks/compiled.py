"""Listening inside ``torch.compile``.

Dynamo traces the global module hooks with the model. There they put operators into the graph that show it tensors: to
the compiler each is opaque, has an effect (so it is neither dropped, nor doubled by recomputation, nor moved past
another) and demands no layout. When it runs it tells the same listener as a hook does in eager mode or, off schedule,
returns at once: the schedule is no part of the graph. A graph that outlives its taps holds a number that nobody
answers to.

A graph belongs to the modules that it listens to: dynamo guards on the identity of each.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bnprobe.hooks.operators import define_operators
from bnprobe.hooks.places import PLACES, Place, Sight, Trace, guard_owner, whose, why_not_here
from bnprobe.hooks.sites import Site
from bnprobe.hooks.taps import Call, Seen, Taps, _recomputing

__all__ = ["CompiledTaps"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_RUNNING = ("running_mean", "running_var")
_NUMBERS = itertools.count()


class CompiledTaps:
    """What taps hear from compiled graphs.

    Args:
        taps: whose layers and listener these are.

    Attributes:
        why: by name, the reason why a layer is not shown inside a graph.
    """

    def __init__(self, taps: Taps) -> None:
        define_operators()
        self.taps = taps
        self.why: dict[str, str] = {}
        self.trace = Trace()
        self._steps = 0
        self._read_before: dict[Site, Any] = {}
        self._memories: dict[Hashable, Any] = {}
        self._memories_of = -1
        self._again: dict[Site, int] = {}
        self._backward = -1

    # Traced by dynamo. What need not be in the graph hides behind the constants below.

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """The forward pre-hook."""
        if _is_root(self, module):
            torch.ops.bnprobe.begins(_anchor(module, args), _number(self, module, (), ()))
        if _is_site(self, module):
            if _overwrites(module):
                inputs = _tensors(enumerate(args))
                if inputs:
                    number = _number(self, module, tuple([path for path, _ in inputs]), ())
                    torch.ops.bnprobe.entered([tensor for _, tensor in inputs], number)
                    _look_back(self, number)
            else:
                _note_versions(self)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """The forward hook."""
        if _is_site(self, module):
            inputs = [] if _overwrites(module) else _tensors([*enumerate(args), *kwargs.items()])
            outputs = _tensors([("", output)])
            if inputs or outputs:
                self._show_call(module, inputs, outputs)
            if not outputs:
                _say(self, module, "output: no plain tensor in tuples, lists and dicts inside torch.compile")
        if _is_root(self, module):
            torch.ops.bnprobe.ends(_anchor(module, (output,)), _number(self, module, (), ()))

    def _show_call(
        self, module: nn.Module, inputs: list[tuple[str, Tensor]], outputs: list[tuple[str, Tensor]]
    ) -> None:
        buffers: list[Any] = [module.running_mean, module.running_var] if _is_running(self, module) else []
        paths = tuple([path for path, _ in inputs]), tuple([path for path, _ in outputs])
        number = _number(self, module, *paths)
        made = [tensor for _, tensor in outputs]
        torch.ops.bnprobe.left([tensor for _, tensor in inputs], made, buffers, number)
        _look_back(self, number)
        if torch.is_grad_enabled():
            torch.ops.bnprobe.expects(made, number)

    # Called while a graph runs, or between.

    def step_done(self) -> None:
        """A training step is over: the next one's gradients belong to its own calls."""
        self._steps += 1
        self._memories.clear()
        self._again.clear()

    def remove(self) -> None:
        """Answer no graph any more."""
        for number in [number for number, place in PLACES.items() if place.taps is self]:
            del PLACES[number]
        self._read_before.clear()
        self._memories.clear()

    def begins(self) -> None:
        """The root's forward begins."""
        if not _recomputing():
            self.taps._begin()

    def ends(self) -> None:
        """The root's forward ends."""
        if not _recomputing():
            self.taps._end()

    def entered(self, place: Place, site: Site, inputs: Sequence[Tensor]) -> None:
        """A layer that overwrites its inputs is about to run."""
        if not _recomputing():
            call, shown = self.taps._call(site, 0), self._show("input", place.inputs, inputs, {})
            self._read_before[site] = self.taps._listener.about_to_change(call, shown)
            self._remember(place.inputs, shown)

    def left(
        self, place: Place, site: Site, inputs: Sequence[Tensor], outputs: Sequence[Tensor], buffers: Sequence[Tensor]
    ) -> None:
        """A layer has run."""
        recomputing = _recomputing()
        call = self.taps._call(site, self._count_again(site) if recomputing else self.taps._count(site))
        self._wait(place, call)
        if recomputing:  # under activation checkpointing the first pass has been told already
            return
        running = dict(zip(_RUNNING, buffers, strict=False))
        before = self._show("input", place.inputs, inputs, running)
        after = self._show("output", place.outputs, outputs, running)
        gone = place.overwritten or _overwrites(site.module)
        self.taps._listener.called(call, None if gone else before, after, self._read_before.pop(site, None))
        self._remember([*place.inputs, *place.outputs], [*before, *after])

    def _count_again(self, site: Site) -> int:
        """The how many-eth call of this recomputation."""
        if self._backward != (backward := torch._C._current_graph_task_id()):
            self._backward = backward
            self._again.clear()
        self._again[site] = self._again.get(site, -1) + 1
        return self._again[site]

    def graded(self, place: Place, site: Site, gradient: Tensor, which: int) -> None:
        """The gradient at an output has arrived."""
        if place.step != self._steps:
            return  # of a forward in a step that was not recorded
        where = f"grad_output.{place.outputs[which].path}" if which else "grad_output"
        if (call := whose(place.waiting)) is not None:
            self.taps._listener.graded(call, where, gradient.detach())
        else:
            self.why.setdefault(site.name, f"{where}: several forwards of several calls wait for a compiled backward")

    def _wait(self, place: Place, call: Call) -> None:
        """Keep which call the gradients of this run belong to."""
        if place.step != self._steps:
            place.step = self._steps
            place.waiting.clear()
        run = (self.taps._forwards, call)
        if not place.waiting or place.waiting[-1] != run:
            place.waiting.append(run)

    def _show(
        self, place: str, sights: Sequence[Sight], tensors: Sequence[Tensor], buffers: Mapping[str, Tensor]
    ) -> list[Seen]:
        """Tensors at their places, each as an alias of its own: compiled code writes other values into its tensors."""
        if self._memories_of != self.taps._forwards:
            self._memories.clear()
            self._memories_of = self.taps._forwards
        shown = []
        for i, (sight, tensor) in enumerate(zip(sights, tensors, strict=True)):
            if sight.first:  # what is there is of an earlier run of the graph
                self._memories.pop(sight.key, None)
            memory = self._memories.get(sight.key)
            shown.append(Seen(f"{place}.{sight.path}" if i else place, tensor.detach(), memory, buffers))
        return shown

    def _remember(self, sights: Sequence[Sight], shown: Sequence[Seen]) -> None:
        """Keep for later places what the listener remembers of these."""
        for sight, one in zip(sights, shown, strict=True):
            if (memory := self.taps._known.find(one.tensor)) is not None:
                self._memories[sight.key] = memory


# While a graph is traced.


def _constant(function: _Function) -> _Function:
    """As ``torch.compiler.assume_constant_result``, without importing dynamo for users who compile nothing."""
    function.__dict__["_dynamo_marked_constant"] = True
    return function


def _anchor(module: nn.Module, values: tuple[Any, ...]) -> list[Tensor]:
    """Some tensor of a call: inductor wants to know an operator's device."""
    shown = _tensors(enumerate(values)) or _tensors(enumerate(module.parameters()))
    return [tensor for _, tensor in shown[:1]]


def _tensors(values: Iterable[tuple[Any, Any]]) -> list[tuple[str, Tensor]]:
    """Plain tensors in tuples, lists and dicts, with their paths; dynamo must be able to trace this."""
    return [one for key, value in values for one in _inner(value, str(key))]


def _inner(value: Any, path: str) -> list[tuple[str, Tensor]]:
    if type(value) in (Tensor, nn.Parameter):
        return [(path, value)]
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        items = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (tuple, list)):
        items = list(enumerate(value))
    else:
        items = []
    return [one for key, inner in items for one in _inner(inner, f"{path}.{key}" if path else str(key))]


@_constant
def _is_root(compiled: CompiledTaps, module: nn.Module) -> bool:
    return module is compiled.taps._root and why_not_here() == ""


@_constant
def _is_site(compiled: CompiledTaps, module: nn.Module) -> bool:
    site = compiled.taps._sites.get(id(module))
    if site is None:
        return False
    if why := why_not_here():
        compiled.why[site.name] = why
    return not why


@_constant
def _say(compiled: CompiledTaps, module: nn.Module, why: str) -> None:
    compiled.why.setdefault(compiled.taps._sites[id(module)].name, why)


@_constant
def _overwrites(module: nn.Module) -> bool:
    return getattr(module, "inplace", False) is True


@_constant
def _is_running(compiled: CompiledTaps, module: nn.Module) -> bool:
    """Whether a batch norm has running buffers."""
    is_batch_norm = compiled.taps._sites[id(module)].family == "batch_norm"
    return is_batch_norm and all(isinstance(module._buffers.get(name), Tensor) for name in _RUNNING)


@_constant
def _note_versions(compiled: CompiledTaps) -> None:
    compiled.trace.note_versions()


@_constant
def _look_back(compiled: CompiledTaps, number: int) -> None:
    compiled.trace.look_back(PLACES[number])


@_constant
def _number(compiled: CompiledTaps, module: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> int:
    """A new number for this place in the graph."""
    guard_owner()
    number = next(_NUMBERS)
    shown = [[Sight(path, None, True) for path in paths] for paths in (inputs, outputs)]
    PLACES[number] = Place(compiled, compiled.taps._sites.get(id(module)), shown[0], shown[1])
    return number
