"""What a model would do if no sample had a say in how others are normalized: batch statistics held still.

The control of the swap test: where outputs still depend on batch mates, something else than normalization couples them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnprobe.hooks.sites import Site, find_sites

__all__ = ["HeldStill"]

_FUNCTIONAL = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_NATIVE = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")


class HeldStill(TorchFunctionMode):
    """While it is on, batch norms (also functional and unregistered ones) use statistics of the first forward.

    :meth:`begin` says that a forward begins. Layers of other people's making, which compute by hand, are replaced by
    the affine map per channel that they were in the first forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._maps: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._calls = 0

    def begin(self, root: nn.Module) -> None:
        """Count calls from zero, and replace the forwards of hand-written layers (an attribute of the instance)."""
        self._calls = 0
        for site in find_sites(root, lambda _, __: True):
            if site.family == "batch_norm" and not type(site.module).forward.__module__.startswith("torch."):
                site.module.forward = _Affine(site, site.module.forward, self._maps)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.batch_norm and func is not torch.batch_norm:
            return func(*args, **(kwargs or {}))
        names = _FUNCTIONAL if func is F.batch_norm else _NATIVE
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        if not given.get("training"):
            return func(**given)
        if self._calls == len(self._kept):
            x = given["input"].detach().movedim(1, 0).flatten(1).double()
            self._kept.append((x.mean(1), x.var(1, correction=0)))
        mean, variance = (one.to(given["input"].dtype) for one in self._kept[self._calls])
        self._calls += 1
        given |= {"running_mean": mean, "running_var": variance, "training": False}
        return func(*(given[name] for name in names)) if func is torch.batch_norm else func(**given)


class _Affine:
    """A layer's forward as the affine map a channel that it was when it was first called."""

    def __init__(self, site: Site, forward: Any, maps: dict[tuple[str, int], tuple[Tensor, Tensor]]) -> None:
        self._site, self._forward, self._maps, self._call = site, forward, maps, -1

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._call += 1
        key, axis = (self._site.name, self._call), self._site.channel_axis(x)
        if axis is None:
            return self._forward(x, *args, **kwargs)
        if key not in self._maps:
            before = x.detach().clone()
            with torch._C.DisableTorchFunction():  # its own calls are not counted: next time there are none
                y = self._forward(x, *args, **kwargs)
            if not isinstance(y, Tensor) or y.shape != before.shape:
                return y
            self._maps[key] = _line(before.movedim(axis, 0).flatten(1).double(), y.movedim(axis, 0).flatten(1).double())
        slope, shift = (one.to(x.dtype).reshape([-1] + [1] * (x.dim() - axis - 1)) for one in self._maps[key])
        return x * slope + shift


def _line(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares of each row."""
    off = x - x.mean(1, keepdim=True)
    slope = (off * y.detach()).sum(1) / off.square().sum(1).clamp_min(1e-300)
    return slope, y.detach().mean(1) - slope * x.mean(1)
