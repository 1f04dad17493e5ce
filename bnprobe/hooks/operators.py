"""The operators that compiled graphs call.

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
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bnprobe.hooks.places import PLACES, Place
from bnprobe.hooks.taps import _undisturbed, when_graded

__all__ = ["define_operators"]

_SCHEMAS = (
    "begins(Tensor[] anchor, int number) -> ()",
    "entered(Tensor[] inputs, int number) -> ()",
    "left(Tensor[] inputs, Tensor[] outputs, Tensor[] buffers, int number) -> ()",
    "expects(Tensor[] outputs, int number) -> ()",
    "graded(Tensor gradient, int which, int number) -> ()",
    "ends(Tensor[] anchor, int number) -> ()",
)
_TAGS = tuple(getattr(torch.Tag, name) for name in ("flexible_layout", "cudagraph_unsafe") if hasattr(torch.Tag, name))


@functools.cache
def define_operators() -> torch.library.Library:
    """Define the operators, once; the library lives as long as the process."""
    from torch._higher_order_ops.effects import _register_effectful_op
    from torch._library.effects import EffectType

    library = torch.library.Library("bnprobe", "DEF")  # type: ignore[no-untyped-call]  # torch's own
    bodies: dict[str, Callable[..., None]] = {
        "begins": _begins,
        "entered": _entered,
        "left": _left,
        "expects": _nothing,
        "graded": _graded,
        "ends": _ends,
    }
    define: Callable[..., None] = library.define
    implement: Callable[..., None] = library.impl
    for schema in _SCHEMAS:
        name = schema.partition("(")[0]
        define(schema, tags=_TAGS)
        implement(name, bodies[name], "CompositeExplicitAutograd")
        implement(name, _nothing, "Meta")
        operator = getattr(torch.ops.bnprobe, name).default
        if name == "expects":
            implement(name, _expects, "Autograd")
            torch.fx.node.has_side_effect(operator)
        else:
            implement(name, torch.library.fallthrough_kernel, "Autograd")
            _register_effectful_op(operator, EffectType.ORDERED)
    return library


def _begins(_: Sequence[Tensor], number: int) -> None:
    if (place := PLACES.get(number)) is not None:
        place.taps.begins()


def _ends(_: Sequence[Tensor], number: int) -> None:
    if (place := PLACES.get(number)) is not None:
        place.taps.ends()


def _entered(inputs: Sequence[Tensor], number: int) -> None:
    if (place := PLACES.get(number)) is not None:
        _tell(place, place.taps.entered, inputs)


def _left(inputs: Sequence[Tensor], outputs: Sequence[Tensor], buffers: Sequence[Tensor], number: int) -> None:
    if (place := PLACES.get(number)) is not None:
        _tell(place, place.taps.left, inputs, outputs, buffers)


def _graded(gradient: Tensor, which: int, number: int) -> None:
    if (place := PLACES.get(number)) is not None:
        _tell(place, place.taps.graded, gradient, which)


def _expects(outputs: Sequence[Tensor], number: int) -> None:
    """Called by autograd: while AOT traces forward and backward together, or each time where nothing traces them."""
    for which, output in enumerate(outputs):
        if output.requires_grad and torch.is_grad_enabled():
            when_graded(output, functools.partial(_pass_on, which=which, number=number))


def _pass_on(gradient: Tensor, *, which: int, number: int) -> None:
    torch.ops.bnprobe.graded(gradient, which, number)


def _nothing(*_: Any) -> None:
    """What an operator does to shapes."""


def _tell(place: Place, tell: Callable[..., None], *shown: Any) -> None:
    """What a hook does around its listener: somebody's training is worth more than a measurement."""
    taps, site = place.taps.taps, place.site
    if site is None or not taps._awake():
        return
    try:
        with torch.no_grad():
            _undisturbed(tell, place, site, *shown)
    except Exception as error:
        taps._listener.failed(site, error)
