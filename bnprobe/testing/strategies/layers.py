"""Torch's normalization layers, with settings."""

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from bnprobe.errors import ArgumentError

__all__ = ["NormLayer", "norm_layers"]

_KINDS = (
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm1d", "InstanceNorm2d", "GroupNorm", "LayerNorm", "RMSNorm"
)  # fmt: skip


@dataclass(frozen=True)
class NormLayer:
    """One of torch's normalization layers, as a recipe.

    Attributes:
        kind: name of the class in ``torch.nn``.
        channels: that it is for.
        settings: its other arguments by name.
        seed: of its scale and shift, which are random, of both signs and of order 1; None leaves them at 1 and 0.

    Raises:
        ArgumentError: torch has no such layer.
    """

    kind: str
    channels: int
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ArgumentError(f"kind must be one of {', '.join(_KINDS)}; got {self.kind!r}")

    def module(self) -> nn.Module:
        """A fresh layer."""
        settings = dict(self.settings)
        first = (settings.pop("num_groups"), self.channels) if self.kind == "GroupNorm" else (self.channels,)
        module: nn.Module = getattr(nn, self.kind)(*first, **settings)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
            with torch.no_grad():
                for parameter in module.parameters():
                    drawn = torch.rand(parameter.shape, generator=generator) * 1.5 + 0.5
                    sign = torch.randint(2, parameter.shape, generator=generator) * 2 - 1
                    parameter.copy_(sign * drawn)
        return module


@st.composite
def norm_layers(draw: st.DrawFn, kinds: tuple[str, ...] = _KINDS, *, channels: tuple[int, int] = (1, 6)) -> NormLayer:
    """Recipes of normalization layers; ``.module()`` makes one.

    Shrinks to the first kind, few channels and torch's defaults.

    Args:
        draw: hypothesis' own; not to be given.
        kinds: names of classes in ``torch.nn``.
        channels: least and largest number.
    """
    kind, width = draw(st.sampled_from(kinds)), draw(st.integers(*channels))
    settings: dict[str, Any] = {}
    if draw(st.booleans()):
        settings["eps"] = draw(st.sampled_from((1e-3, 1e-2, 0.1)))
    if kind == "GroupNorm":
        settings["num_groups"] = draw(st.sampled_from([n for n in range(1, width + 1) if width % n == 0]))
    if kind.startswith(("BatchNorm", "InstanceNorm")):
        if draw(st.booleans()):
            options = (0.01, 0.5, 1.0, *((None,) if kind.startswith("Batch") else ()))
            settings["momentum"] = draw(st.sampled_from(options))
        for name in ("affine", "track_running_stats"):
            if draw(st.booleans()):
                settings[name] = draw(st.booleans())
    return NormLayer(kind, width, settings, draw(st.none() | st.integers(0, 9)))
