"""A Jacobian as what it does to vectors."""

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Operator"]


class Operator(Protocol):
    """N independent Jacobians of one shape, known by their products with blocks of vectors.

    Attributes:
        samples: N.
        shape: (m, n), the outputs and inputs of each.
        dtype: of the vectors.
        device: of the vectors.
    """

    samples: int
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    def matmat(self, v: Tensor) -> Tensor:
        """J v: from ``[N, n, b]`` to ``[N, m, b]``."""
        ...

    def rmatmat(self, u: Tensor) -> Tensor:
        """The transposed J u: from ``[N, m, b]`` to ``[N, n, b]``."""
        ...
