"""Singular values of one matrix times many projections that each damp one direction."""

import torch
from torch import Tensor

from bnprobe.measures.jacobian.closed.union import EPS, svd_error

__all__ = ["damped"]

_AT_ONCE = 2**16  # numbers of one evaluation: half a megabyte, which stays in a processor's cache
_STEPS = 60  # bisection alone would take 53; what is left of the bracket is in the error


def damped(matrices: Tensor, directions: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    r"""Singular values of :math:`A (I - (1 - \tau) b b^T)` for K directions b of each of G matrices A.

    With :math:`A = U S V^T`, once for all directions, and :math:`w = V^T b` their squares :math:`\mu` are the
    eigenvalues of :math:`S^2 - (1 - \tau^2) S w w^T S`: one between each two neighbouring :math:`s_i^2` (Cauchy), where

    .. math:: g(\mu) = \tau^2 - (1 - \tau^2) \mu \sum_i \frac{w_i^2}{s_i^2 - \mu} = 0

    (Golub 1973, in a form that keeps the digits of the smallest one), in O(d^2) operations for each direction.

    Args:
        matrices: ``[G, d, d]``, float64.
        directions: ``[K, G, d]``, unit vectors (anything where ``kept`` is 1).
        kept: ``[K, G]``, tau, in [0, 1].

    Returns:
        ``[K, G, d]`` values and bounds of their errors: that of the decomposition, of ``w``, and what is left of the
        brackets. Errors of ``directions`` and ``kept`` are the caller's.
    """
    _, s, vh = torch.linalg.svd(matrices)
    largest = s[:, :1]
    norm = torch.linalg.vector_norm(matrices, dim=(-2, -1))
    base_error = svd_error(s, norm, matrices.shape[-1]) + (4 + matrices.shape[-1] ** 0.5) * EPS * largest
    s = s / largest.clamp_min(EPS**4)
    poles = torch.where(s > EPS * s.shape[-1], s, 0.0).square()
    w = torch.einsum("kgd,ged->kge", directions, vh)
    # A zero weight would take its pole out of the sum; one rounding of b keeps the roots where they belong.
    weights = (w / torch.linalg.vector_norm(w, dim=-1, keepdim=True).clamp_min(EPS)).square().clamp_min(EPS**2)
    low, high, best = (one.sqrt() * largest for one in _roots(poles, weights, kept))
    return best, base_error + (high - low) + 2 * EPS * best


def _roots(poles: Tensor, weights: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Brackets and best guesses of mu, ``[K, G, d]``, by Chandrupatla's method (1997).

    It runs on g times the distances to its nearest poles, which is smooth between them.
    """
    high = poles.expand_as(weights)
    low = torch.cat([high[..., 1:], torch.zeros_like(high[..., :1])], -1)
    below = low > 0  # whether the lower end is a pole
    tau2, rest = kept.square()[..., None], 1 - kept.square()[..., None]
    under = torch.cat([weights[..., 1:], torch.zeros_like(weights[..., :1])], -1)
    at_zero = tau2 + rest * (weights * (high == 0)).sum(-1, keepdim=True)
    width = high - low
    f_low = torch.where(below, rest * low * under * width, at_zero * high)
    f_high = -rest * high * weights * torch.where(below, width, 1.0)
    # No change of sign: the root is the end where the function vanishes (a constant group; eps = 0).
    a = torch.where((f_low <= 0) & (f_high < 0), low, high).flatten()
    b = torch.where(f_high >= 0, high, low).flatten()
    fa, fb = f_high.flatten(), f_low.flatten()
    low, high, below = (one.flatten() for one in (low, high, below))
    tau2, rest = (one.expand_as(weights).flatten() for one in (tau2, rest))
    d = weights.shape[-1]
    on = torch.arange(len(a), device=a.device)  # the roots that are still sought
    least = (EPS * torch.maximum(a, b) / (b - a).abs()).nan_to_num(0.5).clamp(max=0.5)  # never on a pole
    step = (fa / (fa - fb)).nan_to_num(0.5).clamp(least, 1 - least)
    for _ in range(_STEPS):
        tolerance = EPS * torch.maximum(a[on], b[on])
        seek = (a[on] - b[on]).abs() > 2 * tolerance
        on, step = on[seek], step[seek]
        if not len(on):
            break
        a0, fa0, b0, fb0 = a[on], fa[on], b[on], fb[on]
        mu = a0 + step * (b0 - a0)
        total = _sums(poles, weights, mu, on // d)
        value = (tau2[on] - rest[on] * mu * total) * (high[on] - mu) * torch.where(below[on], mu - low[on], 1.0)
        same = (value > 0) == (fa0 > 0)
        c, fc = torch.where(same, a0, b0), torch.where(same, fa0, fb0)
        b1, fb1 = torch.where(same, b0, a0), torch.where(same, fb0, fa0)
        a[on], fa[on], b[on], fb[on] = mu, value, b1, fb1
        step = _next_step(mu, value, b1, fb1, c, fc, tolerance[seek])
    best = torch.where(fa.abs() < fb.abs(), a, b)
    found = (torch.minimum(a, b), torch.maximum(a, b), best)
    return tuple(one.view(weights.shape) for one in found)  # type: ignore[return-value]  # three of them


def _sums(poles: Tensor, weights: Tensor, mu: Tensor, rows: Tensor) -> Tensor:
    """Of each mu the sum of ``w^2 / (s^2 - mu)`` in its row of the weights, as many at once as stay in the cache."""
    groups, d = poles.shape
    weights, chunk = weights.reshape(-1, d), max(1, _AT_ONCE // d)
    sums = torch.empty_like(mu)
    for start in range(0, len(mu), chunk):
        part = slice(start, start + chunk)
        of = poles if groups == 1 else poles[rows[part] % groups]
        sums[part] = (weights[rows[part]] / (of - mu[part, None])).sum(-1)
    return sums


def _next_step(a: Tensor, fa: Tensor, b: Tensor, fb: Tensor, c: Tensor, fc: Tensor, tolerance: Tensor) -> Tensor:
    """Where between a and b to look next: inverse quadratic interpolation where it is safe, else the middle."""
    xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
    safe = (phi.square() < xi) & ((1 - phi).square() < 1 - xi)
    quadratic = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
    least = (tolerance / (b - a).abs()).clamp(max=0.5)
    return torch.where(safe, quadratic, 0.5).nan_to_num(0.5).clamp(least, 1 - least)
