"""Where values lie in memory, and what a layer may write into."""

import torch
from hypothesis import strategies as st

from bnprobe.testing.inputs import Inputs
from bnprobe.testing.properties.broken import NotApplicable, compare, require_equal
from bnprobe.testing.properties.buffers import running_bounds
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.strategies.layouts import LAYOUTS
from bnprobe.testing.subject import Subject

__all__ = ["input_not_written", "layout_does_not_matter", "stride_of_one_sample"]

_OTHER = tuple(name for name in LAYOUTS if name != "contiguous")


@law(x=Inputs(layouts=_OTHER), training=st.booleans())
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
        of_mean, of_variance, why = running_bounds(one, [one.x], one.state)
        compare("running mean", after.mean, usual.mean, 2 * of_mean, why)
        compare("running variance", after.variance, usual.variance, 2 * of_variance, why)


@law(x=Inputs(layouts=tuple(LAYOUTS)), training=st.booleans())
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


@law(x=Inputs(samples=(1, 1), values=1, positions=4, shapes=lambda shape: len(shape) > 2), training=st.booleans())
def stride_of_one_sample(subject: Subject, x: Batch, training: bool) -> None:
    """The stride of an axis of length 1 means nothing: one sample, channels innermost, is what it is when contiguous.

    An image read as ``[H, W, C]`` becomes ``image.permute(2, 0, 1).unsqueeze(0)``: that is the memory of channels-last,
    with another stride of the first axis. Broken by kernels that ask for the layout in two ways with two answers.
    """
    if x.shape[0] != 1:
        raise NotApplicable("the layer takes no batch of one sample")
    one = subject.specimen(x, training=training)
    plain = one.x.detach()
    moved = plain[0].movedim(0, -1).contiguous().movedim(-1, 0).unsqueeze(0)
    other = subject.specimen(moved, training=training, seed=x.seed)
    g, why = one.cotangent(x.seed), f"of both, {one.tolerance.why}"
    y, want = other.module(other.x), one.module(one.x)
    compare("output", y, want, 2 * one.tolerance.output, why)
    (got,), (usual,) = torch.autograd.grad(y, other.x, g), torch.autograd.grad(want, one.x, g)
    compare("gradient of x", got, usual, 2 * one.tolerance.input_gradient(g), why)
