"""Which layers of a model the cures are for, and a copy of the model with some of them exchanged."""

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from bnprobe.errors import ArgumentError, SelectionError
from bnprobe.hooks.sites import LayerChoice, find_sites, unwrap

__all__ = ["batch_norms", "exchanged", "why_its_own"]


def batch_norms(model: nn.Module, layers: LayerChoice = None) -> dict[str, _BatchNorm]:
    """The batch norm layers among the chosen, by name.

    Raises:
        SelectionError: there is none.
        ArgumentError: one of them is lazy and has not run yet.
    """
    root = unwrap(model)
    every = (lambda _, module: isinstance(module, _BatchNorm)) if layers is None else layers
    try:
        sites = find_sites(root, every)
    except SelectionError:
        if layers is not None:
            raise
        sites = []
    found = {site.name: site.module for site in sites if isinstance(site.module, _BatchNorm)}
    if not found:
        chosen = "" if layers is None else f" among the layers that {layers!r} chooses"
        raise SelectionError(f"no batch norm layer in {type(root).__name__}{chosen}")
    for name, module in found.items():
        if isinstance(module, LazyModuleMixin):
            raise ArgumentError(f"{name!r} is a {type(module).__name__}; run the model once on a batch before")
    return found


def why_its_own(layer: nn.Module) -> str:
    """Why another layer cannot stand in for this one, or an empty string: PyTorch's forward and nothing attached."""
    kind = type(layer)
    own = next((base for base in kind.__mro__ if base.__module__.startswith("torch.nn.modules.")), nn.Module)
    if own is nn.Module or any(_differs(layer, own, name) for name in ("forward", "_conv_forward")):
        return f"{kind.__name__} has a forward of its own"
    if is_parametrized(layer):
        return "it has parametrizations"
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return "it has hooks" if any(hooks) else ""


def exchanged(root: nn.Module, new: Mapping[int, nn.Module]) -> nn.Module:
    """A deep copy of a model with some modules exchanged, wherever it refers to them.

    Args:
        root: the model; it is left as it is.
        new: by ``id`` of the module of ``root``, what takes its place.
    """
    return copy.deepcopy(root, dict(new))  # in whose memory they are copied already


def _differs(layer: nn.Module, own: type[nn.Module], name: str) -> bool:
    mine, theirs = getattr(type(layer), name, None), getattr(own, name, None)
    return name in layer.__dict__ or mine is not theirs or isinstance(layer, torch.jit.ScriptModule)
