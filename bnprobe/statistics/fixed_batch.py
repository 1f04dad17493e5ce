"""The fixed batch of a measurement during training."""

from typing import Any

import torch
from torch import nn

from bnprobe.hooks.tensors import with_tensors

__all__ = ["beside", "kept", "written"]


def kept(batch: Any) -> Any:
    """The batch with copies of its tensors, which nobody else writes into."""
    return with_tensors(batch, lambda tensor: tensor.detach().clone())


def beside(root: nn.Module, batch: Any) -> Any:
    """The batch on the device where the model's first parameter lies."""
    first = next((one for one in (*root.parameters(), *root.buffers())), None)
    device = torch.device("cpu") if first is None else first.device
    return with_tensors(batch, lambda tensor: tensor.to(device))


def written(setting: Any) -> str:
    """A setting as it is written in a run's description: the same on every rank."""
    return getattr(setting, "__qualname__", None) or repr(setting)
