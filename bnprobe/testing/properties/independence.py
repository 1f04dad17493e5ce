"""Which values act on which, and which orders do not matter."""

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from bnprobe.testing.inputs import Inputs
from bnprobe.testing.likes import ACROSS_SAMPLES, PER_SAMPLE, Like
from bnprobe.testing.properties.broken import NotApplicable, compare, require
from bnprobe.testing.properties.buffers import running_bounds
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch, tensor
from bnprobe.testing.subject import Subject

__all__ = [
    "batch_mates_do_not_matter",
    "channel_order",
    "channels_independent",
    "position_order",
    "sample_order",
]

_BY_CHANNEL: tuple[Like, ...] = ("batch_norm", "batch_renorm", "ghost_batch_norm", "instance_norm")
_ORDERED: tuple[Like, ...] = ("ghost_batch_norm",)


def _order(n: int, seed: int) -> Tensor:
    """Seed 0 reverses; others are random."""
    return torch.arange(n).flip(0) if seed == 0 else torch.from_numpy(np.random.default_rng(seed).permutation(n))


def _moved(subject: Subject, x: Batch, training: bool, axis: int, order: Tensor) -> None:
    """Outputs of an input whose values are put in another order along an axis, put back, against the output."""
    one = subject.specimen(x, training=training)
    value = tensor(x, subject.device)
    other = subject.specimen(value.index_select(axis, order.to(value.device)), training=training, seed=x.seed)
    want = one.module(one.x).index_select(axis, order.to(value.device))
    bound = 2 * one.tolerance.output.index_select(axis, order)
    compare("output in the new order", other.module(other.x), want, bound, f"of both, {one.tolerance.why}")


@law(
    likes=tuple(like for like in (*ACROSS_SAMPLES, *PER_SAMPLE) if like not in _ORDERED),
    x=Inputs(samples=(2, 8)),
    training=st.booleans(),
    order=st.integers(0, 9),
    typical={"order": (0,)},
)
def sample_order(subject: Subject, x: Batch, training: bool, order: int) -> None:
    """Samples in another order give the same outputs in that order, in both modes. Not of ghost batches."""
    _moved(subject, x, training, 0, _order(x.shape[0], order))


@law(
    likes=(*ACROSS_SAMPLES, "group_norm", "instance_norm"),
    needs=("positions",),
    x=Inputs(shapes=lambda shape: len(shape) > 2),
    training=st.booleans(),
    order=st.integers(0, 9),
    typical={"order": (0,)},
)
def position_order(subject: Subject, x: Batch, training: bool, order: int) -> None:
    """Positions in another order give the same outputs in that order: where a value stands does not matter."""
    _moved(subject, x, training, len(x.shape) - 1, _order(x.shape[-1], order))


@law(
    likes=_BY_CHANNEL,
    x=Inputs(channels=lambda n: n > 1),
    training=st.booleans(),
    factor=st.sampled_from((2.0, -100.0, float("nan"))),
    typical={"factor": (-100.0, float("nan"))},
)
def channels_independent(subject: Subject, x: Batch, training: bool, factor: float) -> None:
    """What happens in one channel does not reach another, NaN included: outputs, gradients, running statistics."""
    outcomes = []
    for each in (1.0, factor):
        value = tensor(x, subject.device).clone()
        value[:, 0] = value[:, 0] * each + (0 if each == 1 else 1)
        one = subject.specimen(value, training=training, seed=x.seed)
        y = one.module(one.x)
        (gradient,) = torch.autograd.grad(y, one.x, one.cotangent(x.seed))
        after = one.parts.state()
        outcomes.append((y, gradient, after, one))
    (y, gradient, state, one), (other_y, other_gradient, other_state, _) = outcomes
    why = f"of both, {one.tolerance.why}"
    g = one.cotangent(x.seed)
    compare("output of other channels", other_y[:, 1:], y[:, 1:], 2 * one.tolerance.output[:, 1:], why)
    bound = 2 * one.tolerance.input_gradient(g)[:, 1:]
    compare("gradient of other channels", other_gradient[:, 1:], gradient[:, 1:], bound, why)
    of_mean, of_variance, why = running_bounds(one, [one.x], one.state)
    if state.mean is not None and other_state.mean is not None:
        compare("running mean of other channels", other_state.mean[1:], state.mean[1:], 2 * of_mean[1:], why)
    if state.variance is not None and other_state.variance is not None:
        what = f"running {one.settings.running} of other channels"
        compare(what, other_state.variance[1:], state.variance[1:], 2 * of_variance[1:], why)
    if factor != factor:
        require(bool(other_y[:, 0].isnan().all()), "NaN of a channel is lost: the channel's output is a number again")


@law(
    likes=("batch_norm", "batch_renorm", "ghost_batch_norm", "instance_norm"),
    x=Inputs(channels=lambda n: n > 1),
    training=st.booleans(),
)
def channel_order(subject: Subject, x: Batch, training: bool) -> None:
    """Channels in another order, with their parameters and running statistics, give the outputs in that order."""
    one = subject.specimen(x, training=training)
    value = tensor(x, subject.device).flip(1)
    other = subject.specimen(value, training=training, seed=x.seed)
    with torch.no_grad():
        for tensor_ in (other.parts.gamma, other.parts.beta, other.parts.mean, other.parts.variance):
            if tensor_ is not None:
                tensor_.copy_(tensor_.reshape(-1).flip(0).reshape(tensor_.shape))
    bound = 2 * one.tolerance.output
    compare("output", other.module(other.x).flip(1), one.module(one.x), bound, f"of both, {one.tolerance.why}")


@law(
    x=Inputs(samples=(2, 8)), training=st.booleans(), factor=st.sampled_from((3.0, -100.0)), typical={"factor": (3.0,)}
)
def batch_mates_do_not_matter(subject: Subject, x: Batch, training: bool, factor: float) -> None:
    """In evaluation mode, and per-sample layers in training mode too, a sample's output is the same in any batch.

    Other samples are changed, and left out. Layers across samples without running statistics couple them in both modes.
    """
    across = subject.like in ACROSS_SAMPLES
    if across and "running statistics" not in subject.traits:
        raise NotApplicable("without running statistics the samples act on each other in evaluation mode too")
    training = training and not across
    one = subject.specimen(x, training=training)
    want = one.module(one.x)[:1]
    bound = 2 * one.tolerance.output[:1]
    changed = tensor(x, subject.device).clone()
    changed[1:] = factor * changed[1:] + 1
    ways = {"with other mates": changed, "alone": changed[:1]}
    if one.law.values.x_hat.shape[1] == 1:
        ways.pop("alone")  # torch's group norm refuses one value a group of one sample, and takes it of several
    for what, value in ways.items():
        other = subject.specimen(value, training=training, seed=x.seed)
        compare(f"output {what}", other.module(other.x)[:1], want, bound, f"of both, {one.tolerance.why}")
