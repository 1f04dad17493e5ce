"""Ghost batch normalization."""

import torch
from torch import Tensor, nn

__all__ = ["GhostBatchNorm"]


class GhostBatchNorm(nn.Module):
    """Batch norm of each part of so many samples by itself, with one set of parameters (Hoffer et al. 2017).

    The parts enter the running statistics one after the other. Evaluation mode is that of batch norm.

    Args:
        num_features: C of ``[N, C, ...]``.
        ghost_size: samples of a part; the last may have fewer.
        eps: added to variances.
        momentum: weight of a part in the running statistics.
    """

    def __init__(self, num_features: int, ghost_size: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.ghost_size = ghost_size
        self.norm = _AnyBatchNorm(num_features, eps, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each part; in training mode update the running statistics with each."""
        if not self.training:
            return torch.as_tensor(self.norm(x))
        return torch.cat([self.norm(part) for part in torch.split(x, self.ghost_size)])


class _AnyBatchNorm(nn.BatchNorm1d):
    """Batch norm of any number of positions."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        pass
