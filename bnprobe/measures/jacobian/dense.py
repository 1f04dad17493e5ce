"""Singular values of whole matrices: the Jacobian written out from its smaller side."""

import torch
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.measures.jacobian.operator import SegmentOperator
from bnprobe.measures.jacobian.values import SingularValues

__all__ = ["dense", "dense_bytes", "jacobian"]

_EPS = torch.finfo(torch.float64).eps
# Vectors that go through the graph at once. More gain nothing (ours, measured on convolutions and linear layers).
_VECTORS = 128
# Copies of a vector's inputs and outputs that a pass through a graph holds at a time (ours; most hold fewer).
_COPIES = 8


def dense_bytes(operator: SegmentOperator) -> int:
    """Memory that :func:`dense` needs for one sample: the matrix and what its values are computed in."""
    short, long = sorted(operator.shape)
    wide = operator.dtype == torch.float64
    return short * long * operator.dtype.itemsize * (2 if wide else 1) + short * short * 8 * (0 if wide else 3)


def dense(operator: SegmentOperator, memory: int = 2**30) -> SingularValues:
    """All singular values of each of the N Jacobians.

    The matrix is computed from its smaller side, from the left or from the right, for all samples at once, in blocks.
    In single or half precision its Gram matrix is then taken in double precision, whose eigenvalues are the squares:
    squaring halves the digits, and double has more than twice those of single, so that small values keep theirs (what
    a Gram matrix in single precision loses is everything below 3e-4 of the largest). In double precision the values
    are the SVD's.

    Args:
        operator: the Jacobians.
        memory: bytes that may be used.

    Returns:
        The values; ``error`` is what the linear algebra may be off (for the Gram matrix: first-order perturbation of
        an eigenvalue by ``8 sqrt(r) eps`` of the largest, r the smaller side). The rounding of the entries comes on
        top, see :func:`bnprobe.measures.jacobian.rounding.rounding`.

    Raises:
        NotMeasuredError: it does not fit; or the Jacobian has entries that are not finite.
    """
    if (need := dense_bytes(operator)) > memory:
        raise NotMeasuredError(
            f"a Jacobian of {operator.shape[0]} x {operator.shape[1]} needs {need / 2**30:.2g} GiB: "
            f"give memory={need} or ask for some of the values only (k)"
        )
    group = max(1, min(operator.samples, memory // (2 * dense_bytes(operator))))
    found = []
    for start in range(0, operator.samples, group):
        matrix = jacobian(operator, slice(start, start + group), memory // 4)
        found.append(_values(matrix))
        del matrix
    values, error = (torch.cat(parts) for parts in zip(*found, strict=True))
    return SingularValues(values, error, "dense", operator.shape, False, (values.shape[1], 0))


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
    short, long = matrix.shape[1:]
    if matrix.device.type == "mps":
        matrix = matrix.cpu()  # no double precision there
    if matrix.dtype == torch.float64:
        if not bool(matrix.isfinite().all()):
            raise NotMeasuredError("the Jacobian has entries that are not finite")
        values = torch.linalg.svdvals(matrix.mT)  # LAPACK is several times quicker on tall matrices than on wide ones
        return values, (8 * short**0.5 * _EPS * values[:, :1]).expand_as(values)
    gram = _gram(matrix)
    if not bool(gram.isfinite().all()):
        raise NotMeasuredError("the Jacobian has entries that are not finite")
    squares = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0)
    values = squares.sqrt()
    spread = 8 * short**0.5 * _EPS * squares[:, :1]
    return values, spread / torch.maximum(values, spread.sqrt()).clamp_min(torch.finfo(torch.float64).tiny)


def _gram(matrix: Tensor) -> Tensor:
    """``A A^T`` in double precision: ``[N, r, L]`` to ``[N, r, r]``, its lower triangle by blocks."""
    samples, short, long = matrix.shape
    gram = torch.zeros(samples, short, short, dtype=torch.float64, device=matrix.device)
    block = short if short < 1024 else -(-short // 8)
    width = max(256, 2**24 // (samples * short))
    for left in range(0, long, width):
        part = matrix[:, :, left : left + width].double()
        for top in range(0, short, block):
            rows = slice(top, top + block)
            gram[:, rows, : top + block].baddbmm_(part[:, rows], part[:, : top + block].mT)
    return gram  # eigvalsh reads the lower triangle
