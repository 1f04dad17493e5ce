"""Batch norm that stays in eval mode when the model around it is trained."""

import warnings
from functools import cache
from typing import Any, Self, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnprobe.errors import ArgumentError, SelectionError
from bnprobe.hooks.sites import LayerChoice, unwrap
from bnprobe.remedies.batch_norms import batch_norms

__all__ = ["freeze", "is_frozen", "unfreeze"]

Model = TypeVar("Model", bound=nn.Module)


class _Frozen(_BatchNorm):
    """What :func:`freeze` puts before a layer's class: everything is the class's own, but for the mode.

    The classes are made as they are needed, so that third parties' subclasses of batch norm are right; copies and
    pickles remember the class that was frozen.
    """

    _frozen_from: type[_BatchNorm]
    _learned_before: dict[str, bool]  # requires_grad of the affine parameters that were frozen along

    def train(self, mode: bool = True) -> Self:
        """Nothing but the modules inside of the layer change their mode."""
        super().train(mode)
        self.training = False
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        _, _, *rest = reduced
        return _blank, (self._frozen_from,), *rest


def freeze(model: Model, layers: LayerChoice = None, *, affine: bool = False) -> Model:
    """Make batch norm layers normalize by their running statistics, whatever mode the model is put in.

    ``requires_grad=False`` does not do that: it stops gamma and beta, not the statistics; and ``layer.eval()`` holds
    until the next ``model.train()``. Here the layer's class is exchanged for a subclass of it that does not go into
    training mode. That survives ``model.train()``, ``copy.deepcopy``, ``torch.save`` of the model and
    ``torch.compile``; it is not part of the ``state_dict``, whose keys and values are as before. The layer, its
    parameters and buffers are the same objects.

    ``SyncBatchNorm.convert_sync_batchnorm`` makes new layers, which are not frozen; what writes ``layer.training``
    itself is obeyed.

    Source: He et al. 2016, *Deep Residual Learning*, appendix A: statistics are fixed when detectors are fine-tuned.

    Args:
        model: in place; wrappers are looked through.
        layers: which; default all batch norm layers with running statistics. Else as in :func:`bnprobe.attach`; batch
            norm layers among the chosen count.
        affine: whether gamma and beta are frozen as well (``requires_grad=False``), as torchvision's
            ``FrozenBatchNorm2d`` has it. Default no: they can be fitted to fixed statistics.

    Returns:
        The model.

    Raises:
        SelectionError: no batch norm layer is chosen.
        ArgumentError: a layer chosen by name or class keeps no running statistics (it would go on with those of the
            batch), or a lazy one has not run yet.

    Warns:
        UserWarning: layers that keep no running statistics and were not chosen by name are left.
    """
    found, left = batch_norms(model, layers), []
    for name, layer in found.items():
        if layer.running_mean is None or layer.running_var is None:
            left.append(name)
    if left:
        told = f"{', '.join(map(repr, left))} keep no running statistics and normalize by the batch in every mode"
        if layers is not None or len(left) == len(found):
            raise ArgumentError(f"{told}: they cannot be frozen")
        warnings.warn(f"{told}: they are left", stacklevel=2)
    for name, layer in found.items():
        if name not in left:
            _freeze(layer, affine)
    return model


def unfreeze(model: Model, layers: LayerChoice = None) -> Model:
    """Undo :func:`freeze`: the layers take the mode of the model, gamma and beta learn again where they did before.

    Args:
        model: in place; wrappers are looked through.
        layers: as in :func:`freeze`; default all that are frozen. Layers that are not are left alone.

    Returns:
        The model.

    Raises:
        SelectionError: no batch norm layer is chosen, or none of the chosen is frozen.
    """
    found = [layer for layer in batch_norms(model, layers).values() if isinstance(layer, _Frozen)]
    if not found:
        raise SelectionError("no chosen batch norm layer is frozen by bnprobe.remedies.freeze")
    mode = unwrap(model).training
    for layer in found:
        learned = layer.__dict__.pop("_learned_before")
        for name, parameter in layer.named_parameters(recurse=False):
            parameter.requires_grad_(learned.get(name, parameter.requires_grad))
        kind: Any = layer._frozen_from
        layer.__class__ = kind
        layer.train(mode)
    return model


def is_frozen(layer: nn.Module) -> bool:
    """Whether :func:`freeze` holds the layer."""
    return isinstance(layer, _Frozen)


def _freeze(layer: _BatchNorm, affine: bool) -> None:
    if not isinstance(layer, _Frozen):
        layer.__class__ = _frozen(type(layer))  # type: ignore[arg-type]  # classes have a hash
        layer.__dict__["_learned_before"] = {}
    layer.training = False
    if affine:
        for name, parameter in layer.named_parameters(recurse=False):
            layer.__dict__["_learned_before"].setdefault(name, parameter.requires_grad)
            parameter.requires_grad_(False)


@cache
def _frozen(kind: Any) -> Any:
    return type(f"Frozen{kind.__name__}", (_Frozen, kind), {"_frozen_from": kind, "__module__": __name__})


def _blank(kind: type[_BatchNorm]) -> _Frozen:
    """An instance before its state is put in: what copies and pickles begin with."""
    frozen: type[_Frozen] = _frozen(kind)  # type: ignore[arg-type]  # classes have a hash
    return frozen.__new__(frozen)
