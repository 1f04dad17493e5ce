"""One training step of a network with a probe and one without: what must be the same, and what must be told."""

import gc
import hashlib
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils import _pytree as pytree

import bnprobe

__all__ = ["Outcome", "Specimen", "check"]

_NOT_CALLED = "its forward was not called"


@dataclass(frozen=True)
class Specimen:
    """A network with random weights, and what it takes.

    Attributes:
        name: how the result calls it.
        package: what has to be installed.
        make: builds it.
        inputs: a tuple of positional or a dict of named arguments of its forward.
    """

    name: str
    package: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...] | dict[str, Any]]


@dataclass
class Outcome:
    """What :func:`check` found.

    Attributes:
        failures: broken promises, in words; empty where all were kept.
        layers: number of layers that the probe listens to by default.
        observed: how many of them it observed.
        reasons: why something of a layer was not observed, counted.
        seconds: how long all took.
    """

    failures: list[str] = field(default_factory=list)
    layers: int = 0
    observed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


@dataclass
class _Trained:
    """A network after one training step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Tensor
    digest: dict[str, str]


def check(specimen: Specimen) -> Outcome:
    """Train one step without a probe and, from the same seed, one step with it, and compare.

    Broken promises are: the loss, a gradient, a weight, a buffer, the optimizer's state or a random stream that is not
    bitwise the same; a layer that is neither observed nor listed with a reason, or is said not to have been called
    though it was; an error that the probe met; anything left on the model, its parameters, the optimizer or torch's
    global hooks.
    """
    begin, outcome = time.perf_counter(), Outcome()
    plain = _train(specimen)
    digest, shape = plain.digest, _shape(plain.model)
    del plain
    before = _global_hooks()
    probed, run = _train_with_probe(specimen, outcome)
    outcome.failures += [f"{name} differs" for name in digest if digest[name] != probed.digest[name]]
    outcome.failures += _left_behind(probed, shape, before)
    called = _called(probed.model, specimen)
    _take_stock(run.layers, called, outcome)
    del probed, run
    gc.collect()
    outcome.seconds = time.perf_counter() - begin
    return outcome


def _train(specimen: Specimen, listen: Callable[[nn.Module, torch.optim.Optimizer], Any] | None = None) -> _Trained:
    _seed()
    model, inputs = specimen.make().train(), specimen.inputs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    probe = listen(model, optimizer) if listen else None
    try:
        loss = _loss(_call(model, inputs))
        loss.backward()
        optimizer.step()
    finally:
        if probe is not None:
            probe.detach()
    return _Trained(model, optimizer, loss.detach(), _digest(model, optimizer, loss))


def _train_with_probe(specimen: Specimen, outcome: Outcome) -> tuple[_Trained, Any]:
    probes: list[bnprobe.Probe] = []

    def listen(model: nn.Module, optimizer: torch.optim.Optimizer) -> bnprobe.Probe:
        probes.append(bnprobe.attach(model, optimizer=optimizer))
        return probes[0]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained = _train(specimen, listen)
        run = probes[0].run
    said = [str(one.message) for one in caught if str(one.message).startswith("bnprobe")]
    outcome.failures += [f"the probe warned: {message}" for message in said]
    return trained, run


def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - networks draw from the global stream
    random.seed(0)


def _call(model: nn.Module, inputs: tuple[Any, ...] | dict[str, Any]) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def _loss(output: Any) -> Tensor:
    """The mean square of everything that came out and can be trained."""
    found = [one for one in pytree.tree_leaves(output) if isinstance(one, Tensor) and one.requires_grad]
    return torch.stack([one.float().square().mean() for one in found]).sum()


def _digest(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> dict[str, str]:
    """Fingerprints of all that a training step leaves behind."""
    momenta = [value for slot in optimizer.state.values() for value in slot.values() if isinstance(value, Tensor)]
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global stream is what must not move
    return {
        "the loss": _fingerprint([loss]),
        "a gradient": _fingerprint([one.grad for one in model.parameters() if one.grad is not None]),
        "a weight or buffer": _fingerprint([*model.parameters(), *model.buffers()]),
        "the optimizer's state": _fingerprint(momenta),
        "torch's random stream": _fingerprint([torch.get_rng_state()]),
        "numpy's random stream": repr(numpy_state),
        "python's random stream": str(hash(random.getstate())),
    }


def _fingerprint(tensors: list[Tensor]) -> str:
    result = hashlib.blake2b()
    for one in tensors:
        flat = one.detach().contiguous().reshape(-1)
        result.update(f"{one.dtype}{tuple(one.shape)}".encode())
        result.update(memoryview(flat.view(torch.uint8).numpy()))
    return result.hexdigest()


def _shape(model: nn.Module) -> dict[str, Any]:
    """What stands on every module: the attributes' names, and the sizes of containers such as its tables of hooks."""
    return {
        name: (
            type(one).__qualname__,
            {key: len(value) if isinstance(value, dict) else None for key, value in vars(one).items()},
        )
        for name, one in model.named_modules()
    }


def _global_hooks() -> dict[str, int]:
    return {
        name: len(value)
        for name, value in vars(torch_module).items()
        if name.startswith("_global") and isinstance(value, dict)
    }


def _left_behind(trained: _Trained, shape: dict[str, Any], global_hooks: dict[str, int]) -> Iterator[str]:
    found = _shape(trained.model)
    for name in found.keys() | shape.keys():
        if found.get(name) != shape.get(name):
            yield f"module {name!r} is not as without a probe: {found.get(name)} instead of {shape.get(name)}"
    for name, count in _global_hooks().items():
        if count != global_hooks[name]:
            yield f"{count - global_hooks[name]} left in torch's {name}"
    for name, parameter in trained.model.named_parameters():
        if parameter._backward_hooks:
            yield f"hooks left on the parameter {name!r}"
    if trained.optimizer._optimizer_step_pre_hooks or trained.optimizer._optimizer_step_post_hooks:
        yield "hooks left on the optimizer"


def _called(model: nn.Module, specimen: Specimen) -> set[str]:
    """Names of the modules whose forward a further training forward calls."""
    names: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: names.add(name))
        for name, module in model.named_modules()
    ]
    try:
        _seed()
        _call(model, specimen.inputs())
    finally:
        for handle in handles:
            handle.remove()
    return names


def _take_stock(layers: Any, called: set[str], outcome: Outcome) -> None:
    outcome.layers, outcome.observed = len(layers), int(layers.observed.sum())
    for layer in layers.itertuples():
        if not layer.observed and not layer.why:
            outcome.failures.append(f"layer {layer.name!r} is neither observed nor listed with a reason")
        if not layer.observed and layer.why == _NOT_CALLED and layer.name in called:
            outcome.failures.append(f"layer {layer.name!r} is said not to have been called, but it was")
        if layer.why:
            outcome.reasons[layer.why] += 1
