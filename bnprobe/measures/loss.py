"""The loss of a measurement that needs one: the user's, or cross entropy where a batch has class labels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bnprobe.errors import ArgumentError, NotMeasuredError

__all__ = ["Loss", "checked_loss", "loss_or_cross_entropy"]

Loss = Callable[[nn.Module, Any], Tensor]


def loss_or_cross_entropy(loss: Loss | None, batch: Any) -> Loss:
    """The given loss; without one, cross entropy of ``model(x)`` where the batch is ``(x, y)`` with class labels y.

    Raises:
        ArgumentError: there is no loss and the batch does not say what it is.
    """
    if loss is not None:
        return loss
    if not (isinstance(batch, Sequence) and len(batch) == 2 and _labels(batch[1])):
        raise ArgumentError(
            "needs loss: (model, batch) -> scalar tensor. Without one the batch must be (x, y) with integer class "
            f"labels y; got {type(batch).__name__}"
        )
    return lambda model, pair: cross_entropy(model(pair[0]), pair[1])


def checked_loss(value: Any) -> Tensor:
    """What a loss returned, as a scalar with a graph behind it.

    Raises:
        NotMeasuredError: it is not one real number, or no graph leads to it.
    """
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point() or not value.requires_grad:
        shown = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        graph = "" if not isinstance(value, Tensor) or value.requires_grad else " without a graph"
        raise NotMeasuredError(f"the loss must be one number with a gradient; got {shown}{graph}")
    return value.reshape(())


def _labels(y: Any) -> bool:
    return isinstance(y, Tensor) and not y.is_floating_point() and not y.is_complex() and y.dtype != torch.bool
