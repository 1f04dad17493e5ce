"""Places in compiled graphs: what is known of each while dynamo traces, kept for when the graph runs."""

import dataclasses
import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from bnprobe.hooks.sites import Site
from bnprobe.hooks.taps import Call

if TYPE_CHECKING:
    from bnprobe.hooks.compiled import CompiledTaps

__all__ = ["PLACES", "Place", "Sight", "Trace", "guard_owner", "whose", "why_not_here"]

# Operators in whose body dynamo traces a checkpointed region; others (cond, scan, vmap) know no operator with effects.
_CHECKPOINTS = ("tag_activation_checkpoint", "wrap_activation_checkpoint")


class Sight(NamedTuple):
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
class Place:
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
    inputs: list[Sight]
    outputs: list[Sight]
    overwritten: bool = False
    step: int = -1
    waiting: list[tuple[int, Call]] = dataclasses.field(default_factory=list)


PLACES: dict[int, Place] = {}  # from a trace to the taps' end


def whose(waiting: list[tuple[int, Call]]) -> Call | None:
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


class Trace:
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

    def look_back(self, place: Place) -> None:
        """The operator just put into the graph: what it shows, and whether the layer wrote into it."""
        output = self._begin()
        node = next(reversed(output.graph.nodes))
        groups = [place.inputs, place.outputs] if len(node.args) > 2 else [place.inputs]
        for sights, nodes in zip(groups, node.args, strict=False):
            for i, one in enumerate(nodes):
                fake = one.meta["example_value"]  # dynamo's stand-in: writing into it is writing into the tensor
                key = (id(fake), fake._version)
                if sights is place.inputs and fake._version != self._versions.get(id(fake), 0):
                    place.overwritten = True
                sights[i] = Sight(sights[i].path, key, key not in self._shown)
                self._shown.add(key)

    def _begin(self) -> Any:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        output = InstructionTranslator.current_tx().output
        if self._output() is not output:
            self._output, self._shown, self._versions = weakref.ref(output), set(), {}
        return output


def why_not_here() -> str:
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
    return ""


def guard_owner() -> None:
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
