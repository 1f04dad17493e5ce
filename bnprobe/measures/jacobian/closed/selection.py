"""Every output copies one input, or is constant: shapes, paddings, nearest upsampling, max pooling."""

import torch
from torch import Tensor, nn

from bnprobe.measures.jacobian.closed.column_sums import column_sums
from bnprobe.measures.jacobian.closed.union import EPS, Block, numel_of, union
from bnprobe.measures.jacobian.values import SingularValues

__all__ = ["SELECTIONS", "selection"]

SELECTIONS: frozenset[type[nn.Module]] = frozenset(
    {
        nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
        nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
        nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d,
        nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
        nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
        nn.Upsample, nn.UpsamplingNearest2d,
        nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
        nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    }
)  # fmt: skip


def selection(module: nn.Module, x: Tensor) -> SingularValues | None:
    """Roots of how often each input was copied.

    The Jacobian's rows are unit vectors, so its columns are orthogonal, and a column's squared length is its sum. Of
    equal largest inputs of a window, max pooling copies the one that autograd takes.
    """
    if getattr(module, "return_indices", False) or not str(getattr(module, "mode", "nearest")).startswith("nearest"):
        return None
    # Counts of copies beyond 256 are not exact in half precision; which of the inputs is largest is the same.
    copies, y = column_sums(module.forward, x if x.dtype == torch.float64 else x.float())
    if len(y) != len(x) or not bool(y.isfinite().all()):
        return None  # the samples' axis is not where it was; a window of max pooling holds nothing but padding
    values = copies.double().sqrt()
    error = torch.where(copies > 1, EPS * values, 0.0)
    return union([Block(values, error)], (numel_of(y), copies.shape[1]), len(x))
