"""The parameters of a model: under which names, which axis of each counts output channels."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from bnprobe.hooks.sites import named_layers
from bnprobe.hooks.tensors import why_unreadable

__all__ = ["Held", "held_by"]


@dataclass(frozen=True, eq=False)
class Held:
    """One parameter tensor; however many places hold it, it is one.

    Attributes:
        name: as in ``named_parameters()`` of the unwrapped model: the first of its names.
        tensor: the parameter.
        layer: the module whose parameter it is; of a parametrization's, the parametrized layer.
        layer_name: its name.
        why: why it is not measured; empty where it is.
    """

    name: str
    tensor: Tensor
    layer: nn.Module
    layer_name: str
    why: str

    @property
    def channels(self) -> int:
        """Number of output channels, C."""
        if self._transposed:
            return int(self.layer.out_channels)  # type: ignore[arg-type]  # a transposed convolution's
        shape = self.tensor.shape
        return int(shape[self._axis]) if shape else 1

    def rows(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape as ``[C, D]``, real: what belongs to one output channel is one row."""
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        if self.tensor.dim() == 0:
            return tensor.reshape(1, -1)
        if self._transposed:  # [in, out / groups, ...]: each group of inputs has outputs of its own
            groups = int(self.layer.groups)  # type: ignore[arg-type]
            inner, outer = tensor.shape[0] // groups, tensor.shape[1]
            return tensor.reshape(groups, inner, outer, -1).transpose(1, 2).reshape(groups * outer, -1)
        return tensor.movedim(self._axis, 0).reshape(self.channels, -1)

    def spread(self, values: Tensor) -> Tensor:
        """Numbers ``[C]``, one a channel, in a shape that broadcasts against the parameter's."""
        if self.tensor.dim() == 0:
            return values.reshape(())
        shape = [1] * self.tensor.dim()
        if self._transposed:
            groups = int(self.layer.groups)  # type: ignore[arg-type]
            inner, outer = self.tensor.shape[0] // groups, self.tensor.shape[1]
            shape[:2] = [groups * inner, outer]
            return values.reshape(groups, 1, outer).expand(groups, inner, outer).reshape(shape)
        shape[self._axis] = -1
        return values.reshape(shape)

    @property
    def _axis(self) -> int:
        return 1 if isinstance(self.layer, nn.Embedding | nn.EmbeddingBag) and self.tensor.dim() == 2 else 0

    @property
    def _transposed(self) -> bool:
        layer = self.layer
        if not isinstance(layer, _ConvTransposeNd) or self.tensor.dim() < 3:
            return False
        return self.tensor.shape[:2] == (layer.in_channels, layer.out_channels // layer.groups)


def held_by(root: nn.Module) -> list[Held]:
    """The parameters of a model whose wrappers are taken off, each once."""
    found: dict[int, Held] = {}
    for layer_name, layer in named_layers(root):
        for name, tensor in _own(layer):
            full = f"{layer_name}.{name}" if layer_name else name
            found.setdefault(id(tensor), Held(full, tensor, layer, layer_name, _why_not(layer, tensor)))
    return list(found.values())


def _own(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from layer.named_parameters(recurse=False)
    parametrizations = layer._modules.get("parametrizations")
    if parametrizations is not None:
        for name, tensor in parametrizations.named_parameters():
            yield f"parametrizations.{name}", tensor


def _why_not(layer: nn.Module, tensor: Tensor) -> str:
    if isinstance(layer, torch.jit.ScriptModule):
        return "a scripted module's parameters cannot be exchanged"
    if tensor.is_complex() and type(tensor) is nn.Parameter and tensor.numel():
        return ""
    return why_unreadable(tensor)
