"""Densities of singular values: by stochastic Lanczos quadrature, and from all values."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bnprobe.errors import ArgumentError
from bnprobe.measures.jacobian.operator import Operator

__all__ = ["Density", "density", "lanczos_density"]

_POINTS = 201
_DECADES = 6.0  # ours: below a millionth of the largest value there is the rounding of single precision
_WIDTH = 0.1  # ours: a tenth of a factor e, wider than what 64 steps resolve in most of a spectrum
_MARGIN = 4.0  # widths of the kernel beyond the largest value


@dataclass(frozen=True)
class Density:
    """Density of the natural logarithms of singular values, smoothed by a Gaussian kernel.

    Attributes:
        grid: ``[G]``, logarithms of singular values, ascending.
        density: ``[N, G]``; its integral over all logarithms is 1 less ``below``.
        error: ``[N, G]``, standard error over probe vectors; 0 where all values are known.
        below: ``[N]``, share of the values that are below the grid: those that are 0 have no logarithm.
        width: standard deviation of the kernel.
    """

    grid: Tensor
    density: Tensor
    error: Tensor
    below: Tensor
    width: float


def density(values: Tensor, grid: Tensor | None = None, *, width: float = _WIDTH) -> Density:
    """Density of values that are all known.

    Args:
        values: ``[N, k]``, all singular values.
        grid: ``[G]``, logarithms of singular values, ascending; default six decades down from the largest, ours.
        width: standard deviation of the kernel in logarithms.

    Raises:
        ArgumentError: no values, or a width that is not positive.
    """
    if values.dim() != 2 or not values.numel():
        raise ArgumentError(f"values must be [N, k] with at least one value; got {tuple(values.shape)}")
    _check(width)
    nodes = values.double()
    grid = _grid(float(nodes.max()), width) if grid is None else grid.double()
    smooth, below = _smooth(nodes, torch.full_like(nodes, 1 / nodes.shape[1]), grid, width)
    return Density(grid, smooth, torch.zeros_like(smooth), below, width)


def lanczos_density(
    operator: Operator,
    grid: Tensor | None = None,
    *,
    probes: int = 16,
    steps: int = 64,
    width: float = _WIDTH,
    generator: torch.Generator | None = None,
) -> Density:
    r"""Density by stochastic Lanczos quadrature, of the :math:`\min(m, n)` singular values of each Jacobian.

    For a random unit vector v of the smaller side, Golub-Kahan bidiagonalization gives nodes :math:`\theta_k` and
    weights :math:`\tau_k^2` (squared first components of the right singular vectors of the bidiagonal matrix) with
    :math:`E \sum_k \tau_k^2 f(\theta_k) \approx \frac{1}{\min(m, n)} \sum_i f(s_i)` for smooth f, here the kernel
    (Ubaru, Chen & Saad 2017). ``error`` is the standard error over probe vectors. What it does not hold is the
    error of the quadrature: details finer than the steps resolve, at a distance from 0 of about the largest value
    over the number of steps, are smoothed.

    Args:
        operator: N Jacobians ``[m, n]``.
        grid: ``[G]``, logarithms of singular values, ascending; default six decades down from the largest, ours.
        probes: random vectors, at least 2; default 16, ours: standard errors to a fifth of themselves.
        steps: of the bidiagonalization; default 64, ours.
        width: standard deviation of the kernel in logarithms.
        generator: of the random vectors; default one of its own with a fixed seed.

    Raises:
        ArgumentError: fewer than two probes, no steps, or a width that is not positive.
    """
    _check(width)
    if probes < 2 or steps < 1:
        raise ArgumentError(f"probes must be at least 2 and steps at least 1; got {probes!r} and {steps!r}")
    tall = operator.shape[0] >= operator.shape[1]
    forth, back = (operator.matmat, operator.rmatmat) if tall else (operator.rmatmat, operator.matmat)
    size = min(operator.shape)
    generator = generator or torch.Generator(operator.device).manual_seed(0)
    drawn = torch.randn(operator.samples, size, probes, generator=generator, device=generator.device)
    start = (drawn / drawn.norm(dim=1, keepdim=True)).to(operator.device, operator.dtype)
    bidiagonal = _bidiagonalize(forth, back, start, min(steps, size))
    _, nodes, right = torch.linalg.svd(bidiagonal)  # [N, probes, steps]
    weights = right[..., 0] ** 2
    grid = _grid(float(nodes.max()), width) if grid is None else grid.double()
    flat, below = _smooth(nodes.flatten(0, 1), weights.flatten(0, 1), grid, width)
    each = flat.reshape(operator.samples, probes, -1)
    error = each.std(1) / math.sqrt(probes)
    return Density(grid, each.mean(1), error, below.reshape(operator.samples, probes).mean(1), width)


Product = Callable[[Tensor], Tensor]


def _bidiagonalize(forth: Product, back: Product, start: Tensor, steps: int) -> Tensor:
    """Upper bidiagonal matrices ``[N, probes, steps, steps]`` of J, one for each column of ``start``.

    Vectors of both sides are orthogonalized against all earlier ones.
    """
    samples, size, probes = start.shape

    def apply(product: Product, vectors: Tensor) -> Tensor:
        return product(vectors.reshape(samples, probes, -1).mT).mT.reshape(samples * probes, -1)

    v = start.mT.reshape(samples * probes, size)
    result = torch.zeros(samples * probes, steps, steps, dtype=torch.float64, device=v.device)
    rights = v.new_zeros(samples * probes, steps, size)
    lefts, scale = v[:, None, :0], v.new_zeros(samples * probes, 1)
    for step in range(steps):
        rights[:, step] = v
        u = apply(forth, v)
        if not step:
            lefts = u.new_zeros(samples * probes, steps, u.shape[1])
        u, alpha, scale = _unit(_without(u, lefts[:, :step]), scale)
        lefts[:, step] = u
        v, beta, scale = _unit(_without(apply(back, u), rights[:, : step + 1]), scale)
        result[:, step, step] = alpha[:, 0]
        if step + 1 < steps:
            result[:, step, step + 1] = beta[:, 0]
    return result.reshape(samples, probes, steps, steps)


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


def _check(width: float) -> None:
    if not width > 0:
        raise ArgumentError(f"width must be positive; got {width!r}")


def _grid(largest: float, width: float) -> Tensor:
    top = math.log(largest) if largest > 0 else 0.0
    low = top - _DECADES * math.log(10)
    return torch.linspace(low, top + _MARGIN * width, _POINTS, dtype=torch.float64)


def _smooth(nodes: Tensor, weights: Tensor, grid: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Density ``[R, G]`` of weighted nodes ``[R, k]``, and the weight ``[R]`` of those below the grid."""
    logarithms = nodes.clamp(min=torch.finfo(torch.float64).tiny).log()
    seen = (logarithms >= grid[0].to(nodes.device)) & (nodes > 0)
    kept = torch.where(seen, weights, 0.0)
    rows = []
    for logarithm, weight in zip(logarithms, kept, strict=True):  # [G, k] of one row at a time
        distance = (grid.to(nodes.device)[:, None] - logarithm) / width
        rows.append(torch.exp(-(distance**2) / 2) @ weight)
    below = torch.where(seen, 0.0, weights).sum(1)
    return torch.stack(rows) / (width * math.sqrt(2 * math.pi)), below
