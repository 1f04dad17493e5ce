"""How far the eigenvalues of a symmetric operator may lie from Ritz values with known residuals."""

import math

import torch
from torch import Tensor

__all__ = ["rounding", "upper_bounds"]


def rounding(dtype: torch.dtype, shape: tuple[int, int]) -> float:
    """Error of a singular value by rounding, as a share of the largest.

    A sum of n products is off by ``sqrt(n)`` roundings with a probability near 1, rather than by n (Higham & Mary
    2019), and a singular value averages over the errors of as many sums: four roundings (ours, for what layers add).
    The algebra afterwards is done in double precision; LAPACK's divide and conquer was seen to be off by 34 roundings
    on an 11 x 12 matrix.
    """
    return 4 * torch.finfo(dtype).eps + 8 * (4 + math.sqrt(max(shape))) * torch.finfo(torch.float64).eps


def upper_bounds(theta: Tensor, gram: Tensor, rest: Tensor, hidden: Tensor) -> Tensor:
    r"""Upper bounds of the K largest eigenvalues of a symmetric operator H, in their order.

    In an orthonormal basis that begins with j Ritz vectors, H has the blocks ``diag(theta)``, E and C, where the norm
    of E is that of the j residuals. Where the i-th Ritz value is :math:`\eta` above the norm of C, the i-th eigenvalue
    is at most :math:`2 \|E\|^2 / (\eta + \sqrt{\eta^2 + 4 \|E\|^2})` away (Li & Li 2005, theorem 2): the residual where
    there is no gap, its square over the gap where there is one. Every j from i on gives a bound; the least is taken.

    The norm of C is taken to be the largest of the further Ritz values plus residual norm, and of ``hidden``.

    Args:
        theta: Ritz values ``[N, K]``, descending.
        gram: scalar products of their residuals, ``[N, K, K]``.
        rest: the largest that any further eigenvalue may be, ``[N]``.
        hidden: ``[N, K]``, how large an eigenvalue near the i-th may be that no vector shows; -inf where there is none.

    Returns:
        ``[N, K]``, nowhere below ``theta``.
    """
    size = gram.diagonal(dim1=1, dim2=2)
    seen = torch.cat([theta + size.sqrt(), rest[:, None]], 1)
    beyond = torch.maximum(seen.flip(1).cummax(1).values.flip(1)[:, 1:], hidden.cummax(1).values)[:, None]  # of every j
    squared = _leading_norms(gram)[:, None, :]
    height = torch.maximum(theta[:, :, None], beyond)
    gap = height - beyond
    reach = 2 * squared / (gap + (gap**2 + 4 * squared).sqrt()).clamp(min=torch.finfo(theta.dtype).tiny)
    by_subspace = (height + reach).masked_fill(torch.ones_like(gram).tril(-1).bool(), math.inf)
    return by_subspace.amin(2)


def _leading_norms(gram: Tensor) -> Tensor:
    """Of every j, a bound of the norm of the first j rows and columns: the trace, or the largest sum of a row."""
    trace = gram.diagonal(dim1=1, dim2=2).cumsum(1)
    rows = gram.abs().cumsum(2).cummax(1).values.diagonal(dim1=1, dim2=2)
    return torch.minimum(trace, rows)
