"""Running statistics."""

from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from bnprobe.testing.inputs import Inputs
from bnprobe.testing.likes import ACROSS_SAMPLES, Like
from bnprobe.testing.oracles.reference import reference, wide
from bnprobe.testing.oracles.running import after_batches, batch_moments
from bnprobe.testing.parts import State
from bnprobe.testing.properties.broken import NotApplicable, compare, require, require_equal
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.strategies.kinds import PLAIN
from bnprobe.testing.subject import Specimen, Subject
from bnprobe.testing.tolerance import Tolerance, roundoff, statistics_dtype

__all__ = [
    "batches_counted",
    "buffers_frozen_in_evaluation",
    "cumulative_average_without_momentum",
    "evaluation_uses_running_statistics",
    "momentum_zero_keeps_buffers",
    "running_bounds",
    "running_statistics",
]

_RUNNING: tuple[Like, ...] = ("batch_norm", "batch_renorm", "ghost_batch_norm", "instance_norm")
_HAS = ("running statistics",)
_SEVERAL = (*PLAIN, "constant_channels", "offset")


def _batches(one: Specimen, x: Batch, count: int) -> list[Tensor]:
    """The batch, and others of its kind."""
    return [replace(x, seed=x.seed + i).tensor(one.x.device) for i in range(count)]


def _compare_running(one: Specimen, batches: list[Tensor], momentum: float | None, start: State) -> None:
    settings = replace(one.settings, momentum=momentum)
    want = after_batches(start, batches, settings)
    got = one.parts.state()
    if want.mean is None or want.variance is None or got.mean is None or got.variance is None:
        raise NotApplicable("the layer has no running statistics")
    mean_bound, variance_bound, why = running_bounds(one, batches, start)
    compare("running mean", got.mean, want.mean, mean_bound, why)
    compare(f"running {settings.running}", got.variance, want.variance, variance_bound, why)


def running_bounds(one: Specimen, batches: list[Tensor], start: State) -> tuple[Tensor, Tensor, str]:
    """How far running mean and variance may be off: as the worst batch's statistics, and 4 u for each time they mix.

    A mean is off by m u max|x|, whatever the weights. An unbiased variance, which has no eps beside it, by
    m u (s^2 + s max|x|) by an updating formula, and by the square of the mean's error by two passes.
    """
    u, tiny = roundoff(statistics_dtype(one.x.dtype)), torch.finfo(one.x.dtype).tiny
    zeros = torch.zeros(one.x.shape[1], dtype=torch.float64)
    of_mean = zeros if start.mean is None else start.mean.abs()
    of_variance = zeros if start.variance is None else start.variance.abs()
    m, steps = max(x.numel() // x.shape[1] for x in batches), 0
    for x in batches:
        means, biased, unbiased = batch_moments(x, one.settings)
        steps += len(means)
        size = wide(x).movedim(1, 0).reshape(x.shape[1], -1).abs().amax(1) + means.abs().amax(0)
        absolute = unbiased + size * unbiased.sqrt() + (m + 8) * u * size**2
        if one.settings.running == "deviation":  # |sqrt(a) - sqrt(b)| <= |a - b| / sqrt(a)
            absolute = absolute / (biased + one.settings.eps).sqrt()
        of_mean, of_variance = torch.maximum(of_mean, size), torch.maximum(of_variance, absolute.amax(0))
    error = (m + 8 + 4 * steps) * u
    why = f"(m + 8 + 4 t) u with m = {m}, t = {steps}, u = {u:.1g}, times max|x| or s^2 + s max|x|"
    return error * of_mean + tiny, error * of_variance + tiny, why


@law(
    likes=_RUNNING,
    needs=_HAS,
    x=Inputs(_SEVERAL),
    batches=st.integers(1, 4),
    warm=st.booleans(),
    typical={"batches": (3,), "warm": (True, False)},
)
def running_statistics(subject: Subject, x: Batch, batches: int, warm: bool) -> None:
    """After each batch in training mode r becomes (1 - momentum) r + momentum v, v the mean and the unbiased variance.

    The variance that normalizes divides by m, the one that is kept by m - 1. Broken by either in the other's place, by
    momentum on the wrong side, by a wrong count m, by buffers that are updated twice or not at all.
    """
    one = subject.specimen(x, warm=warm)
    data = _batches(one, x, batches)
    for batch in data:
        one.module(batch)
    _compare_running(one, data, one.settings.momentum, one.state)


@law(
    likes=ACROSS_SAMPLES,
    needs=(*_HAS, "batch counter"),
    x=Inputs(),
    batches=st.integers(1, 4),
    typical={"batches": (3,)},
)
def batches_counted(subject: Subject, x: Batch, batches: int) -> None:
    """The counter of batches grows by 1 with each forward in training mode, and by 0 in evaluation mode.

    Ghost batches that enter one after the other count each. (torch's instance norm has a counter, and leaves it at 0.)
    """
    one = subject.specimen(x)
    ghosts = 1
    if one.settings.ghost and one.settings.ghost_updates == "in turn":
        ghosts = len(one.x) // one.settings.ghost
    for _ in range(batches):
        one.module(one.x)
    one.module.eval()
    one.module(one.x)
    want = (one.state.batches or 0) + ghosts * batches
    require(one.parts.state().batches == want, f"the counter is {one.parts.state().batches} where {want} is expected")


@law(likes=_RUNNING, needs=_HAS, x=Inputs(_SEVERAL), forwards=st.integers(1, 3), typical={"forwards": (1,)})
def buffers_frozen_in_evaluation(subject: Subject, x: Batch, forwards: int) -> None:
    """A forward or backward in evaluation mode leaves every buffer as it was, to the last bit."""
    one = subject.specimen(x, training=False)
    before = {name: buffer.clone() for name, buffer in one.module.named_buffers()}
    for _ in range(forwards):
        torch.autograd.grad(one.module(one.x).sum(), one.x, allow_unused=True)
    for name, buffer in one.module.named_buffers():
        require_equal(f"buffer {name}", buffer, before[name], "a buffer must not move")


@law(
    likes=_RUNNING,
    needs=(*_HAS, "attribute momentum"),
    x=Inputs(),
    batches=st.integers(1, 4),
    typical={"batches": (3,)},
)
def momentum_zero_keeps_buffers(subject: Subject, x: Batch, batches: int) -> None:
    """With momentum 0 running statistics stay what they are; only the counter moves."""
    one = subject.specimen(x, warm=True)
    one.parts.keeper.momentum = 0.0  # type: ignore[assignment] # it has that attribute
    data = _batches(one, x, batches)
    for batch in data:
        one.module(batch)
    _compare_running(one, data, 0.0, one.state)


@law(
    likes=("batch_norm", "ghost_batch_norm"),
    needs=(*_HAS, "attribute momentum", "batch counter"),
    x=Inputs(),
    batches=st.integers(2, 5),
    typical={"batches": (3,)},
)
def cumulative_average_without_momentum(subject: Subject, x: Batch, batches: int) -> None:
    """With momentum None running statistics are the plain averages of the batches' means and unbiased variances.

    The t-th batch has the weight 1 / t. Broken by a weight that is 1 / (t + 1), or that stays at the default. A layer
    that raises on None does not have the setting.
    """
    one = subject.specimen(x)
    one.parts.keeper.momentum = None  # type: ignore[assignment] # it has that attribute
    data = _batches(one, x, batches)
    try:
        one.module(data[0])
    except (TypeError, AttributeError) as error:
        raise NotApplicable(f"the layer does not take momentum None ({type(error).__name__}: {error})") from error
    for batch in data[1:]:
        one.module(batch)
    _compare_running(one, data, None, one.state)


@law(likes=_RUNNING, needs=_HAS, x=Inputs())
def evaluation_uses_running_statistics(subject: Subject, x: Batch) -> None:
    """After training on a batch, the output in evaluation mode is gamma (x - r_mu) / sqrt(r_v + eps) + beta."""
    one = subject.specimen(x)
    one.module(one.x)
    one.module.eval()
    law_ = reference(one.x, one.settings, one.parts.state(), training=False)
    bound = Tolerance(law_, one.x.dtype)
    compare("output", one.module(one.x), law_.y, bound.output, bound.why)
