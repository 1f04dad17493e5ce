"""What a layer under test claims to be, and with which settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from bnprobe.errors import ArgumentError

__all__ = ["ACROSS_SAMPLES", "CENTRED", "LIKES", "PER_SAMPLE", "Like", "Settings", "settings_of"]

Like = Literal[
    "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "batch_renorm", "ghost_batch_norm"
]
LIKES: tuple[Like, ...] = get_args(Like)
ACROSS_SAMPLES: tuple[Like, ...] = ("batch_norm", "batch_renorm", "ghost_batch_norm")
PER_SAMPLE: tuple[Like, ...] = ("layer_norm", "group_norm", "instance_norm", "rms_norm")
CENTRED: tuple[Like, ...] = tuple(like for like in LIKES if like != "rms_norm")

# Under which attribute layers of the field keep a setting; the first one found counts.
_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "eps": ("eps", "epsilon", "variance_epsilon"),
    "momentum": ("momentum",),
    "groups": ("num_groups", "groups"),
    "ghost": ("virtual_batch_size", "ghost_size", "ghost_batch_size"),
    "r_max": ("r_max", "rmax"),
    "d_max": ("d_max", "dmax"),
}


@dataclass(frozen=True)
class Settings:
    """What the laws need to know of a layer.

    Attributes:
        like: which law it follows.
        eps: added to the variance, under the root.
        momentum: weight of the new batch in the running statistics; None for the plain average over batches.
        groups: of group norm.
        ghost: samples of a ghost batch; None for the whole batch.
        ghost_updates: how ghost batches enter the running statistics: one after the other, or by their mean.
        r_max: largest r of batch renormalization.
        d_max: largest d of it.
        axes: that layer and RMS norm normalize over, counted from the end (negative).
        running: what the second buffer holds.
        ranks: processes whose batches are normalized as one, by a synchronised layer; 1 for any other.
        scale_offset: what the forward adds to the scale it keeps; 1 where a scale of 0 is meant as the identity.
    """

    like: Like
    eps: float = 1e-5
    momentum: float | None = 0.1
    groups: int = 1
    ghost: int | None = None
    ghost_updates: Literal["in turn", "mean"] = "in turn"
    r_max: float = math.inf
    d_max: float = math.inf
    axes: tuple[int, ...] = (-1,)
    running: Literal["variance", "deviation"] = "variance"
    ranks: int = 1
    scale_offset: float = 0.0

    def normalized_axes(self, dimensions: int) -> tuple[int, ...]:
        """Axes that layer and RMS norm normalize over, of a tensor with so many."""
        return tuple(sorted(axis % dimensions for axis in self.axes))

    def parameter_axes(self, dimensions: int) -> tuple[int, ...]:
        """Axes along which gamma and beta vary."""
        return self.normalized_axes(dimensions) if self.like in ("layer_norm", "rms_norm") else (1,)


def settings_of(module: nn.Module, like: Like, dtype: torch.dtype, given: Mapping[str, Any]) -> Settings:
    """Settings of a layer: those given, else those of its attributes, else the defaults of :class:`Settings`.

    Attributes are looked for on the module and its submodules, outermost first.

    Raises:
        ArgumentError: a setting is given that there is not.
    """
    if wrong := set(given) - set(Settings.__dataclass_fields__) - {"like"}:
        known = ", ".join(sorted(set(Settings.__dataclass_fields__) - {"like"}))
        raise ArgumentError(f"there is no setting {sorted(wrong)[0]!r}; settings of a layer are {known}")
    found: dict[str, Any] = {}
    for name, attributes in _ATTRIBUTES.items():
        for value in _values(module, attributes):
            if name == "momentum" or value is not None:
                found[name] = _number(value)
                break
    if "eps" not in found and any(value is None for value in _values(module, ("eps",))):
        found["eps"] = torch.finfo(torch.promote_types(dtype, torch.float32)).eps  # as torch's RMSNorm does
    shape = next(iter(_values(module, ("normalized_shape",))), None)
    if shape is not None:
        found["axes"] = tuple(range(-len(shape) if hasattr(shape, "__len__") else -1, 0))
    if any("running_std" in name or "running_sigma" in name for name, _ in module.named_buffers()):
        found["running"] = "deviation"
    return replace(Settings(like), **found | dict(given))


def _values(module: nn.Module, attributes: tuple[str, ...]) -> list[Any]:
    return [getattr(one, name) for one in module.modules() for name in attributes if hasattr(one, name)]


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value
