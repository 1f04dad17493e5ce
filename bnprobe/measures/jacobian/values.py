"""What each way of computing singular values returns."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["SingularValues"]


@dataclass(frozen=True)
class SingularValues:
    """Singular values of N Jacobians of one shape.

    Attributes:
        values: ``[N, k]``, descending.
        error: ``[N, k]``, absolute bound of each value's error.
        method: ``closed form``, ``dense`` or ``Lanczos``.
        shape: (outputs, inputs) of one Jacobian.
        coupled: whether the samples interact: then N = 1 and the Jacobian is that of the whole batch.
        which: how many of the k values are the largest and how many the smallest; ``(min(shape), 0)`` means all.
    """

    values: Tensor
    error: Tensor
    method: str
    shape: tuple[int, int]
    coupled: bool
    which: tuple[int, int]
