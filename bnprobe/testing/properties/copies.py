"""Layers that are saved, loaded and copied."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from bnprobe.testing.inputs import Inputs
from bnprobe.testing.properties.broken import NotApplicable, require, require_equal
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.subject import Specimen, Subject

__all__ = ["copied", "state_dict_round_trip"]


def _trained(subject: Subject, x: Batch) -> Specimen:
    one = subject.specimen(x)
    one.module(one.x)
    return one


def _same(one: Specimen, other: nn.Module, what: str) -> None:
    """Both modes give the same, to the last bit, from the same state: evaluation first, as training moves buffers."""
    for training in (False, True):
        want, got = one.module.train(training)(one.x), other.train(training)(one.x)
        mode = "training" if training else "evaluation"
        require_equal(f"output of {what} in {mode} mode", got, want, "the state is the same")
    for (name, want), (_, got) in zip(one.module.named_buffers(), other.named_buffers(), strict=True):
        require_equal(f"buffer {name} of {what}", got, want, "the state was the same")


@law(x=Inputs(), at_most=10)
def state_dict_round_trip(subject: Subject, x: Batch) -> None:
    """A fresh layer that loads the state dict of a trained one, saved and loaded, gives the same in both modes.

    Broken by running statistics that are not registered as buffers, or not persistent.
    """
    one = _trained(subject, x)
    file = io.BytesIO()
    torch.save(one.module.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    other = subject.make(x.shape[x.axis]).to(one.x.device)
    if one.x.dtype == torch.float64:
        other = other.double()
    missing = other.load_state_dict(torch.load(file, weights_only=True), strict=False)
    require(not any(missing), f"keys of the state dict do not fit a fresh layer: {missing}")
    _same(one, other, "the layer that loaded the state")


@law(x=Inputs(), at_most=10)
def copied(subject: Subject, x: Batch) -> None:
    """A deep copy and a pickled copy of a trained layer give the same in both modes, and share no tensor with it."""
    one = _trained(subject, x)
    ways: dict[str, Callable[[nn.Module], nn.Module]] = {
        "the deep copy": copy.deepcopy,
        "the pickled copy": lambda module: pickle.loads(pickle.dumps(module)),
    }
    for what, make in ways.items():
        try:
            other = make(one.module)
        except (pickle.PicklingError, AttributeError) as error:
            if "local object" in str(error) or "not the same object" in str(error):
                raise NotApplicable("its class is defined inside a function, which pickle does not take") from error
            raise
        mine = {tensor.data_ptr() for tensor in (*one.module.parameters(), *one.module.buffers()) if tensor.numel()}
        shared = [name for name, tensor in other.state_dict().items() if tensor.data_ptr() in mine]
        require(not shared, f"{what} shares {', '.join(shared)} with the layer")
        _same(replace(one, module=copy.deepcopy(one.module)), other, what)
