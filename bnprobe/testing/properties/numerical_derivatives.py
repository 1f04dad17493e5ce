"""Derivatives against differences, with no formula of the kit between."""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from bnprobe.testing.inputs import Inputs
from bnprobe.testing.likes import LIKES
from bnprobe.testing.properties.broken import Broken
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.subject import Specimen, Subject

__all__ = ["gradcheck", "gradgradcheck"]

_TWICE = tuple(like for like in LIKES if like != "batch_renorm")  # whose r and d are constants to the gradient only


def _as_function(one: Specimen) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    names = [
        next(name for name, parameter in one.module.named_parameters() if parameter is leaf) for leaf in one.leaves[1:]
    ]
    start = {name: buffer.clone() for name, buffer in one.module.named_buffers()}

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in start.items()}
        given = buffers | dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(one.module, given, (x,))  # type: ignore[no-any-return] # it returns a tensor

    return run, tuple(leaf.detach().clone().requires_grad_() for leaf in one.leaves)


def _too_curved(one: Specimen, order: int) -> bool:
    """Whether differences over 1e-6 miss a derivative by more than the tolerance: by its curvature, sigma^-order."""
    return bool((1e-12 / one.law.values.sigma**order).max() > 1e-5)


@law(
    likes=_TWICE,
    needs=("double precision",),
    x=Inputs(("gaussian",), dtypes=("float64",), largest=16, values=3),
    training=st.booleans(),
    at_most=6,
)
def gradcheck(subject: Subject, x: Batch, training: bool) -> None:
    """Gradients of input, gamma and beta equal differences of the layer's own output (torch.autograd.gradcheck)."""
    one = subject.specimen(x, training=training)
    if _too_curved(one, 3):
        return
    run, arguments = _as_function(one)
    try:
        torch.autograd.gradcheck(run, arguments, atol=1e-4, rtol=1e-3, nondet_tol=1e-12)
    except GradcheckError as error:
        raise Broken(str(error)) from None


@law(
    likes=_TWICE,
    needs=("double precision",),
    x=Inputs(("gaussian",), dtypes=("float64",), largest=9, values=3),
    training=st.booleans(),
    at_most=3,
)
def gradgradcheck(subject: Subject, x: Batch, training: bool) -> None:
    """Second derivatives equal differences of the layer's own gradients (torch.autograd.gradgradcheck)."""
    one = subject.specimen(x, training=training)
    if _too_curved(one, 4):
        return
    run, arguments = _as_function(one)
    try:
        torch.autograd.gradgradcheck(run, arguments, atol=1e-4, rtol=1e-3, nondet_tol=1e-12)
    except GradcheckError as error:
        raise Broken(str(error)) from None
