"""Listening to a model's layers; the only file that registers hooks.

The hooks are PyTorch's *global* module hooks, filtered by module identity: nothing is put on the model itself. So a
``deepcopy`` or a pickle of a model that is listened to is a plain model, fast paths that are switched off by hooks on a
layer stay on, and taking a tap off leaves no trace.

A tap reads. It keeps no graph alive (tensors are handed on while the hook runs and then let go), draws from no global
random stream and never waits for the device.
"""

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from bnprobe.hooks.flow import Flow
from bnprobe.hooks.graphs import forget_graphs, run_eagerly
from bnprobe.hooks.sites import Site

__all__ = ["Call", "Listener", "OptimizerTaps", "Seen", "Taps", "tensors_in", "when_graded", "why_unreadable"]


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One call of one layer: which layer, the how many-eth of this forward, whether the root was training."""

    site: Site
    index: int
    training: bool


class Listener(Protocol):
    """What a tap reports to."""

    def listening(self) -> bool:
        """Whether anything is wanted now; asked at every call, so it must be quick."""

    def forward_begins(self, training: bool) -> None:
        """The root's forward begins."""

    def about_to_change(self, call: Call, inputs: list["Seen"]) -> Any:
        """A layer will overwrite its inputs: the last chance to read them. What is returned comes with ``called``."""

    def called(self, call: Call, inputs: list["Seen"] | None, outputs: list["Seen"], read_before: Any) -> None:
        """A layer has run; where its inputs were overwritten they are None, and ``read_before`` was made of them."""

    def graded(self, call: Call, place: str, gradient: Tensor) -> None:
        """The gradient at an output of a layer has arrived."""

    def failed(self, site: Site, error: Exception) -> None:
        """Reading a layer failed; nothing of it may reach the training."""


@dataclasses.dataclass(slots=True)
class Seen:
    """A tensor at a place.

    Attributes:
        place: ``input``, ``output.1`` ...
        tensor: the tensor.
        memory: None, or what the listener remembers of this very tensor since another layer showed it.
        buffers: None, or the layer's buffers where a compiled graph shows them instead of its module.
    """

    place: str
    tensor: Tensor
    memory: Any = None
    buffers: Mapping[str, Tensor] | None = None


class Taps:
    """Hooks on a set of layers, until :meth:`remove`.

    Args:
        sites: the layers.
        root: the module whose forward is one pass through the model.
        listener: who is told.
    """

    def __init__(self, sites: Iterable[Site], root: nn.Module, listener: Listener) -> None:
        self._sites = {id(site.module): site for site in sites}
        self._root, self._listener = root, listener
        self._inside, self._training, self._ran_compiled = False, root.training, False
        self._calls: dict[Site, int] = {}
        self._forwards = 0
        self._again: dict[Site, int] = {}
        self._backward = -1
        self._versions: dict[Site, list[int]] = {}
        self._before_change: dict[Site, tuple[Any, list[Any]]] = {}
        self._known = _Identities()
        self._leaves: list[RemovableHandle] = []
        self.flow = Flow()
        from bnprobe.hooks.compiled import CompiledTaps  # which builds on this file

        self._compiled: CompiledTaps | None = CompiledTaps(self)
        run_eagerly(Taps._before, Taps._after)
        forget_graphs(root)
        self._unseen = self._compiled.why
        self._handles = [register_module_forward_pre_hook(self._before)]
        try:
            self._handles.append(register_module_forward_hook(self._after, with_kwargs=True))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take all hooks off; doing it twice does no harm."""
        for handle in (*self._handles, *self._leaves):
            handle.remove()
        self._handles, self._leaves = [], []
        if self._compiled is not None:
            self._compiled.remove()
            self._compiled = None  # and its graphs are dropped with it
        self._known.forget()
        self._before_change.clear()
        self.flow.forget()

    def why_silent(self, site: Site, observed: bool) -> str:
        """Why nothing, or where ``observed`` not everything, of a layer was shown to the listener."""
        if observed or site.name in self._unseen:
            return self._unseen.get(site.name, "")
        if self._ran_compiled or self._root._compiled_call_impl is not None:
            return "it ran inside torch.compile"
        return "its forward was not called"

    def step_done(self) -> None:
        """A training step is over: calls count anew, and hooks on leaf tensors go."""
        for handle in self._leaves:
            handle.remove()
        self._leaves = []
        self._again.clear()
        if self._compiled is not None:
            self._compiled.step_done()
        if not self._inside:
            self._known.forget()

    def remember(self, tensor: Tensor, memory: Any) -> None:
        """Keep ``memory`` for when another layer shows this very tensor, unchanged."""
        self._known.keep(tensor, memory)

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():
            if self._compiled is not None:
                self._compiled.before(module, args)
            return
        if module._modules.get("_orig_mod") is self._root:
            self._ran_compiled = True
        if module is self._root and not _recomputing():
            self._begin()
        site = self._sites.get(id(module))
        if site is not None and self._awake() and not _recomputing():
            try:
                with _undisturbed():
                    self._prepare(site, args)
            except Exception as error:
                self._listener.failed(site, error)

    def _prepare(self, site: Site, args: tuple[Any, ...]) -> None:
        """Before a layer runs: one that says that it works in place is read now, of others a write will show."""
        self._versions[site] = _versions(args)
        if getattr(site.module, "inplace", False) is True:
            inputs = self._show("input", enumerate(args))
            nodes = [one.tensor.grad_fn for one in inputs]
            self._before_change[site] = (self._listener.about_to_change(self._call(site, 0), inputs), nodes)

    def _awake(self) -> bool:
        return self._listener.listening() and not torch._C._is_tracing()

    def _begin(self) -> None:
        self._inside, self._training = True, self._root.training
        self._forwards += 1
        self._calls.clear()
        self._known.forget()
        self.flow.forget()
        self._listener.forward_begins(self._training)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling():
            if self._compiled is not None:
                self._compiled.after(module, args, kwargs, output)
            return
        site = self._sites.get(id(module))
        if site is not None and self._awake():
            try:
                with _undisturbed():
                    self._tell(site, args, kwargs, output)
            except Exception as error:  # somebody's training is worth more than a measurement
                self._listener.failed(site, error)
        if module is self._root and not _recomputing():
            self._end()

    def _end(self) -> None:
        self._inside = False
        self.flow.settle()

    def _tell(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        recomputing = _recomputing()
        call = self._call(site, self._count(site, recomputing))
        outputs = self._show("output", (("", output),))
        if not recomputing:  # under activation checkpointing the first pass has been told already
            read_before, nodes = self._before_change.pop(site, (None, None))
            inputs, versions = None, self._versions.pop(site, None)
            if nodes is None and versions != _versions(args):
                nodes = []  # the layer wrote into its input, and what was there is gone
            if nodes is None:
                inputs = self._show("input", (*enumerate(args), *kwargs.items()))
                nodes = [one.tensor.grad_fn for one in inputs]
            if self._inside:
                self.flow.saw(site.name, nodes, [one.tensor.grad_fn for one in outputs])
            self._listener.called(call, inputs, outputs, read_before)
        self._wait_for_gradients(call, outputs)

    def _call(self, site: Site, index: int) -> Call:
        return Call(site, index, self._training if self._inside else self._root.training)

    def _count(self, site: Site, recomputing: bool) -> int:
        if not (self._inside or recomputing):
            return 0  # called past the root: no forward to count within
        if recomputing and self._backward != (backward := torch._C._current_graph_task_id()):
            self._backward = backward
            self._again.clear()
        counts = self._again if recomputing else self._calls
        counts[site] = counts.get(site, -1) + 1
        return counts[site]

    def _show(self, place: str, values: Iterable[tuple[Any, Any]]) -> list[Seen]:
        found = [one for key, value in values for one in tensors_in(value, str(key))]
        find = self._known.find
        return [Seen(f"{place}.{path}" if i else place, tensor, find(tensor)) for i, (path, tensor) in enumerate(found)]

    def _wait_for_gradients(self, call: Call, outputs: list[Seen]) -> None:
        for one in outputs:
            if not one.tensor.requires_grad or not torch.is_grad_enabled():
                continue
            place = one.place.replace("output", "grad_output", 1)
            handle = when_graded(one.tensor, self._gradient_reader(call, place))
            if one.tensor.is_leaf:  # a parameter outlives its graph: this hook must be taken off by hand
                self._leaves.append(handle)

    def _gradient_reader(self, call: Call, place: str) -> Callable[[Tensor], None]:
        listener = self._listener

        def read(gradient: Tensor) -> None:
            if not listener.listening():
                return
            try:
                with _undisturbed():
                    listener.graded(call, place, gradient)
            except Exception as error:
                listener.failed(call.site, error)

        return read


class OptimizerTaps:
    """Hooks before and after an optimizer's ``step()``, until :meth:`remove`.

    Where ``step`` is given a closure, the gradients are made inside it: then ``before`` is called after the step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, before: Callable[[], None], after: Callable[[], None]) -> None:
        def pre(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not _has_closure(args, kwargs):
                before()

        def post(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if _has_closure(args, kwargs):
                before()
            after()

        self._handles = [optimizer.register_step_pre_hook(pre), optimizer.register_step_post_hook(post)]

    def remove(self) -> None:
        """Take the hooks off; doing it twice does no harm."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Identities:
    """What was remembered of tensors, found again by identity as long as they live and nobody writes into them."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[Tensor], int, Any]] = {}

    def keep(self, tensor: Tensor, memory: Any) -> None:
        if not tensor.is_inference():  # inference tensors have no version to tell a write by
            self._kept[id(tensor)] = (weakref.ref(tensor), tensor._version, memory)

    def find(self, tensor: Tensor) -> Any:
        kept = self._kept.get(id(tensor))
        if kept is None or kept[0]() is not tensor or kept[1] != tensor._version:
            return None
        return kept[2]

    def forget(self) -> None:
        self._kept.clear()


def tensors_in(value: Any, path: str = "", depth: int = 8) -> Iterator[tuple[str, Tensor]]:
    """Tensors in tuples, lists, mappings and dataclasses, each with its path (``1.0``, ``hidden``).

    Structures are followed ``depth`` levels down: one may contain itself.
    """
    if isinstance(value, Tensor):
        yield path, value
        return
    for key, inner in _items(value) if depth else ():
        yield from tensors_in(inner, f"{path}.{key}" if path else str(key), depth - 1)


def why_unreadable(tensor: Tensor) -> str:
    """Why a tensor is not measured, or an empty string where it can be."""
    if type(tensor) is not Tensor and type(tensor) is not nn.Parameter and type(tensor) is not nn.Buffer:
        return f"{type(tensor).__name__} is no plain tensor"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "the layer ran inside a torch.func transform"
    if not tensor.dtype.is_floating_point:
        return f"{str(tensor.dtype).removeprefix('torch.')} values"
    if tensor.layout is not torch.strided:
        return f"{str(tensor.layout).removeprefix('torch.')} layout"
    if tensor.device.type == "meta":
        return "meta tensors hold no values"
    return "no values" if tensor.numel() == 0 else ""


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        # A packed sequence's other fields count and order; they are no activations.
        fields = ("data",) if isinstance(value, nn.utils.rnn.PackedSequence) else value._fields
        return [(name, getattr(value, name)) for name in fields]
    if isinstance(value, tuple | list):
        return enumerate(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    return ()


def _versions(args: tuple[Any, ...]) -> list[int]:
    """How often each tensor argument has been written into; inference tensors do not count."""
    return [one._version for one in args if isinstance(one, Tensor) and not one.is_inference()]


def when_graded(tensor: Tensor, read: Callable[[Tensor], None]) -> RemovableHandle:
    """Have a tensor's gradient read when it arrives."""
    handle: RemovableHandle = tensor.register_hook(read)  # type: ignore[no-untyped-call]  # torch's own
    return handle


def _has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return kwargs.get("closure") is not None or (len(args) > 1 and callable(args[1]))


def _undisturbed() -> AbstractContextManager[Any]:
    """Keeps what we do out of sight of a user's dispatch modes (selective checkpointing, operation counters)."""
    return _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext()


def _recomputing() -> bool:
    """Whether a backward pass is running in this thread, as when a checkpointed forward is run again."""
    return bool(torch._C._current_graph_task_id() != -1)
