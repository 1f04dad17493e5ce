"""Dropout: the Jacobian is the diagonal of the mask."""

import torch
from torch import Tensor, nn

from bnprobe.measures.jacobian.closed.column_sums import column_sums
from bnprobe.measures.jacobian.closed.selection import selection
from bnprobe.measures.jacobian.closed.union import EPS, Block, union
from bnprobe.measures.jacobian.values import SingularValues

__all__ = ["DROPOUTS", "dropout"]

_SCALED = frozenset({nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d})
DROPOUTS: frozenset[type[nn.Module]] = _SCALED | {nn.AlphaDropout, nn.FeatureAlphaDropout}


def dropout(module: nn.Module, x: Tensor) -> SingularValues | None:
    """1 / (1 - p) for every value that is kept, 0 for the others; in evaluation the identity.

    The mask is the one that the layer would draw if it ran on ``x`` now: the random state of the call counts, and is
    afterwards as before. Who wants the mask of a certain pass sets the state that the layer met in it.
    """
    if not module.training:
        return selection(nn.Identity(), x)
    if type(module) not in _SCALED or x.device.type not in ("cpu", "cuda"):
        return None
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        mask, _ = column_sums(module.forward, x)
    p = float(module.p)  # type: ignore[arg-type]  # torch types attributes of modules as tensors or modules
    values = (mask != 0).double() * (1 / (1 - p) if p < 1 else 0.0)
    return union([Block(values, 2 * EPS * values)], (values.shape[1], values.shape[1]), len(x))
