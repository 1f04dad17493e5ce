"""Singular values of a block-diagonal Jacobian: those of its blocks together."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bnprobe.measures.jacobian.gram import gram_of
from bnprobe.measures.jacobian.values import SingularValues

__all__ = ["EPS", "Block", "numel_of", "svd_error", "svdvals", "union"]

EPS = torch.finfo(torch.float64).eps
_NEAR = 1024  # eps; then 50 neglected eps, squared over the gap, are a few
_CHEAP = 128  # up to this many values, double precision costs a millisecond or two at most


class Block(NamedTuple):
    """Singular values ``[N, r]`` (``[1, r]``: alike in every sample), bounds of their errors, how often each occurs."""

    values: Tensor
    error: Tensor
    times: int = 1


def union(blocks: Sequence[Block], shape: tuple[int, int], samples: int, *, coupled: bool = False) -> SingularValues:
    """All ``k = min(shape)`` singular values of N Jacobians.

    Where the blocks hold fewer than k values, the rest are zeros by structure, without error. Where they hold more,
    the surplus are zeros as well: a matrix has no more than k others.
    """
    k = min(shape)
    values, order = torch.cat([block.values for block in blocks], 1).sort(1, descending=True)
    error = torch.cat([block.error for block in blocks], 1).gather(1, order)
    if any(block.times != 1 for block in blocks):
        device = values.device
        times = torch.cat([torch.full((block.values.shape[1],), block.times, device=device) for block in blocks])[order]
        total = len(values) * sum(block.times * block.values.shape[1] for block in blocks)
        values, error = (
            one.flatten().repeat_interleave(times.flatten(), output_size=total).view(len(values), -1)
            for one in (values, error)
        )
    values, error = (F.pad(one, (0, k - one.shape[1])).expand(samples, k) for one in (values, error))
    return SingularValues(values, error, "closed form", shape, coupled, (k, 0))


def svdvals(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values ``[G, r]`` of ``[G, m, n]`` matrices, in double precision, and bounds of their errors.

    Those of large matrices in single precision are the roots of their Gram matrix's eigenvalues, which takes less time
    than an SVD in single precision and keeps more digits, as products of single precision are exact in double.

    *Error.* Of the SVD see :func:`svd_error`. Of the Gram matrix that same of its eigenvalues, and what the rounding of
    its sums of n products does to them: n / 4 roundings of the largest, ours. The largest seen are 0.16 n, in constant
    matrices, where all terms of a sum are rounded alike, and 0.1 n elsewhere. A change of e in a square is at most one
    of ``e / s`` in s, and of ``sqrt(e)``.
    """
    short, long = sorted(matrices.shape[-2:])
    if short <= _CHEAP or matrices.dtype == torch.float64:
        wide = matrices.double()
        values = torch.linalg.svdvals(wide)
        return values, svd_error(values, torch.linalg.vector_norm(wide, dim=(-2, -1)), long)
    gram = gram_of(matrices if matrices.shape[-2] == short else matrices.mT).tril()
    squares = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    norm = (2 * gram.square().sum((-2, -1)) - diagonal.square().sum(-1)).sqrt()
    error, values = svd_error(squares, norm, short) + long / 4 * EPS * squares[..., :1], squares.sqrt()
    return values, error / torch.maximum(values, error.sqrt()).clamp_min(EPS**4)


def svd_error(values: Tensor, norm: Tensor, size: int) -> Tensor:
    """``[..., r]`` bounds of the errors of computed singular values of matrices of this Frobenius norm.

    A backward stable algorithm errs by ``p * eps * s_1``, and p is ours: 20 + 1.25 sqrt(size), size the longer side.
    The largest error seen over random, graded, sparse and low-rank matrices up to 512 x 2304 is 0.85 sqrt(size), but
    19 in one small matrix of signs; typical are 0.3. Values that are nearly equal are worse off, as LAPACK neglects
    what couples them below 10 to 50 eps, and in constant, block-constant and shifted identity matrices 5.7 sqrt(size)
    was seen: they get 50 + 8 sqrt(size), and so does the smallest value (2.6 sqrt(size) was seen in matrices of signs).
    Where values are nearly equal the largest may be off as well; what the sum of the squares differs from the squared
    norm is added to all.
    """
    largest, eps = values[..., :1].double(), torch.finfo(values.dtype).eps
    root = math.sqrt(size)
    gaps = values.diff(dim=-1).abs() <= _NEAR * eps * largest
    near = F.pad(gaps, (1, 0)) | F.pad(gaps, (0, 1), value=values.shape[-1] > 1)
    missing = (values.double().square().sum(-1) - norm.square()).abs()[..., None] / largest.clamp_min(EPS**4)
    missing = torch.where(gaps.any(-1, keepdim=True), missing, 0.0)
    return torch.where(near, 50 + 8 * root, 20 + 1.25 * root) * eps * largest + missing


def numel_of(x: Tensor) -> int:
    """Values of one sample."""
    return x[0].numel()
