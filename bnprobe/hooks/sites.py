"""Which layers a model has: names, families, channel axes; and how users choose among them."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from bnprobe.errors import ArgumentError, SelectionError
from bnprobe.records import Layer

__all__ = ["LayerChoice", "Site", "find_sites", "named_layers", "unwrap"]

Predicate: TypeAlias = Callable[[str, nn.Module], bool]
LayerChoice: TypeAlias = str | type[nn.Module] | Predicate | Sequence[str | type[nn.Module]] | None

# A wrapper and the attribute under which it keeps what it wraps. By name, so that nothing has to be imported.
_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "AveragedModel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "OptimizedModule": "_orig_mod",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}

_NORM_CLASSES: tuple[tuple[type[nn.Module], str], ...] = (
    (_BatchNorm, "batch_norm"),
    (_InstanceNorm, "instance_norm"),
    (nn.LayerNorm, "layer_norm"),
    (nn.GroupNorm, "group_norm"),
    (nn.RMSNorm, "rms_norm"),
    (nn.LocalResponseNorm, "other_norm"),
)
# Norm layers that third parties wrote are known by their class names ("LlamaRMSNorm", "FrozenBatchNorm2d").
_NORM_NAMES = (
    (re.compile(r"batch_?(re)?norm", re.I), "batch_norm"),
    (re.compile(r"instance_?norm", re.I), "instance_norm"),
    (re.compile(r"group_?norm", re.I), "group_norm"),
    (re.compile(r"rms_?norm", re.I), "rms_norm"),
    (re.compile(r"layer_?norm", re.I), "layer_norm"),
    (re.compile(r"norm(\d?d)?$", re.I), "other_norm"),
)
_NOT_POINTWISE = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU)
_NONLINEARITY = re.compile(r"relu|elu|gelu|silu|swish|mish|sigmoid|tanh|softplus|softsign|shrink|activation", re.I)
_CHANNELS_FIRST = {"batch_norm", "group_norm", "instance_norm"}
_CHANNELS_LAST = {"linear"}


@dataclass(frozen=True, eq=False)
class Site:
    """One layer that can be listened to.

    Attributes:
        name: path as in ``named_modules()`` of the unwrapped model.
        module: the layer itself.
        family: what kind of layer it is, see :class:`bnprobe.records.Layer`.
    """

    name: str
    module: nn.Module
    family: str

    @cached_property
    def is_norm(self) -> bool:
        """Whether the layer normalizes."""
        return self.family.endswith("_norm")

    @cached_property
    def knows_its_channels(self) -> bool:
        """Whether the layer itself fixes which axis counts channels; a nonlinearity works on any."""
        return self.family not in ("nonlinearity", "other")

    @property
    def leaves_its_input(self) -> bool:
        """Whether it is surely a layer of PyTorch's own that does not write into its input."""
        kind = type(self.module)
        own = kind.__module__.startswith("torch.nn.modules.") and "forward" not in self.module.__dict__
        return own and getattr(self.module, "inplace", False) is not True

    @property
    def channels(self) -> int | None:
        """Number of channels at the output, where the layer declares one."""
        for attribute in (
            "num_features",
            "num_channels",
            "out_channels",
            "out_features",
            "hidden_size",
            "embedding_dim",
        ):
            value = _attribute(self.module, attribute)
            if isinstance(value, int):
                return value
        shape = _attribute(self.module, "normalized_shape")
        return int(shape[0]) if isinstance(shape, Sequence) and len(shape) == 1 else None

    def channel_axis(self, tensor: Tensor) -> int | None:
        """Axis of ``tensor`` (an input or output of this layer) that counts channels; None where there is none.

        For layers that treat all axes alike it is what the field's layouts suggest: ``[N, C]``, ``[N, T, C]``,
        ``[N, C, H, W]``; a caller who knows which layer made the tensor knows better.
        """
        if tensor.dim() < 2:
            return None
        if self.is_norm:
            return self._declared_axis(tensor)
        if isinstance(self.module, _ConvNd):
            return tensor.dim() - 1 - len(self.module.kernel_size)
        if self.family in _CHANNELS_LAST or tensor.dim() <= 3:
            return tensor.dim() - 1
        return 1

    def _declared_axis(self, tensor: Tensor) -> int | None:
        """The axis that has as many entries as the norm layer says; its family's own where several have."""
        if self.family == "layer_norm" and self.channels is None:
            return None  # over several axes
        first, last = 1, tensor.dim() - 1
        for axis in (first, last) if self.family in _CHANNELS_FIRST else (last, first):
            if self.channels is None or tensor.shape[axis] == self.channels:
                return axis
        return None

    def describe(self, feeds: Sequence[str] = (), observed: bool = False, why: str = "") -> Layer:
        """The inventory's line, read from the module as it is now (lazy layers change when they first run)."""
        eps = _attribute(self.module, "eps")
        eps = _attribute(self.module, "variance_epsilon") if eps is None else eps
        momentum = _attribute(self.module, "momentum")
        return Layer(
            name=self.name,
            kind=_kind(self.module),
            family=self.family,
            channels=self.channels,
            eps=float(eps) if isinstance(eps, float | int) and self.is_norm else None,
            momentum=float(momentum) if isinstance(momentum, float | int) and self.is_norm else None,
            feeds=tuple(feeds),
            observed=observed,
            why=why,
        )


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP, FSDP, ``torch.compile``, ``AveragedModel`` and checkpoint wrappers."""
    while (attribute := _wrapped_under(model)) is not None:
        model = getattr(model, attribute)
    return model


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``named_modules()`` of the unwrapped model, with wrappers below the root looked through as well."""
    yield from _walk(model, "", set())


def find_sites(model: nn.Module, layers: LayerChoice = None) -> list[Site]:
    """The layers of ``model`` that ``layers`` chooses, in the order of ``named_modules()``.

    Args:
        model: any module; wrappers are looked through.
        layers: None for every normalization layer and every other leaf with parameters or a pointwise
            nonlinearity; else glob(s) on the names, module class(es), or a predicate ``(name, module) -> bool``.

    Raises:
        SelectionError: nothing is chosen, or one of several patterns or classes chooses nothing.
        ArgumentError: ``layers`` is none of these.
    """
    everything = list(named_layers(model))
    names = _choose(everything, layers)
    sites = [Site(name, module, _family(module)) for name, module in everything if name in names]
    if not sites:
        wanted = "no layer with parameters, normalization or nonlinearity" if layers is None else f"layers={layers!r}"
        raise SelectionError(
            f"{wanted} found in {type(unwrap(model)).__name__}; it has {_some([n for n, _ in everything])}"
        )
    return sites


def _choose(everything: list[tuple[str, nn.Module]], layers: LayerChoice) -> set[str]:
    if layers is None:
        return {name for name, module in everything if _is_default(module)}
    if isinstance(layers, str | type):
        return _matches(everything, layers)
    if callable(layers):
        return {name for name, module in everything if layers(name, module)}
    if isinstance(layers, Sequence):
        return set().union(*(_matches(everything, one) for one in layers))
    raise ArgumentError(
        f"layers must be None, glob string(s), module class(es) or a function (name, module) -> bool; got {layers!r}"
    )


def _matches(everything: list[tuple[str, nn.Module]], wanted: Any) -> set[str]:
    if isinstance(wanted, str):
        found = {name for name, _ in everything if name == wanted or fnmatchcase(name, wanted)}
    elif isinstance(wanted, type) and issubclass(wanted, nn.Module):
        found = {name for name, module in everything if isinstance(module, wanted)}
    else:
        raise ArgumentError(f"layers holds {wanted!r}; a glob string or a subclass of torch.nn.Module is right")
    if not found:
        names = [name for name, _ in everything]
        near = get_close_matches(wanted, names, n=5, cutoff=0.4) if isinstance(wanted, str) else []
        label = repr(wanted) if isinstance(wanted, str) else wanted.__name__
        hint = f"near names: {', '.join(near)}" if near else f"the model has {_some(names)}"
        raise SelectionError(f"layers: {label} matches no layer; {hint}")
    return found


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 12 else shown


def _is_default(module: nn.Module) -> bool:
    if _family(module) != "other":
        return True
    leaf = not [name for name, _ in module.named_children() if name != "parametrizations"]
    return leaf and bool(list(module.parameters(recurse=True)))


def _family(module: nn.Module) -> str:
    for base, family in _NORM_CLASSES:
        if isinstance(module, base):
            return family
    if isinstance(module, _ConvNd):
        return "conv"
    if isinstance(module, nn.Linear | nn.Bilinear | nn.MultiheadAttention):
        return "linear"
    name, leaf = _kind(module), not list(module.children())
    if leaf:
        for pattern, family in _NORM_NAMES:
            if pattern.search(name):
                return family
        if not isinstance(module, _NOT_POINTWISE) and not list(module.parameters()) and _NONLINEARITY.search(name):
            return "nonlinearity"
        if isinstance(module, nn.PReLU):
            return "nonlinearity"
    return "other"


def _attribute(module: nn.Module, name: str) -> Any:
    """An attribute, or None where there is none; a property of the user's may raise whatever it likes."""
    try:
        return getattr(module, name, None)
    except Exception:
        return None


def _kind(module: nn.Module) -> str:
    """The class name; of a scripted or sharded module, that of the one it was made of."""
    original = getattr(module, "original_name", None) if isinstance(module, torch.jit.ScriptModule) else None
    if isinstance(original, str):
        return original
    own, *bases = type(module).__mro__
    sharded = len(bases) > 1 and bases[0].__name__ == "FSDPModule" and bases[0].__module__.startswith("torch.")
    return bases[1].__name__ if sharded else own.__name__


def _wrapped_under(module: nn.Module) -> str | None:
    for base in type(module).__mro__:
        attribute = _WRAPPERS.get(base.__name__)
        if (
            attribute
            and base.__module__.startswith("torch.")
            and isinstance(getattr(module, attribute, None), nn.Module)
        ):
            return attribute
    return None


def _walk(module: nn.Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    module = unwrap(module)
    if id(module) in seen:
        return
    seen.add(id(module))
    yield prefix, module
    for name, child in module.named_children():
        if name != "parametrizations":
            yield from _walk(child, f"{prefix}.{name}" if prefix else name, seen)
