"""Listening to a model's layers; the only file that registers hooks.

The hooks are PyTorch's *global* module hooks, filtered by module identity: nothing is put on the model itself. So a
``deepcopy`` or a pickle of a model that is listened to is a plain model, fast paths that are switched off by hooks on a
layer stay on, and taking a tap off leaves no trace.

A tap reads. It keeps no graph alive (tensors are handed on while the hook runs and then let go), draws from no global
random stream and never waits for the device.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._C import _current_graph_task_id as _graph_task
from torch._C import _is_tracing as _tracing
from torch._C import _len_torch_dispatch_stack as _modes
from torch._C._functorch import peek_interpreter_stack as _transforms
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.compiler import is_compiling
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from bnprobe.hooks.flow import Flow
from bnprobe.hooks.graphs import forget_graphs, run_eagerly
from bnprobe.hooks.identities import Identities
from bnprobe.hooks.recomputation import Recomputation
from bnprobe.hooks.sites import Site
from bnprobe.hooks.tensors import tensors_in, versions_of

__all__ = ["Call", "Listener", "OptimizerTaps", "Seen", "Taps", "when_graded"]


_NONE = -1  # the number of the backward pass where none is running


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of one layer: which layer, the how many-eth of this forward, whether the root was training.

    The same call of every forward is the same object.
    """

    site: Site
    index: int
    training: bool


class Listener(Protocol):
    """What a tap reports to."""

    @property
    def recording(self) -> bool:
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
        self._gentle = {site for site in self._sites.values() if site.leaves_its_input}
        self._root, self._listener = root, listener
        self._inside, self._training, self._ran_compiled = False, root.training, False
        self._beginning, self._handling = False, sys.exc_info()[1]
        self._all_calls: dict[tuple[Site, int, bool], Call] = {}
        self._readers: dict[tuple[Call, str], Callable[[Tensor], None]] = {}
        self._calls: dict[Site, int] = {}
        self._forwards = 0
        self._hidden: dict[Site, list[int]] = {}
        self._again = Recomputation()
        self._versions: dict[Site, list[int]] = {}
        self._before_change: dict[Site, tuple[Any, list[Any]]] = {}
        self._known = Identities()
        self.remember = self._known.keep  # something for when another layer shows this very tensor, unchanged
        self._leaves: list[RemovableHandle] = []
        self.flow = Flow()
        from bnprobe.hooks.compiled import CompiledTaps  # which builds on this file

        self._compiled: CompiledTaps | None = CompiledTaps(self)
        run_eagerly(Taps._before, Taps._after)
        forget_graphs(root)
        self._unseen = self._compiled.why
        self._handles = [register_module_forward_pre_hook(self._before)]
        try:
            self._handles.append(register_module_forward_hook(self._after, with_kwargs=True, always_call=True))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take all hooks off; doing it twice does no harm."""
        for handle in (*self._handles, *self._leaves):
            handle.remove()
            _global_forward_hooks_with_kwargs.pop(handle.id, None)  # torch (2.13) leaves this behind
        self._handles, self._leaves = [], []
        if self._compiled is not None:
            self._compiled.remove()
            self._compiled = None  # and its graphs are dropped with it
        self._known.forget()
        self._before_change.clear()
        self.flow.forget()

    def why_silent(self, site: Site, observed: bool, graded: bool) -> str:
        """Why nothing, or where ``observed`` not everything, of a layer was shown; ``graded``: gradients reached it."""
        if observed or site.name in self._unseen:
            return self._unseen.get(site.name, "")
        if self._ran_compiled or self._root._compiled_call_impl is not None:
            return "it ran inside torch.compile"
        if isinstance(site.module, torch.jit.ScriptModule):
            return "a scripted module runs outside of Python"
        return "its forward was not called through the module" if graded else "its forward was not called"

    def step_done(self) -> None:
        """A training step is over: calls count anew, and hooks on leaf tensors go."""
        for handle in self._leaves:
            handle.remove()
        self._leaves = []
        if self._compiled is not None:
            self._compiled.step_done()
        if not self._beginning:  # an interrupted forward ends here at the latest
            self._abandon()
            self._known.forget()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if is_compiling():
            if self._compiled is not None:
                self._compiled.before(module, args)
            return
        site = self._sites.get(id(module))
        if module is self._root:
            if not _recomputing() and not _tracing():
                self._begin()
        elif site is None:
            children = module._modules  # a scripted module's know no `get`
            if "_orig_mod" in children and children["_orig_mod"] is self._root:
                self._ran_compiled = True
            return
        if site is None or (site in self._gentle and not module._forward_pre_hooks):
            return
        if self._awake() and not _recomputing():
            try:
                _undisturbed(self._prepare, site, args)
            except Exception as error:
                self._listener.failed(site, error)

    def _prepare(self, site: Site, args: tuple[Any, ...]) -> None:
        """Before a layer runs: one that says that it works in place is read now, of others a write will show."""
        self._versions[site] = versions_of(args)
        if getattr(site.module, "inplace", False) is True:
            inputs = self._show("input", enumerate(args))
            nodes = [one.tensor.grad_fn for one in inputs]
            self._before_change[site] = (self._listener.about_to_change(self._call(site, 0), inputs), nodes)

    def _awake(self) -> bool:
        return self._listener.recording and not _tracing()

    def _begin(self) -> None:
        self._inside, self._training = True, self._root.training
        self._handling = sys.exc_info()[1]
        self._forwards += 1
        self._calls.clear()
        self._hidden.clear()
        self._known.forget()
        self._forget_pass()
        self._beginning = True
        try:
            self._listener.forward_begins(self._training)
        finally:
            self._beginning = False

    def _abandon(self) -> None:
        """A forward of the root that raised, or was interrupted, is over: its graph is let go."""
        self._inside = False
        self._forget_pass()

    def _forget_pass(self) -> None:
        self._before_change.clear()
        self._versions.clear()
        self.flow.forget()

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
        if is_compiling():
            if self._compiled is not None:
                self._compiled.after(module, args, kwargs, output)
            return
        # Its forward raised (torch 2.13 then calls without the keyword arguments): there is nothing to read.
        if output is None and sys.exc_info()[1] is not self._handling:
            if module is self._root and not _recomputing():
                self._abandon()
            return
        site = self._sites.get(id(module))
        if site is not None and self._listener.recording and not _tracing():
            try:
                if _modes() or _transforms() is not None:
                    _undisturbed(self._tell, site, args, kwargs, output)
                else:
                    self._tell(site, args, kwargs, output)
            except Exception as error:  # somebody's training is worth more than a measurement
                self._listener.failed(site, error)
        if module is self._root and not _recomputing():
            self._end()

    def _end(self) -> None:
        self._inside = False
        self.flow.settle()

    def _tell(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        known = self._known
        if type(output) is Tensor:
            outputs = [Seen("output", output, known.find(output) if id(output) in known.kept else None)]
        else:
            outputs = self._show("output", (("", output),))
        if _graph_task() != _NONE:  # under activation checkpointing the first pass has been told already
            if torch.is_grad_enabled():
                self._wait_for_gradients(self._recomputed(site), outputs)
            return
        call = self._call(site, self._count(site))
        graded = torch.is_grad_enabled()
        if not graded:
            self._hidden.setdefault(site, []).append(call.index)
        read_before, nodes = self._before_change.pop(site, (None, None)) if self._before_change else (None, None)
        inputs, versions = None, self._versions.pop(site, None) if self._versions else None
        if nodes is None and versions is not None and versions != versions_of(args):
            nodes = []  # the layer wrote into its input, and what was there is gone
        if nodes is None:
            if len(args) == 1 and not kwargs and type(args[0]) is Tensor:
                inputs = [Seen("input", args[0], known.find(args[0]))]
            else:
                inputs = self._show("input", (*enumerate(args), *kwargs.items()))
        if not self.flow.settled and self._inside:
            nodes = [one.tensor.grad_fn for one in inputs] if inputs is not None else nodes or []
            self.flow.saw(site.name, nodes, [one.tensor.grad_fn for one in outputs])
        self._listener.called(call, inputs, outputs, read_before)
        if graded:
            self._wait_for_gradients(call, outputs)

    def _call(self, site: Site, index: int) -> Call:
        key = (site, index, self._training if self._inside else self._root.training)
        call = self._all_calls.get(key)
        if call is None:
            call = self._all_calls[key] = Call(*key)
        return call

    def _count(self, site: Site) -> int:
        if not self._inside:
            return 0  # called past the root: no forward to count within
        self._calls[site] = self._calls.get(site, -1) + 1
        return self._calls[site]

    def _recomputed(self, site: Site) -> Callable[[], Call]:
        """Which call is being run again: known once its gradient comes, when all of its checkpoint has been run."""
        backward = _graph_task()
        if self._again.ended or self._again.backward != backward:
            self._again.end(self._hidden)
            self._again = Recomputation(backward)
        again, place = self._again, self._again.add(site)

        def call() -> Call:
            again.end(self._hidden)
            return self._call(site, again.indices[site][place])

        return call

    def _show(self, place: str, values: Iterable[tuple[Any, Any]]) -> list[Seen]:
        found = [one for key, value in values for one in tensors_in(value, str(key))]
        find = self._known.find
        return [Seen(f"{place}.{path}" if i else place, tensor, find(tensor)) for i, (path, tensor) in enumerate(found)]

    def _wait_for_gradients(self, call: Call | Callable[[], Call], outputs: list[Seen]) -> None:
        for one in outputs:
            if not one.tensor.requires_grad:
                continue
            read = self._readers.get((call, one.place)) if type(call) is Call else None
            if read is None:
                read = self._gradient_reader(call, "grad_" + one.place)
                if isinstance(call, Call):
                    self._readers[call, one.place] = read
            handle = when_graded(one.tensor, read)
            if one.tensor.is_leaf:  # a parameter outlives its graph: this hook must be taken off by hand
                self._leaves.append(handle)

    def _gradient_reader(self, which: Call | Callable[[], Call], place: str) -> Callable[[Tensor], None]:
        listener = self._listener

        def read(gradient: Tensor) -> None:
            call = which if isinstance(which, Call) else which()
            if not listener.recording:
                return
            try:
                if _modes() or _transforms() is not None:
                    _undisturbed(listener.graded, call, place, gradient)
                else:
                    listener.graded(call, place, gradient)
            except Exception as error:
                listener.failed(call.site, error)

        return read


class OptimizerTaps:
    """Hooks before and after an optimizer's ``step()``, until :meth:`remove`.

    Both are told whether ``step`` is given a closure: then the gradients are made inside of it.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, before: Callable[[bool], None], after: Callable[[bool], None]
    ) -> None:
        def pre(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            before(_has_closure(args, kwargs))

        def post(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            after(_has_closure(args, kwargs))

        self._handles = [optimizer.register_step_pre_hook(pre), optimizer.register_step_post_hook(post)]

    def remove(self) -> None:
        """Take the hooks off; doing it twice does no harm."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def when_graded(tensor: Tensor, read: Callable[[Tensor], None]) -> RemovableHandle:
    """Have a tensor's gradient read when it arrives."""
    handle: RemovableHandle = tensor.register_hook(read)  # type: ignore[no-untyped-call]  # torch's own
    return handle


def _has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return kwargs.get("closure") is not None or (len(args) > 1 and callable(args[1]))


def _undisturbed(tell: Callable[..., None], *shown: Any) -> None:
    """Tell out of sight of a user's dispatch modes (selective checkpointing, counters) and transforms."""
    if _modes():
        with _disable_current_modes():
            tell(*shown)
    elif _transforms() is not None:
        with temporarily_clear_interpreter_stack():
            tell(*shown)
    else:
        tell(*shown)


def _recomputing() -> bool:
    """Whether a backward pass is running in this thread, as when a checkpointed forward is run again."""
    return _graph_task() != _NONE
