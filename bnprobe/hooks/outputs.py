"""What layers are given and return in a forward of the measurement's own, and in which order they are entered."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bnprobe.errors import NotMeasuredError
from bnprobe.hooks.segments import outputs_of, plain_forward, unheard_in_python
from bnprobe.hooks.tensors import tensors_in, with_tensors

__all__ = ["calls_at", "inputs_at", "order_of_entry", "outputs_at"]

See = Callable[[str, int, Tensor, Any], None]


@contextmanager
def inputs_at(layers: Mapping[str, nn.Module], see: Callable[[str, int, Tensor], None]) -> Iterator[None]:
    """Inside, ``see(name, call, input)`` is told of each call of ``layers``, just before the layer works.

    The input is the first floating-point tensor among the layer's arguments, as the user's own hooks leave it; calls
    without one are not told. Calls of a layer are counted from 0 at the beginning of the block: with a block for each
    forward they are the calls of that forward. ``see`` may write into the layer's buffers; what it raises ends the
    forward. Whether there is a graph is the caller's choice. Compiled models run in Python, and attached probes hear
    nothing.

    Hooks come off when the block ends, also by an exception, and when it does not begin.
    """
    calls: Counter[str] = Counter()

    def tell(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = next((one for _, one in tensors_in([args, kwargs]) if one.is_floating_point()), None)
            if first is not None:
                see(name, calls[name], first)
            calls[name] += 1

        return hook

    handles = []
    with unheard_in_python():
        try:
            for name, module in layers.items():
                handles.append(module.register_forward_pre_hook(tell(name), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()


def outputs_at(
    root: nn.Module, layers: Mapping[str, nn.Module], run: Callable[[], Any]
) -> tuple[Any, dict[str, Tensor]]:
    """What ``run`` returns, and the outputs of the first call of each of ``layers`` in it, with their graph.

    In the order of the calls; layers that are not called, or return nothing differentiable, are missing. Writes into an
    output, as of in-place activations, come after what is kept.
    """
    kept: dict[str, Tensor] = {}
    called: set[str] = set()

    def keep(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, _: Any, output: Any) -> Any:
            if name in called:
                return None
            called.add(name)
            try:
                first = outputs_of(module, output)[0]
            except NotMeasuredError:
                return None
            if first.requires_grad:
                kept[name] = first
            return with_tensors(output, lambda one: one.clone() if one is first else one)

        return hook

    handles = []
    with plain_forward(root):
        try:
            for name, module in layers.items():
                handles.append(module.register_forward_hook(keep(name)))
            return run(), kept
        finally:
            for handle in handles:
                handle.remove()


def order_of_entry(layers: Mapping[str, nn.Module], run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What ``run`` returns, and the names of those of ``layers`` that it calls, in the order of their first calls.

    A module that contains others comes before them.
    """
    entered: dict[str, None] = {}

    def note(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, __: Any) -> None:
            entered.setdefault(name)

        return hook

    handles = []
    try:
        for name, module in layers.items():
            handles.append(module.register_forward_pre_hook(note(name), prepend=True))
        return run(), list(entered)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def calls_at(layers: Mapping[str, nn.Module], see: See) -> Iterator[None]:
    """While it lasts, every call of ``layers`` is shown: name, how many-eth call since it began, input, output.

    The input is the first tensor among the arguments, as it is when the layer is done (an in-place layer has written
    into it). A layer that raises is not shown.
    """
    calls = dict.fromkeys(layers, 0)

    def show(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
            first = next((one for _, one in tensors_in((arguments, keywords))), None)
            if first is not None:
                see(name, calls[name], first, output)
            calls[name] += 1

        return hook

    handles = []
    try:
        for layer, module in layers.items():
            handles.append(module.register_forward_hook(show(layer), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
