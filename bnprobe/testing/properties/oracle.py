"""A layer against the same layer written out in double precision."""

import torch
from hypothesis import strategies as st

from bnprobe.testing.inputs import Inputs
from bnprobe.testing.likes import LIKES
from bnprobe.testing.properties.broken import compare
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.strategies.kinds import KINDS, PLAIN
from bnprobe.testing.subject import Subject

__all__ = ["gradients_equal_oracle", "output_equals_oracle", "second_derivatives_equal_oracle"]

_TWICE = tuple(like for like in LIKES if like != "batch_renorm")  # whose r and d are constants to the gradient


@law(x=Inputs(tuple(KINDS)), training=st.booleans())
def output_equals_oracle(subject: Subject, x: Batch, training: bool) -> None:
    """The output equals gamma (x - mu) / sqrt(s^2 + eps) + beta, with a biased variance and eps under the root.

    In evaluation mode running statistics take the place of the batch's own, where the layer keeps them. Broken by
    statistics over the wrong axes, the wrong count, eps outside the root or added twice, a one-pass variance.
    """
    one = subject.specimen(x, training=training)
    compare("output", one.module(one.x), one.law.y, one.tolerance.output, one.tolerance.why)


@law(x=Inputs(tuple(KINDS)), training=st.booleans())
def gradients_equal_oracle(subject: Subject, x: Batch, training: bool) -> None:
    """dL/dx = (h - mean(h) - x_hat mean(h x_hat)) / sigma, h = gamma g; dL/dgamma = sum(g x_hat), dL/dbeta = sum(g).

    The two means are over the values that are normalized together; in evaluation mode they are absent. Broken by
    statistics that are detached from the graph, by a missing 1/m in a backward of one's own, by a sum over wrong axes.
    """
    one = subject.specimen(x, training=training)
    g = one.cotangent(x.seed)
    got = torch.autograd.grad(one.module(one.x), one.leaves, g)
    want = one.law.gradients(g)
    compare("gradient of x", got[0], want.x, one.tolerance.input_gradient(g), _WHY.format("6 E", one.tolerance.why))
    rest = list(got[1:])
    if one.parts.gamma is not None:
        bound = one.tolerance.gamma_gradient(g)
        compare("gradient of gamma", rest.pop(0).reshape(-1), want.gamma, bound, _WHY.format("2 E", one.tolerance.why))
    if one.parts.beta is not None:
        compare("gradient of beta", rest.pop(0).reshape(-1), want.beta, one.tolerance.beta_gradient(g), "n u sum|g|")


_WHY = "{} (1 + |x_hat|) times the size of its terms, {}"


@law(
    likes=_TWICE,
    x=Inputs(PLAIN, dtypes="widest", largest=64, values=3),
    training=st.booleans(),
)
def second_derivatives_equal_oracle(subject: Subject, x: Batch, training: bool) -> None:
    """The gradient of <v, dL/dx> with respect to x, the gradient g and gamma has a closed form, and the layer has it.

    Gradient penalties, Hessian products and meta-learning go through it. Broken by a backward of one's own that
    autograd cannot differentiate, or that saves the normalized values without their graph.
    """
    one = subject.specimen(x, training=training)
    g, v = one.cotangent(x.seed).requires_grad_(), one.cotangent(x.seed + 7)
    (first,) = torch.autograd.grad(one.module(one.x), one.x, g, create_graph=True)
    wanted = [one.x, g, *(() if one.parts.gamma is None else (one.parts.gamma,))]
    got = torch.autograd.grad(first, wanted, v, allow_unused=True, materialize_grads=True)
    want = one.law.second(g, v)
    to_x, to_g, to_gamma = one.tolerance.second(g, v)
    compare("gradient of <v, dL/dx> to x", got[0], want[0], to_x, _WHY.format("20 E", one.tolerance.why))
    compare("gradient of <v, dL/dx> to g", got[1], want[1], to_g, _WHY.format("12 E", one.tolerance.why))
    if one.parts.gamma is not None:
        why = _WHY.format("12 E", one.tolerance.why)
        compare("gradient of <v, dL/dx> to gamma", got[2].reshape(-1), want[2], to_gamma, why)
