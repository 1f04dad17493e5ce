"""Largest and smallest singular values of Jacobians that are known by their products with vectors only."""

import math

import torch
from torch import Tensor

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.measures.jacobian.bounds import rounding
from bnprobe.measures.jacobian.krylov import Krylov, Ritz, refine
from bnprobe.measures.jacobian.operator import Operator
from bnprobe.measures.jacobian.values import SingularValues

__all__ = ["lanczos"]

# Ours: beyond what any reading of a spectrum needs, and above the rounding of single precision.
_TOLERANCE = 1e-6
# Ours: columns of a block beyond the values wanted. A random block of k + 2 columns shows each of the k first
# directions at less than t times its usual share with a probability of the order t^3.
_SPARE = 2
_VECTORS = 768  # ours: vectors in all, where the number of steps is not given
_NARROW = 6  # ours: columns of a block that finds more values than that, a quarter of their number if that is more
_SMALL = 64  # the whole matrix costs less than a Krylov space
_COLUMNS = 256  # of a matrix that are made at once
_PATIENCE = 2  # ours: smallest values have this many times the steps that the largest needed


def lanczos(
    operator: Operator,
    largest: int,
    smallest: int = 0,
    *,
    tolerance: float = _TOLERANCE,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    memory: int = 2**30,
) -> SingularValues:
    r"""Largest and smallest singular values of each Jacobian, every one with a bound of its error.

    Block Golub-Kahan-Lanczos bidiagonalization (Golub, Luk & Overton 1981) with full, twice repeated
    reorthogonalization of the vectors on the smaller side (one side is enough: Simon & Zha 2000), thick restarts
    (Wu & Simon 2000) where the vectors would not fit into ``memory``, and a last Rayleigh-Ritz step on J itself in
    double precision. All samples go through in one block. A block of b columns finds a value that occurs several
    times b times. Where so many values are found close together, it is done again with two columns more than values
    are wanted.

    *Error of the largest.* A Ritz value is never above the singular value of its rank (Cauchy interlacing). How far
    below it may be follows from the norm of the residual :math:`J^T u - \theta v`, and where there is a gap to the
    rest from its square over the gap (Li & Li 2005). What no residual shows is a singular vector that is orthogonal
    to all that was seen; from a Gaussian start that has probability zero, and one nearly so, by a factor t, a
    probability of the order :math:`t^3`.

    *Error of the smallest.* A Ritz value is never below. Where it did not converge, the bound reaches down to 0: the
    smallest values of a spectrum without gaps at its end take nearly as many vectors as there are inputs.

    Both contain the rounding of the products, by the probabilistic model of Higham & Mary (2019). They are bounds for
    the operator as its dtype computes it.

    Args:
        operator: N Jacobians ``[m, n]``.
        largest: how many of the largest values.
        smallest: how many of the smallest values.
        tolerance: done where every bound is below this share of the largest value; default 1e-6, ours: beyond what a
            reading of a spectrum needs.
        steps: block steps at most; default as many as make 768 vectors, at least 24. The smallest values are given up
            after twice the steps that the largest needed, unless ``steps`` is given.
        generator: of the random start; default one of its own with a fixed seed.
        memory: bytes for the vectors.

    Returns:
        Values in double precision, the largest before the smallest. ``method`` is ``dense`` where the vectors would
        have spanned the whole space. Convergence that was not reached shows as a large ``error``.

    Raises:
        ArgumentError: no values are wanted, or a negative number of them.
        NotMeasuredError: the Jacobian has entries that are not finite.
    """
    if min(largest, smallest) < 0 or largest + smallest == 0:
        raise ArgumentError(
            f"largest and smallest must be numbers of values, at least one in all; got {largest!r} and {smallest!r}"
        )
    tall = operator if operator.shape[0] >= operator.shape[1] else _Transposed(operator)
    size = tall.shape[1]
    if largest + smallest >= size:
        largest, smallest = size, 0
    found = None
    for width in _widths(largest, smallest):
        if tall.samples == 0 or size <= max(_SMALL, 4 * width):
            return _whole(operator, largest, smallest)
        space = Krylov(tall, width, memory, generator, wanted=(largest, smallest))
        found = _run(space, largest, smallest, tolerance, steps)
        if found is None:
            return _whole(operator, largest, smallest)
        if not _may_hide_copies(found, largest, tolerance):
            break
    assert found is not None
    ends = [_top(space, found, largest)] if largest else []
    ends += [_bottom(space, found, smallest)] if smallest else []
    values, error = (torch.cat(side, 1) for side in zip(*ends, strict=True))
    return SingularValues(values, error, "Lanczos", operator.shape, False, (largest, smallest))


def _may_hide_copies(ritz: Ritz, largest: int, tolerance: float) -> bool:
    """Whether all has converged but for copies of values that a wider block might find."""
    top, _, seen = ritz.unconverged(largest, 0, tolerance)
    return seen <= 1 < top


def _widths(largest: int, smallest: int) -> list[int]:
    """Columns of a block: of the first attempt, and of the one that finds every copy of a value."""
    full = max(largest, smallest) + _SPARE
    first = max(_NARROW, -(-largest // 4), smallest + _SPARE)
    return [first, full] if first < full else [full]


def _run(space: Krylov, largest: int, smallest: int, tolerance: float, steps: int | None) -> Ritz | None:
    """Steps until all is converged, or their number is used up; None where nearly the whole space is spanned."""
    limit = steps or max(24, -(-_VECTORS // space.width))
    due, before = 3, (0, math.inf)
    for step in range(1, limit + 1):
        if not space.has_room(smallest):
            return None
        space.step()
        if step < min(due, limit):
            continue
        ritz = space.ritz()
        top, bottom, seen = ritz.unconverged(largest, smallest, tolerance)
        excess = max(top, bottom)
        if excess <= 1 or (seen <= 1 < top and space.width < largest + _SPARE):
            return ritz
        if seen <= 1 and steps is None:
            limit = min(limit, _PATIENCE * step)
        due, before = step + _wait(step, excess, *before), (step, excess)
    return space.ritz()


def _wait(step: int, excess: float, last: int, then: float) -> int:
    """Steps until the bounds are small enough, if they shrink on as they did; at most an eighth of those taken."""
    slope = math.log(then / excess) / (step - last) if math.isfinite(then) else 0.0
    wait = math.log(excess) / slope if slope > 0 else step
    return max(1, min(math.ceil(wait), step // 8))


def _top(space: Krylov, ritz: Ritz, wanted: int) -> tuple[Tensor, Tensor]:
    """The largest values and their errors, ``[N, wanted]``."""
    operator, count = space.operator, max(space.width, wanted + _SPARE)
    theta, gram = refine(operator, space.combine(ritz.vectors[:, :, :count]))
    error = ritz.top_error(theta, gram)
    theta, error = theta[:, :wanted], error[:, :wanted]
    if bool(torch.isfinite(ritz.beyond).any()):  # little is left outside of the space: what it holds is what there is
        beyond = ritz.beyond[:, None].to(theta.device).expand_as(error)
        theta = torch.where(beyond < error, space.singular_values()[:, :wanted], theta)
        error = torch.minimum(error, beyond)
    return theta, error + rounding(operator.dtype, operator.shape) * theta[:, :1]


def _bottom(space: Krylov, ritz: Ritz, wanted: int) -> tuple[Tensor, Tensor]:
    """The smallest values and their errors, ``[N, wanted]``."""
    operator, device = space.operator, space.operator.device
    theta, gram = refine(operator, space.combine(ritz.vectors[:, :, -space.width :]))
    theta, gram = theta.flip(1), gram.flip(1, 2)
    # In terms of the transposed J times J, whose residuals are the value times those of J.
    error = ritz.bottom_error(theta, gram * theta[:, :, None] * theta[:, None])
    beyond = ritz.beyond[:, None].to(device).expand_as(error)  # of values outside of the space
    theta, error = torch.where(beyond < error, 0.0, theta), torch.minimum(error, beyond)
    error = error + rounding(operator.dtype, operator.shape) * ritz.theta[:, :1].to(device)
    return theta[:, :wanted].flip(1), error[:, :wanted].flip(1)


def _whole(operator: Operator, largest: int, smallest: int) -> SingularValues:
    """From the whole matrix, made of products with unit vectors."""
    tall = operator if operator.shape[0] >= operator.shape[1] else _Transposed(operator)
    m, n = tall.shape
    matrix = torch.empty(tall.samples, m, n, dtype=torch.float64, device=tall.device)
    for start in range(0, n, _COLUMNS):
        stop = min(start + _COLUMNS, n)
        unit = torch.zeros(n, stop - start, dtype=tall.dtype, device=tall.device)
        unit[torch.arange(start, stop), torch.arange(stop - start)] = 1
        matrix[:, :, start:stop] = tall.matmat(unit.expand(tall.samples, -1, -1))
    if not bool(torch.isfinite(matrix).all()):
        raise NotMeasuredError("the Jacobian has entries that are not finite; it has no singular values")
    values = torch.linalg.svdvals(matrix)
    error = (rounding(tall.dtype, tall.shape) * values[:, :1]).expand_as(values)
    kept = [*range(largest), *range(n - smallest, n)]
    return SingularValues(values[:, kept], error[:, kept], "dense", operator.shape, False, (largest, smallest))


class _Transposed:
    """An operator the other way round."""

    def __init__(self, operator: Operator) -> None:
        self.samples, self.dtype, self.device = operator.samples, operator.dtype, operator.device
        self.shape = (operator.shape[1], operator.shape[0])
        self.matmat, self.rmatmat = operator.rmatmat, operator.matmat
