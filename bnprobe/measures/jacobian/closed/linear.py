"""Linear layers: the Jacobian is the weight."""

from torch import Tensor, nn

from bnprobe.measures.jacobian.closed.union import Block, numel_of, svdvals, union
from bnprobe.measures.jacobian.values import SingularValues

__all__ = ["linear"]


def linear(module: nn.Linear, x: Tensor) -> SingularValues | None:
    """Singular values of W; where a sample has L positions, of L copies of it along the diagonal.

    *Error.* That of the singular value decomposition, see :func:`svdvals`.
    """
    rows, columns = module.out_features, module.in_features
    if x.dim() < 2 or x.shape[-1] != columns:
        return None
    positions = numel_of(x) // columns
    values, error = svdvals(module.weight.detach()[None])
    return union([Block(values, error, positions)], (positions * rows, positions * columns), len(x))
