"""Stochastic Lanczos quadrature: nodes that stand for all singular values, from products with random vectors."""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.measures.jacobian.density import Nodes
from bnprobe.measures.jacobian.operator import Operator

__all__ = ["quadrature"]

Product: TypeAlias = Callable[[Tensor], Tensor]


def quadrature(
    operator: Operator,
    *,
    rounding: Tensor | None = None,
    probes: int = 16,
    steps: int = 64,
    generator: torch.Generator | None = None,
    memory: int = 2**30,
) -> Nodes:
    r"""Nodes and weights that stand for the :math:`\min(m, n)` singular values of each Jacobian.

    For a random unit vector v of the smaller side, Golub-Kahan bidiagonalization gives nodes :math:`\theta_k` and
    weights :math:`\tau_k^2` (squared first components of the right singular vectors of the bidiagonal matrix) with
    :math:`E \sum_k \tau_k^2 f(\theta_k) \approx \frac{1}{\min(m, n)} \sum_i f(s_i)` for smooth f, here a density's
    kernel (Ubaru, Chen & Saad 2017). Details finer than the steps resolve, at a distance from 0 of about the largest
    value over the number of steps, are smoothed.

    Args:
        operator: N Jacobians ``[m, n]``.
        rounding: bounds of what rounding does to the values of each, ``[N]``; None: nothing.
        probes: random vectors, at least 2; default 16, ours: standard errors to a fifth of themselves.
        steps: of the bidiagonalization; default 64, ours.
        generator: of the random vectors; default one of its own with a fixed seed.
        memory: bytes for vectors.

    Raises:
        ArgumentError: fewer than two probes, or no steps.
        NotMeasuredError: the vectors of one probe do not fit; or the Jacobian has entries that are not finite.
    """
    if probes < 2 or steps < 1:
        raise ArgumentError(f"probes must be at least 2 and steps at least 1; got {probes!r} and {steps!r}")
    tall = operator.shape[0] >= operator.shape[1]
    forth, back = (operator.matmat, operator.rmatmat) if tall else (operator.rmatmat, operator.matmat)
    size = min(operator.shape)
    steps = min(steps, size)
    known = operator.dtype in (torch.float32, torch.float64)
    dtype = operator.dtype if known else torch.float32
    one = operator.samples * steps * sum(operator.shape) * dtype.itemsize
    if one > memory:
        raise NotMeasuredError(f"a density needs {one / 2**30:.2g} GiB for its vectors: give memory={one}")
    generator = generator or torch.Generator().manual_seed(0)
    drawn = torch.randn(operator.samples, size, probes, generator=generator, device=generator.device)
    starts = (drawn / drawn.norm(dim=1, keepdim=True)).to(operator.device, dtype).split(memory // one, 2)
    bidiagonal = torch.cat([_bidiagonalize(forth, back, start, steps, operator.dtype) for start in starts], 1)
    if not bool(bidiagonal.isfinite().all()):
        raise NotMeasuredError("the Jacobian has entries that are not finite; it has no singular values")
    off = torch.zeros(operator.samples) if rounding is None else rounding
    gauss = (bidiagonal != 0).sum((2, 3)) == 2 * steps - 1  # else nothing is left beside what was found
    _, nodes, right = torch.linalg.svd(bidiagonal)  # [N, probes, steps]
    weights = right[..., 0].square()
    return Nodes(
        nodes.numpy(),
        (weights / weights.sum(-1, keepdim=True)).numpy(),
        off.double().cpu()[:, None, None].expand_as(nodes).numpy(),
        size,
        (gauss & (steps < size)).numpy(),
    )


def _bidiagonalize(forth: Product, back: Product, start: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Upper bidiagonal matrices ``[N, probes, steps, steps]`` of J, one for each column of ``start``, on the host.

    Vectors of both sides are orthogonalized against all earlier ones.
    """
    samples, size, probes = start.shape

    def apply(product: Product, vectors: Tensor) -> Tensor:
        block = vectors.reshape(samples, probes, -1).mT.to(dtype)
        return product(block).to(start.dtype).mT.reshape(samples * probes, -1)

    v = start.mT.reshape(samples * probes, size)
    result = v.new_zeros(samples * probes, steps, steps)
    rights = v.new_zeros(samples * probes, steps, size)
    lefts, scale = v[:, None, :0], v.new_zeros(samples * probes, 1)
    for step in range(steps):
        rights[:, step] = v
        u = apply(forth, v)
        if not step:
            lefts = u.new_zeros(samples * probes, steps, u.shape[1])
        u, alpha, scale = _unit(_without(u, lefts[:, :step]), scale)
        lefts[:, step] = u
        result[:, step, step] = alpha[:, 0]
        if step + 1 < steps:
            v, beta, scale = _unit(_without(apply(back, u), rights[:, : step + 1]), scale)
            result[:, step, step + 1] = beta[:, 0]
    return result.reshape(samples, probes, steps, steps).cpu().double()


def _without(vectors: Tensor, basis: Tensor) -> Tensor:
    """``[R, n]`` without what lies along the rows of ``[R, p, n]``; twice is enough (Parlett 1998, section 6.9)."""
    for _ in range(2):
        along = (basis @ vectors[:, :, None]).mT
        vectors = vectors - (along @ basis)[:, 0]
    return vectors


def _unit(vectors: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors, their lengths, and the largest length so far; nothing, of length 0, where rounding is all."""
    length = vectors.norm(dim=-1, keepdim=True)
    scale = torch.maximum(scale, length)
    none = length <= 4 * torch.finfo(vectors.dtype).eps * math.sqrt(vectors.shape[-1]) * scale
    length = length.masked_fill(none, 0.0)
    return torch.where(none, 0.0, vectors / torch.where(none, 1.0, length)), length, scale
