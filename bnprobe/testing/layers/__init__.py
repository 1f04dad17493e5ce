"""Normalization layers that torch does not have, written plainly: the kit holds itself against them."""

from bnprobe.testing.layers.batch_renorm import BatchRenorm
from bnprobe.testing.layers.ghost_batch_norm import GhostBatchNorm

__all__ = ["BatchRenorm", "GhostBatchNorm"]
