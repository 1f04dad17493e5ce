"""Listening inside ``torch.compile``.

Dynamo traces the global module hooks with the model. There they put operators into the graph that show it tensors: to
the compiler each is opaque, has an effect (so it is neither dropped, nor doubled by recomputation, nor moved past
another) and demands no layout. When it runs it tells the same listener as a hook does in eager mode or, off schedule,
returns at once: the schedule is no part of the graph. A graph that outlives its taps holds a number that nobody
answers to.

============  =====================================================================================
operator      what it tells
============  =====================================================================================
``begins``    the root's forward begins
``entered``   inputs of a layer that says that it overwrites them
``left``      the other layers' inputs, every layer's outputs, a batch norm's buffers
``expects``   nothing: traced by autograd, it puts ``graded`` on the outputs' gradients and is gone
``graded``    the gradient at an output
``ends``      the root's forward ends
============  =====================================================================================

A graph belongs to the modules that it listens to: dynamo guards on the identity of each.
"""

import dataclasses
import functools
import itertools
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from bnprobe.hooks.sites import Site
from bnprobe.hooks.taps import Call, Seen, Taps, _recomputing, _undisturbed

__all__ = ["CompiledTaps"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_SCHEMAS = (
    "begins(Tensor[] anchor, int number) -> ()",
    "entered(Tensor[] inputs, int number) -> ()",
    "left(Tensor[] inputs, Tensor[] outputs, Tensor[] buffers, int number) -> ()",
    "expects(Tensor[] outputs, int number) -> ()",
    "graded(Tensor gradient, int which, int number) -> ()",
    "ends(Tensor[] anchor, int number) -> ()",
)
_TAGS = tuple(getattr(torch.Tag, name) for name in ("flexible_layout", "cudagraph_unsafe") if hasattr(torch.Tag, name))
# Operators in whose body dynamo traces a checkpointed region; others (cond, scan, vmap) know no operator with effects.
_CHECKPOINTS = ("tag_activation_checkpoint", "wrap_activation_checkpoint")


class _Sight(NamedTuple):
    """A tensor at a place in a graph.

    Attributes:
        path: where in the call's arguments or result it stood.
        key: equal for places of one graph that show the very same values, as a layer's output and the next one's input.
        first: whether none shows it before.
    """

    path: str
    key: Hashable
    first: bool


@dataclasses.dataclass(slots=True, eq=False)
class _Place:
    """One place in a graph: a call of a layer, or of the root.

    Attributes:
        taps: who is told.
        site: the layer; None for the root.
        inputs, outputs: what is shown.
        overwritten: whether the layer writes into its inputs, so that they are not what they were.
        step: the step in which ``waiting`` was filled.
        waiting: the forward (by its number) and the call of each run whose gradients may still come.
    """

    taps: "CompiledTaps"
    site: Site | None
    inputs: list[_Sight]
    outputs: list[_Sight]
    overwritten: bool = False
    step: int = -1
    waiting: list[tuple[int, Call]] = dataclasses.field(default_factory=list)


_PLACES: dict[int, _Place] = {}  # from a trace to the taps' end
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
        self.taps = taps
        self.why: dict[str, str] = {}
        self.trace = _Trace()
        self._steps = 0
        self._read_before: dict[Site, Any] = {}
        self._memories: dict[Hashable, Any] = {}
        self._memories_of = -1

    # Traced by dynamo. What need not be in the graph hides behind the constants below.

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """The forward pre-hook."""
        if _is_root(self, module):
            torch.ops.bnprobe.begins(_anchor(module, args), _number(self, module, (), ()))
        if _is_site(self, module):
            if _overwrites(module):
                inputs = _tensors(enumerate(args))
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
            buffers = [module.running_mean, module.running_var] if _is_running(self, module) else []
            paths = tuple([path for path, _ in inputs]), tuple([path for path, _ in outputs])
            number = _number(self, module, *paths)
            made = [tensor for _, tensor in outputs]
            torch.ops.bnprobe.left([tensor for _, tensor in inputs], made, buffers, number)
            _look_back(self, number)
            if torch.is_grad_enabled():
                torch.ops.bnprobe.expects(made, number)
        if _is_root(self, module):
            torch.ops.bnprobe.ends(_anchor(module, (output,)), _number(self, module, (), ()))

    # Called while a graph runs, or between.

    def step_done(self) -> None:
        """A training step is over: the next one's gradients belong to its own calls."""
        self._steps += 1
        self._memories.clear()

    def remove(self) -> None:
        """Answer no graph any more."""
        for number in [number for number, place in _PLACES.items() if place.taps is self]:
            del _PLACES[number]
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

    def entered(self, place: _Place, site: Site, inputs: Sequence[Tensor]) -> None:
        """A layer that overwrites its inputs is about to run."""
        if not _recomputing():
            call, shown = self.taps._call(site, 0), self._show("input", place.inputs, inputs, {})
            self._read_before[site] = self.taps._listener.about_to_change(call, shown)
            self._remember(place.inputs, shown)

    def left(
        self, place: _Place, site: Site, inputs: Sequence[Tensor], outputs: Sequence[Tensor], buffers: Sequence[Tensor]
    ) -> None:
        """A layer has run."""
        recomputing = _recomputing()
        call = self.taps._call(site, self.taps._count(site, recomputing))
        self._wait(place, call)
        if recomputing:  # under activation checkpointing the first pass has been told already
            return
        running = dict(zip(_RUNNING, buffers, strict=False))
        before = self._show("input", place.inputs, inputs, running)
        after = self._show("output", place.outputs, outputs, running)
        gone = place.overwritten or _overwrites(site.module)
        self.taps._listener.called(call, None if gone else before, after, self._read_before.pop(site, None))
        self._remember([*place.inputs, *place.outputs], [*before, *after])

    def graded(self, place: _Place, site: Site, gradient: Tensor, which: int) -> None:
        """The gradient at an output has arrived."""
        if place.step != self._steps:
            return  # of a forward in a step that was not recorded
        where = f"grad_output.{place.outputs[which].path}" if which else "grad_output"
        if (call := _whose(place.waiting)) is not None:
            self.taps._listener.graded(call, where, gradient.detach())
        else:
            self.why.setdefault(site.name, f"{where}: several forwards of several calls wait for a compiled backward")

    def _wait(self, place: _Place, call: Call) -> None:
        """Keep which call the gradients of this run belong to."""
        if place.step != self._steps:
            place.step = self._steps
            place.waiting.clear()
        run = (self.taps._forwards, call)
        if not place.waiting or place.waiting[-1] != run:
            place.waiting.append(run)

    def _show(
        self, place: str, sights: Sequence[_Sight], tensors: Sequence[Tensor], buffers: Mapping[str, Tensor]
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

    def _remember(self, sights: Sequence[_Sight], shown: Sequence[Seen]) -> None:
        """Keep for later places what the listener remembers of these."""
        for sight, one in zip(sights, shown, strict=True):
            if (memory := self.taps._known.find(one.tensor)) is not None:
                self._memories[sight.key] = memory


def _whose(waiting: list[tuple[int, Call]]) -> Call | None:
    """The call whose backward comes first: the last one's, as long as only one forward has several.

    A number in the graph is one for all its runs. Where these are calls with different indices, in several forwards,
    what comes back could belong to any.
    """
    forward, call = waiting[-1]
    if any(other != call for _, other in waiting):
        if any(other != forward for other, _ in waiting):
            return None
        waiting.pop()
    return call


# While a graph is traced.


class _Trace:
    """What is known of the graph that is being traced: the versions of its tensors, and which have been shown."""

    def __init__(self) -> None:
        self._output: Any = lambda: None
        self._versions: dict[int, int] = {}
        self._shown: set[Hashable] = set()

    def note_versions(self) -> None:
        """A layer is about to run: how often has every tensor been written into?"""
        output = self._begin()
        tracer, self._versions = output.current_tracer, {}
        while tracer is not None:
            for node in tracer.graph.nodes:
                if isinstance(fake := node.meta.get("example_value"), Tensor):
                    self._versions[id(fake)] = fake._version
            tracer = tracer.parent

    def look_back(self, place: _Place) -> None:
        """The operator just put into the graph: what it shows, and whether the layer wrote into it."""
        output = self._begin()
        node = next(reversed(output.graph.nodes))
        groups = [place.inputs, place.outputs] if len(node.args) > 2 else [place.inputs]
        for sights, nodes in zip(groups, node.args, strict=False):
            for i, one in enumerate(nodes):
                fake = one.meta["example_value"]
                key = (id(fake), fake._version)
                if sights is place.inputs and fake._version != self._versions.get(id(fake), 0):
                    place.overwritten = True
                sights[i] = _Sight(sights[i].path, key, key not in self._shown)
                self._shown.add(key)

    def _begin(self) -> Any:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        output = InstructionTranslator.current_tx().output
        if self._output() is not output:
            self._output, self._shown, self._versions = weakref.ref(output), set(), {}
        return output


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
    return module is compiled.taps._root and _traceable() == ""


@_constant
def _is_site(compiled: CompiledTaps, module: nn.Module) -> bool:
    site = compiled.taps._sites.get(id(module))
    if site is None:
        return False
    if why := _traceable():
        compiled.why[site.name] = why
    return not why


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
    compiled.trace.look_back(_PLACES[number])


@_constant
def _number(compiled: CompiledTaps, module: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> int:
    """A new number for this place in the graph."""
    _guard_owner()
    number = next(_NUMBERS)
    sights = ([_Sight(path, None, True) for path in paths] for paths in (inputs, outputs))
    _PLACES[number] = _Place(compiled, compiled.taps._sites.get(id(module)), *sights)
    return number


def _traceable() -> str:
    """Why nothing may be put into the graph here, or an empty string."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    if torch.compiler.is_exporting() if hasattr(torch.compiler, "is_exporting") else False:
        return "it ran inside torch.export"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "the layer ran inside a torch.func transform"
    tracer = InstructionTranslator.current_tx().output.current_tracer
    while tracer is not None and tracer.parent is not None:
        name = str(tracer.source_target)
        if name not in _CHECKPOINTS:
            return f"it ran inside {name} inside torch.compile"
        tracer = tracer.parent
    _define_operators()
    return ""


def _guard_owner() -> None:
    """Tie the frame that is compiled to its own modules.

    Its code may be shared by many instances (the blocks of a transformer, compiled one by one). By the identity of
    ``self`` dynamo counts each one's graphs for itself, and its limit on recompilations is not reached.
    """
    from torch._dynamo.guards import GuardBuilder, install_guard
    from torch._dynamo.source import LocalSource
    from torch._dynamo.symbolic_convert import InstructionTranslator

    frame = InstructionTranslator.current_tx().output.root_tx
    for name in frame.f_code.co_varnames[: frame.f_code.co_argcount]:
        if isinstance(frame.f_locals.get(name), nn.Module):
            install_guard(LocalSource(name, is_input=True).make_guard(GuardBuilder.ID_MATCH))


# The operators.


@functools.cache
def _define_operators() -> torch.library.Library:
    """Define the operators, once; the library lives as long as the process."""
    from torch._higher_order_ops.effects import _register_effectful_op
    from torch._library.effects import EffectType

    library = torch.library.Library("bnprobe", "DEF")
    bodies: dict[str, Callable[..., None]] = {
        "begins": _begins,
        "entered": _entered,
        "left": _left,
        "expects": _nothing,
        "graded": _graded,
        "ends": _ends,
    }
    for schema in _SCHEMAS:
        name = schema.partition("(")[0]
        library.define(schema, tags=_TAGS)
        library.impl(name, bodies[name], "CompositeExplicitAutograd")
        library.impl(name, _nothing, "Meta")
        operator = getattr(torch.ops.bnprobe, name).default
        if name == "expects":
            library.impl(name, _expects, "Autograd")
            torch.fx.node.has_side_effect(operator)
        else:
            library.impl(name, torch.library.fallthrough_kernel, "Autograd")
            _register_effectful_op(operator, EffectType.ORDERED)
    return library


def _begins(_: Sequence[Tensor], number: int) -> None:
    if (place := _PLACES.get(number)) is not None:
        place.taps.begins()


def _ends(_: Sequence[Tensor], number: int) -> None:
    if (place := _PLACES.get(number)) is not None:
        place.taps.ends()


def _entered(inputs: Sequence[Tensor], number: int) -> None:
    if (place := _PLACES.get(number)) is not None:
        _tell(place, place.taps.entered, inputs)


def _left(inputs: Sequence[Tensor], outputs: Sequence[Tensor], buffers: Sequence[Tensor], number: int) -> None:
    if (place := _PLACES.get(number)) is not None:
        _tell(place, place.taps.left, inputs, outputs, buffers)


def _graded(gradient: Tensor, which: int, number: int) -> None:
    if (place := _PLACES.get(number)) is not None:
        _tell(place, place.taps.graded, gradient, which)


def _expects(outputs: Sequence[Tensor], number: int) -> None:
    """Called by autograd: while AOT traces forward and backward together, or each time where nothing traces them."""
    for which, output in enumerate(outputs):
        if output.requires_grad and torch.is_grad_enabled():
            output.register_hook(functools.partial(_pass_on, which=which, number=number))  # type: ignore[no-untyped-call]  # torch's own


def _pass_on(gradient: Tensor, *, which: int, number: int) -> None:
    torch.ops.bnprobe.graded(gradient, which, number)


def _nothing(*_: Any) -> None:
    """What an operator does to shapes."""


def _tell(place: _Place, tell: Callable[..., None], *shown: Any) -> None:
    """What a hook does around its listener: somebody's training is worth more than a measurement."""
    taps, site = place.taps.taps, place.site
    if site is None or not taps._awake():
        return
    try:
        with torch.no_grad(), _undisturbed():
            tell(place, site, *shown)
    except Exception as error:
        taps._listener.failed(site, error)
