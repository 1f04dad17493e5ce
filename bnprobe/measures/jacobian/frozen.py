"""Batch statistics held fixed: what makes samples under train-mode batch norm independent."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["FrozenBatchStatistics"]

_FUNCTION = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_OPERATOR = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
_DEFAULTS = {"weight": None, "bias": None, "training": False, "eps": 1e-5}


class FrozenBatchStatistics(TorchFunctionMode):
    """Inside, batch norm in train mode divides by its batch's statistics as if they were constants.

    The outputs are the same; the derivative no longer goes through mean and variance, as in the mean-field theory of
    G. Yang et al. (2019) and J. Pennington et al. (2017). Seen is whatever calls ``F.batch_norm`` or
    ``torch.batch_norm``, not statistics that a layer computes by itself.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Batch norm in train mode, or whatever else was called."""
        kwargs = kwargs or {}
        names = _FUNCTION if func is F.batch_norm else _OPERATOR if func is torch.batch_norm else ()
        given = {**_DEFAULTS, **dict(zip(names, args, strict=False)), **kwargs} if names else {}
        if not names or not given["training"]:
            return func(*args, **kwargs)
        return _normalized(given["input"], given["weight"], given["bias"], given["eps"])


def _normalized(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    variance, mean = torch.var_mean(x.detach().to(wide), axes, correction=0, keepdim=True)
    shape = mean.shape
    scale = (variance + eps).rsqrt()
    y = (x.to(wide) - mean) * scale
    if weight is not None:
        y = y * weight.to(wide).view(shape)
    if bias is not None:
        y = y + bias.to(wide).view(shape)
    return y.to(x.dtype)
