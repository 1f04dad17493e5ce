"""Column sums of a Jacobian: the gradient of the sum of all outputs, one backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["column_sums"]


def column_sums(forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """``[N, D]`` sums over the rows of each sample's Jacobian, and the output; NaN where the output is not finite.

    A window of max pooling that holds nothing but padding gives minus infinity, and torch (2.13) then writes its
    gradient outside of the tensor: there is no backward pass from such an output. ``x`` itself is not touched, whatever
    ``forward`` does in place; nothing else receives a gradient.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        y = forward(leaf.clone())
        if not bool(y.detach().isfinite().all()):
            return torch.full((len(x), x[0].numel()), torch.nan, dtype=x.dtype, device=x.device), y.detach()
        (sums,) = torch.autograd.grad(y.sum(), leaf)
    return sums.reshape(len(x), -1), y.detach()
