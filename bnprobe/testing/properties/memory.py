"""Where values lie in memory, and what a layer may write into."""

from typing import Any

import torch
from hypothesis import strategies as st

from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.properties.broken import compare, require_equal
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.strategies.layouts import LAYOUTS
from bnprobe.testing.subject import Subject

__all__ = ["input_not_written", "layout_does_not_matter"]

_OTHER = tuple(name for name in LAYOUTS if name != "contiguous")


def _each_layout(subject: Subject) -> list[dict[str, Any]]:
    """One batch in each layout, in training mode, of as many axes as the layer takes."""
    shape, channels = max(subject.accepted, key=lambda pair: (len(pair[0]) <= 4, len(pair[0]), pair[1]))
    sizes = tuple(one if isinstance(one, int) else {"N": 4, "C": channels}.get(one, 3) for one in shape)
    axis = tuple(shape).index("C")
    return [{"x": Batch(sizes, "gaussian", 1, layout=one, axis=axis), "training": True} for one in _OTHER]


@law(x=lambda subject: subject.inputs(layouts=_OTHER), training=st.booleans(), examples=_each_layout)
def layout_does_not_matter(subject: Subject, x: Batch, training: bool) -> None:
    """Channels-last, transposed and strided inputs give outputs, gradients and buffers of contiguous ones."""
    one = subject.specimen(x, training=training)
    other = subject.specimen(one.x.detach().contiguous(), training=training, seed=x.seed)
    y, plain = one.module(one.x), other.module(other.x)
    why = f"of both, {one.tolerance.why}"
    compare("output", y, plain, 2 * one.tolerance.output, why)
    g = one.cotangent(x.seed)
    (got,), (want,) = torch.autograd.grad(y, one.x, g), torch.autograd.grad(plain, other.x, g)
    compare("gradient of x", got, want, 2 * one.tolerance.input_gradient(g), why)
    after, usual = one.parts.state(), other.parts.state()
    if after.mean is not None and after.variance is not None and usual.mean is not None and usual.variance is not None:
        size = float(wide(one.x).abs().max()) + 1
        bound = 2 * (x_per_channel(one.x) + 8) * (1 + size) * one.tolerance.u
        compare("running mean", after.mean, usual.mean, bound * size, "(m + 8) u max|x|")
        compare("running variance", after.variance, usual.variance, bound * size**2, "(m + 8) u max|x|^2")


def x_per_channel(x: torch.Tensor) -> int:
    """Values of one channel."""
    return x.numel() // x.shape[1]


@law(x=lambda subject: subject.inputs(layouts=tuple(LAYOUTS)), training=st.booleans())
def input_not_written(subject: Subject, x: Batch, training: bool) -> None:
    """Neither forward nor backward changes the input, or the gradient that comes in."""
    one = subject.specimen(x, training=training)
    value = one.x.detach().clone()
    hidden = one.x * 1  # what a layer may write into, as no leaf is
    g = one.cotangent(x.seed)
    before = g.clone()
    y = one.module(hidden)
    require_equal("input after the forward", hidden, value, "the layer must not write into it")
    torch.autograd.grad(y, one.x, g)
    require_equal("input after the backward", hidden, value, "the layer must not write into it")
    require_equal("gradient that came in", g, before, "the layer must not write into it")
