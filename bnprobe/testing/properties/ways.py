"""Ways of calling a layer that must all give the same."""

import copy

import torch
from hypothesis import strategies as st
from torch import Tensor

from bnprobe.testing.inputs import Inputs
from bnprobe.testing.likes import ACROSS_SAMPLES
from bnprobe.testing.properties.broken import Broken, NotApplicable, compare, require, require_equal
from bnprobe.testing.properties.buffers import running_bounds
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.subject import Specimen, Subject

__all__ = ["autocast", "compiled", "deterministic", "functional", "vectorised"]


@law(x=Inputs(), training=st.booleans())
def deterministic(subject: Subject, x: Batch, training: bool) -> None:
    """The same layer in the same state gives the same output, gradient and buffers for the same input, to the last bit.

    Nor does it draw random numbers.
    """
    one = subject.specimen(x, training=training)
    other = copy.deepcopy(one.module)
    before = torch.get_rng_state()
    y = one.module(one.x)
    require(bool(torch.equal(before, torch.get_rng_state())), "the forward draws from torch's random stream")
    again = other(one.x)
    require_equal("second output", again, y, "nothing has changed")
    g = one.cotangent(x.seed)
    (want,), (got,) = torch.autograd.grad(y, one.x, g), torch.autograd.grad(again, one.x, g)
    require_equal("second gradient", got, want, "nothing has changed")
    for (name, want), (_, got) in zip(one.module.named_buffers(), other.named_buffers(), strict=True):
        require_equal(f"buffer {name}", got, want, "nothing has changed")


@law(x=Inputs(), training=st.booleans())
def functional(subject: Subject, x: Batch, training: bool) -> None:
    """torch.func.functional_call with other tensors gives what a layer with these gives, and updates only them."""
    one, plain = (subject.specimen(x, training=training, warm=True) for _ in range(2))
    with torch.no_grad():
        for parameter in plain.module.parameters():
            parameter.copy_(1.5 * parameter + 0.25)
    parameters = {name: value.detach().clone() for name, value in plain.module.named_parameters()}
    buffers = {name: value.clone() for name, value in plain.module.named_buffers()}
    got = torch.func.functional_call(one.module, (parameters, buffers), (one.x,))
    state = one.parts.state()
    for name in ("mean", "variance"):
        mine, before = getattr(state, name), getattr(one.state, name)
        if mine is not None:
            require_equal(f"the layer's own running {name}", mine, before, "others were given")
    want = plain.module(plain.x)
    require_equal("output", got, want, "the tensors are the same")
    for name, buffer in plain.module.named_buffers():
        require_equal(f"given buffer {name}", buffers[name], buffer, "the batch was the same")


@law(x=Inputs(values=3), count=st.integers(1, 3), at_most=10, typical={"count": (2,)})
def vectorised(subject: Subject, x: Batch, count: int) -> None:
    """torch.vmap over several batches gives what one call each gives, in evaluation mode (per-sample layers: both)."""
    training = subject.like not in ACROSS_SAMPLES and "running statistics" not in subject.traits
    one = subject.specimen(x, training=training)
    factors = torch.arange(1, count + 1).to(one.x).reshape(-1, *[1] * one.x.ndim)
    stack = factors * one.x.detach()
    try:
        got: Tensor = torch.vmap(one.module)(stack)
    except RuntimeError as error:
        raise NotApplicable(f"the layer does not run under vmap: {str(error).splitlines()[0]}") from error
    for i in range(count):
        law_ = one.law_at(stack[i])
        bound = type(one.tolerance)(law_, one.x.dtype)
        compare(f"output of batch {i}", got[i], one.module(stack[i]), 2 * bound.output, f"of both, {bound.why}")


@law(x=Inputs(dtypes=("float32",), values=3), training=st.booleans())
def autocast(subject: Subject, x: Batch, training: bool) -> None:
    """Under autocast to bfloat16 statistics are those of single precision, and the output is rounded at most twice.

    Running statistics are those without autocast.
    """
    one, plain = (subject.specimen(x, training=training) for _ in range(2))
    want = plain.module(plain.x)
    with torch.autocast(torch.device(subject.device).type, dtype=torch.bfloat16):
        got = one.module(one.x)
    rounded = 2.0**-8 if got.dtype == torch.bfloat16 else 0.0
    values = one.law.values
    size = one.law.rows.join(values.gamma.abs() * values.x_hat.abs() + values.y.abs())
    compare("output", got, want, 2 * one.tolerance.output + 2 * rounded * size, f"2 u of bfloat16, {one.tolerance.why}")
    _same_running_statistics(one, plain)


@law(x=Inputs(dtypes=("float32",), values=4), at_most=1)
def compiled(subject: Subject, x: Batch) -> None:
    """torch.compile (without code generation) gives the output, gradient and buffers of the layer itself.

    In both modes. Forgets what was compiled before.
    """
    for training in (True, False):
        one, plain = (subject.specimen(x, training=training) for _ in range(2))
        g, mode = one.cotangent(x.seed), "training" if training else "evaluation"
        want = plain.module(plain.x)
        (wanted,) = torch.autograd.grad(want, plain.x, g)
        got, gradient = _through_compile(one, g)
        why = f"of both, {one.tolerance.why}"
        compare(f"output in {mode} mode", got, want, 2 * one.tolerance.output, why)
        compare(f"gradient of x in {mode} mode", gradient, wanted, 2 * one.tolerance.input_gradient(g), why)
        _same_running_statistics(one, plain)


def _same_running_statistics(one: Specimen, plain: Specimen) -> None:
    """After the same batch; the counters too."""
    if plain.state.mean is None:
        return
    after, usual = one.parts.state(), plain.parts.state()
    of_mean, of_variance, why = running_bounds(plain, [plain.x], plain.state)
    if after.mean is not None and usual.mean is not None:
        compare("running mean", after.mean, usual.mean, 2 * of_mean, f"of both, {why}")
    if after.variance is not None and usual.variance is not None:
        compare(f"running {one.settings.running}", after.variance, usual.variance, 2 * of_variance, f"of both, {why}")
    require(after.batches == usual.batches, f"the counter is {after.batches} where {usual.batches} is expected")


def _through_compile(one: Specimen, g: Tensor) -> tuple[Tensor, Tensor]:
    torch._dynamo.reset()  # at its limit of recompilations the compiler would run the layer as it is
    run = torch.compile(one.module, backend="aot_eager")
    try:
        y = run(one.x)
        (gradient,) = torch.autograd.grad(y, one.x, g)
    except Exception as error:
        if "torch.compile is not supported" in str(error):
            raise NotApplicable(str(error)) from error
        raise Broken(f"the compiled layer raised {type(error).__name__}: {str(error).splitlines()[0]}") from error
    return y, gradient
