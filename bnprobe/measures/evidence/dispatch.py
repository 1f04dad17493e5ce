"""Normalization that runs without being a layer of the model: built in forward, kept in a list, or functional.

Every call of a normalizing function is traced back, by the Python frames it comes from, to the module whose forward
made it. What runs inside TorchScript or as a quantized kernel is not seen; how many such parts there are is a fact.
"""

import sys
from collections import Counter
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnprobe.evidence import Fact
from bnprobe.hooks.sites import named_layers
from bnprobe.measures.evidence.patient import Patient, _norm_sites

__all__ = ["measure"]

_FUNCTIONS = {
    F.batch_norm: "batch_norm", torch.batch_norm: "batch_norm", torch.native_batch_norm: "batch_norm",
    F.instance_norm: "instance_norm", torch.instance_norm: "instance_norm",
    F.group_norm: "group_norm", torch.group_norm: "group_norm", torch.native_group_norm: "group_norm",
    F.layer_norm: "layer_norm", torch.layer_norm: "layer_norm", torch.native_layer_norm: "layer_norm",
    F.rms_norm: "rms_norm", torch.rms_norm: "rms_norm",
}  # fmt: skip
_TRAINING = {F.batch_norm: 5, torch.batch_norm: 5, torch.native_batch_norm: 5}  # place of the argument


def measure(patient: Patient) -> list[Fact]:
    """Facts of the forward after ``eval()``, by the registered module that the call came from.

    ``norm_calls``: of the model. ``unregistered_norms``: norm modules that are no part of the model and have weights or
    statistics; ``created_norms``: those of them that the next forward makes anew; ``unregistered_by_batch``,
    ``functional_by_batch``: calls that use statistics of the batch all the same. ``unregistered_trainable``: whether
    one of them is in training mode and has weights that want gradients (one that is hidden on purpose is not).
    ``eval_unreached``: registered batch norms that ``eval()`` leaves in training mode. ``unseen_parts``:
    scripted or quantized modules.
    """
    norms = patient.batch_norms  # before the mode is set: to find them is a forward
    patient.origin.rewind()
    patient.root.eval()
    facts = [Fact("eval_unreached", 1.0, site.name) for site in norms if site.module.training]
    first = _listen(patient)
    second = _listen(patient)
    facts += [
        Fact("norm_calls", float(sum(first.calls.values()))),
        Fact("unseen_parts", float(sum(map(_unseen, patient.root.modules())))),
    ]
    for owner, strangers in first.strangers.items():
        weighty = [one for one in strangers.values() if _weighty(one)]
        if weighty:
            again = second.strangers.get(owner, {})
            created = sum(id(one) not in again for one in weighty)
            trainable = any(one.training and any(w.requires_grad for w in one.parameters()) for one in weighty)
            facts += [
                Fact("unregistered_norms", float(len(weighty)), owner),
                Fact("created_norms", float(created), owner),
                Fact("unregistered_trainable", float(trainable), owner),
                Fact("unregistered_by_batch", float(first.by_batch[owner]), owner),
            ]
    facts += [Fact("functional_by_batch", float(count), owner) for owner, count in first.functional.items()]
    return facts


class _Listener(TorchFunctionMode):
    """Who calls normalizing functions; only the outermost of nested ones is seen, which is what is counted.

    Attributes:
        calls: by function.
        strangers: by registered module, the unregistered norm modules that ran inside it, by identity.
        by_batch: by registered module, calls of strangers that used statistics of the batch.
        functional: by registered module that is no norm layer and is in evaluation mode, such calls of its own.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self._names = {id(module): name for name, module in named_layers(root)}
        self._norms = {id(site.module) for site in _norm_sites(root)}
        self.calls: Counter[str] = Counter()
        self.strangers: dict[str, dict[int, nn.Module]] = {}
        self.by_batch: Counter[str] = Counter()
        self.functional: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = _FUNCTIONS.get(func) if callable(func) and func.__hash__ else None
        if kind is not None:
            self.calls[kind] += 1
            place = _TRAINING.get(func)
            given = (kwargs or {}).get("training", args[place] if place is not None and len(args) > place else False)
            x = args[0] if args else (kwargs or {}).get("input")
            # Of one "sample" it is no batch: so convolutions standardize their weights.
            several = isinstance(x, Tensor) and len(x) > 1
            self._note(sys._getframe(1), bool(given) and place is not None and several)
        return func(*args, **(kwargs or {}))

    def _note(self, frame: FrameType | None, by_batch: bool) -> None:
        stranger, owner, module = None, "", None
        while frame is not None:
            module = _self(frame)
            if module is not None and id(module) in self._names:
                owner = self._names[id(module)]
                break
            stranger = module if stranger is None else stranger
            module, frame = None, frame.f_back
        if module is not None and id(module) in self._norms:
            return  # a registered layer at work
        if stranger is not None:
            self.strangers.setdefault(owner, {})[id(stranger)] = stranger  # kept alive: identities stay unique
            self.by_batch[owner] += by_batch
        elif by_batch and (module is None or not module.training):
            self.functional[owner] += 1


def _listen(patient: Patient) -> _Listener:
    listener = _Listener(patient.root)
    with torch.no_grad(), listener:
        patient.run(patient.batches[0])
    return listener


def _self(frame: FrameType) -> nn.Module | None:
    """The module whose method a frame is."""
    if not frame.f_code.co_argcount:
        return None
    found = frame.f_locals.get(frame.f_code.co_varnames[0])
    return found if isinstance(found, nn.Module) else None


def _weighty(module: nn.Module) -> bool:
    """Whether something is lost where a module is no part of the model: weights, or statistics."""
    tracks = getattr(module, "running_mean", None) is not None
    return tracks or next(module.parameters(), None) is not None or isinstance(module, nn.modules.batchnorm._BatchNorm)


def _unseen(module: nn.Module) -> bool:
    quantized = ".quantized." in f"{type(module).__module__}." and any(
        isinstance(one, Tensor) for one in module.buffers()
    )
    return isinstance(module, torch.jit.ScriptModule) or quantized
