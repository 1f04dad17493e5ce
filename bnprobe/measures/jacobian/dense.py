"""Singular values of whole matrices: the Jacobian written out from its smaller side."""

import math

import torch
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.measures.jacobian.gram import gram_of
from bnprobe.measures.jacobian.operator import SegmentOperator
from bnprobe.measures.jacobian.rounding import Reference
from bnprobe.measures.jacobian.values import SingularValues

__all__ = ["dense", "dense_bytes", "jacobian"]

_EPS = torch.finfo(torch.float64).eps
# Vectors that go through the graph at once. More gain nothing (ours, measured on convolutions and linear layers).
_VECTORS = 128
# Copies of a vector's inputs and outputs that a pass through a graph holds at a time (ours; most hold fewer).
_COPIES = 8
_WRITTEN_OUT = 64  # smaller side up to which writing the matrix out twice costs no more than random vectors (ours)
_ROWS = 512  # of a matrix that are made double at once


def dense_bytes(operator: SegmentOperator) -> int:
    """Memory that :func:`dense` needs for one sample: the matrix and what its values are computed in."""
    short, long = sorted(operator.shape)
    wide = operator.dtype == torch.float64
    return short * long * operator.dtype.itemsize * (2 if wide else 1) + short * short * 8 * (0 if wide else 3)


def dense(operator: SegmentOperator, reference: Reference | None = None, memory: int = 2**30) -> SingularValues:
    """All singular values of each of the N Jacobians.

    The matrix is computed from its smaller side, from the left or from the right, for all samples at once, in blocks.
    In single or half precision its Gram matrix is then taken in double precision, whose eigenvalues are the squares:
    squaring halves the digits, and double has more than twice those of single, so that small values keep theirs (what
    a Gram matrix in single precision loses is everything below 3e-4 of the largest). In double precision the values
    are the SVD's.

    Args:
        operator: the Jacobians.
        reference: tells the rounding of the matrix's entries, which then is part of the error.
        memory: bytes that may be used.

    Returns:
        The values. Their error is that of the linear algebra (SVD: ``2 (1 + sqrt(r)) eps`` of the largest value, r the
        smaller side; Gram matrix: what as large a relative change of its largest eigenvalue makes of a root), by the
        usual experience that rounding adds up like a random walk, and what ``reference`` says.

    Raises:
        NotMeasuredError: it does not fit; or the Jacobian has entries that are not finite.
    """
    if (need := dense_bytes(operator)) > memory:
        raise NotMeasuredError(
            f"a Jacobian of {operator.shape[0]} x {operator.shape[1]} needs {need / 2**30:.2g} GiB: "
            f"give memory={need} or ask for some of the values only (k)"
        )
    group = max(1, min(operator.samples, memory // (2 * need)))
    found = []
    for start in range(0, operator.samples, group):
        chosen = slice(start, start + group)
        matrix = jacobian(operator, chosen, memory // 4)
        values, error = _values(matrix)
        if reference is not None:
            error = error + _rounding(matrix, operator.shape, reference, chosen, memory)[:, None].to(error.device)
        found.append((values, error))
        del matrix
    values, error = (torch.cat(parts) for parts in zip(*found, strict=True))
    return SingularValues(values, error, "dense", operator.shape, False, (values.shape[1], 0))


def _rounding(matrix: Tensor, shape: tuple[int, int], reference: Reference, chosen: slice, memory: int) -> Tensor:
    if matrix.shape[1] <= _WRITTEN_OUT:
        found = reference.written_out(matrix, lambda other: jacobian(other, chosen, memory // 4))
        if found is not None:
            return found
    return reference.rounding(_Matrices(matrix, shape), chosen)


class _Matrices:
    """Jacobians that are written out, as operators in double precision."""

    def __init__(self, matrix: Tensor, shape: tuple[int, int]) -> None:
        self._matrix = matrix if shape[0] <= shape[1] else matrix.mT
        self.samples, self.shape, self.dtype, self.device = len(matrix), shape, torch.float64, matrix.device

    def matmat(self, v: Tensor) -> Tensor:
        return torch.cat([part.double() @ v for part in torch.split(self._matrix, _ROWS, 1)], 1)

    def rmatmat(self, u: Tensor) -> Tensor:
        parts = zip(torch.split(self._matrix, _ROWS, 1), torch.split(u, _ROWS, 1), strict=True)
        return sum((part.double().mT @ some for part, some in parts), torch.zeros((), dtype=u.dtype, device=u.device))


def jacobian(operator: SegmentOperator, some: slice = slice(None), memory: int = 2**28) -> Tensor:
    """The matrices of some samples, smaller side first: ``[N, min(m, n), max(m, n)]``."""
    m, n = operator.shape
    short, long, product = (m, n, operator.rows) if m <= n else (n, m, operator.columns)
    chosen = range(operator.samples)[some]
    passing = operator.samples * (m + n) * operator.dtype.itemsize * _COPIES
    chunk = max(1, min(_VECTORS, short, memory // passing))
    matrix = torch.empty(len(chosen), short, long, dtype=operator.dtype, device=operator.device)
    for start in range(0, short, chunk):
        size = min(chunk, short - start)
        units = torch.zeros(size, 1, short, dtype=operator.dtype, device=operator.device)
        units[:, 0, start : start + size].fill_diagonal_(1)
        rows = product(units.expand(size, operator.samples, short))
        matrix[:, start : start + size] = rows[:, some].transpose(0, 1)
    return matrix


def _values(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and the error of their computation: ``[N, r]`` each, float64."""
    short = matrix.shape[1]
    if matrix.device.type == "mps":
        matrix = matrix.cpu()  # no double precision there
    if matrix.dtype == torch.float64:
        if not bool(matrix.isfinite().all()):
            raise NotMeasuredError("the Jacobian has entries that are not finite")
        values = torch.linalg.svdvals(matrix.mT)  # LAPACK is several times quicker on tall matrices than on wide ones
        return values, (_growth(short) * values[:, :1]).expand_as(values)
    gram = gram_of(matrix)
    if not bool(gram.isfinite().all()):
        raise NotMeasuredError("the Jacobian has entries that are not finite")
    squares = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0)
    values = squares.sqrt()
    spread = _growth(short) * squares[:, :1]
    return values, spread / torch.maximum(values, spread.sqrt()).clamp_min(torch.finfo(torch.float64).tiny)


def _growth(size: int) -> float:
    """Rounding of a decomposition, relative to the norm (ours: 4,000 random matrices were off by two thirds of it)."""
    return 2 * (1 + math.sqrt(size)) * _EPS
