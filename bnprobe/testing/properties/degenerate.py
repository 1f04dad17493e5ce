"""Batches that have no variance, or no values."""

import torch
from hypothesis import strategies as st

from bnprobe.testing.inputs import Inputs
from bnprobe.testing.likes import ACROSS_SAMPLES, CENTRED
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.properties.broken import compare, require
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.subject import Subject

__all__ = ["constant_channels", "empty_batch", "one_value"]

_REFUSAL = (
    ValueError,
    RuntimeError,
    ZeroDivisionError,
    IndexError,
)  # ways of saying so


@law(likes=CENTRED, x=Inputs(("constant_channels",)))
def constant_channels(subject: Subject, x: Batch) -> None:
    """A constant channel comes out as beta, with a gradient of size |gamma| / sqrt(eps) and no NaN.

    Of layers that normalize several channels together, and batch renormalization, what the oracle says. Broken by a
    division by the standard deviation without eps, or by a backward that has an inverse cube of it.
    """
    one = subject.specimen(x)
    y, g = one.module(one.x), one.cotangent(x.seed)
    compare("output", y, one.law.y, one.tolerance.output, one.tolerance.why)
    (got,) = torch.autograd.grad(y, one.x, g)
    compare("gradient of x", got, one.law.gradients(g).x, one.tolerance.input_gradient(g), one.tolerance.why)


@law(training=st.booleans(), place=st.integers(0, 9), at_most=4, typical={"place": (0, 1, 2, 3)})
def empty_batch(subject: Subject, training: bool, place: int) -> None:
    """A batch without samples is refused, or comes out empty in its shape with buffers still finite."""
    shape, channels = subject.accepted[place % len(subject.accepted)]
    axis = tuple(shape).index("C")
    sizes = {"N": 0, "C": channels}
    x = torch.zeros([one if isinstance(one, int) else sizes.get(one, 3) for one in shape], device=subject.device)
    one = subject.specimen(Batch(tuple(x.shape), axis=axis), training=training)
    try:
        y = one.module(x)
    except _REFUSAL:
        return
    require(y.shape == x.shape, f"the output of a batch of shape {tuple(x.shape)} has the shape {tuple(y.shape)}")
    for name, buffer in one.module.named_buffers():
        require(bool(buffer.isfinite().all()), f"an empty batch makes the buffer {name} {buffer.tolist()}")


@law(
    likes=ACROSS_SAMPLES,
    place=st.integers(0, 9),
    seed=st.integers(0, 9),
    at_most=6,
    typical={"place": (0, 1, 2, 3), "seed": (1,)},
)
def one_value(subject: Subject, place: int, seed: int) -> None:
    """A training batch with one value a channel is refused with an error, or output and buffers stay finite.

    Its variance is 0, and its unbiased variance 0 / 0. A silent NaN in the buffers spoils every evaluation after it.
    """
    shape, channels = subject.accepted[place % len(subject.accepted)]
    sizes = tuple(one if isinstance(one, int) else channels if one == "C" else 1 for one in shape)
    one = subject.specimen(Batch(sizes, seed=seed, axis=tuple(shape).index("C")))
    try:
        y = one.module(one.x)
    except _REFUSAL:
        return
    require(bool(wide(y).isfinite().all()), f"the output is {y.reshape(-1).tolist()}")
    for name, buffer in one.module.named_buffers():
        require(bool(buffer.isfinite().all()), f"one value a channel makes the buffer {name} {buffer.tolist()}")
