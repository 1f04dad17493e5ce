"""A probe on networks that others wrote: nothing is changed, nothing left behind, and nothing missed in silence.

`python -m benchmarks zoo` does the same for every module of pytorchcv. Here stand those that are built differently:
dense and residual connections, cells, shuffled channels, own autograd functions that recompute in backward, speech.
"""

import random
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

import bnprobe
from benchmarks import zoo_pytorchcv, zoo_transformers
from benchmarks.zoo import run
from benchmarks.zoo_check import Specimen, check

FAMILIES = (
    "resnet_cifar",
    "preresnet_cifar",
    "densenet_cifar",
    "xdensenet_cifar",
    "mobilenetv2",
    "shufflenetv2",
    "inceptionv3",
    "senet",
    "efficientnet",
    "squeezenet",
    "nasnet",
    "igcv3",
    "revnet",
    "ror_cifar",
    "lffd",
    "quartznet",
)
PYTORCHCV = {one.name.split()[1].rstrip(":"): one for one in zoo_pytorchcv.specimens()}
SPECIMENS = [*(PYTORCHCV[name] for name in FAMILIES), *zoo_transformers.specimens()]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.works_under(
    "16 networks of pytorchcv, 16 architectures of transformers (all: python -m benchmarks zoo)",
    group="Models nobody here wrote",
)
@pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda one: one.name.replace(" ", "-").replace(":", ""))
def test_one_step(specimen):
    if find_spec(specimen.package) is None:
        pytest.skip(f"{specimen.package} is not installed")
    outcome = check(specimen)
    assert not outcome.failures
    assert outcome.observed > 0.6 * outcome.layers > 0


@pytest.mark.skipif(find_spec("pytorchcv") is None, reason="pytorchcv is not installed")
def test_every_module_of_pytorchcv_is_listed():
    assert "not in the list of FAMILIES" not in zoo_pytorchcv.unlisted().values()
    assert not set(zoo_pytorchcv.unlisted()) & set(zoo_pytorchcv.FAMILIES)


# The check itself must find what it looks for.


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop, self.spare = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 6)

    def forward(self, x):
        return self.drop(self.norm(self.first(x)))


SOUND = Specimen("sound", "torch", Net, lambda: (torch.randn(4, 6),))


def test_a_sound_network_has_no_failure():
    outcome = check(SOUND)
    assert not outcome.failures
    assert (outcome.layers, outcome.observed) == (3, 2)
    assert outcome.reasons == {"its forward was not called": 1}


def put_attribute(model, optimizer):
    model.norm.probed = True


def put_hook(model, optimizer):
    model.first.register_forward_hook(lambda *_: None)


def put_hook_on_optimizer(model, optimizer):
    optimizer.register_step_post_hook(lambda *_: None)


def put_hook_on_parameter(model, optimizer):
    model.first.weight.register_hook(lambda gradient: None)


def change_weight(model, optimizer):
    with torch.no_grad():
        model.first.weight[0, 0] += 0.1


def change_buffer(model, optimizer):
    model.norm.running_mean += 1e-6


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        (put_attribute, "module 'norm' is not as without a probe"),
        (put_hook, "module 'first' is not as without a probe"),
        (put_hook_on_optimizer, "hooks left on the optimizer"),
        (put_hook_on_parameter, "hooks left on the parameter 'first.weight'"),
        (change_weight, "a weight or buffer differs"),
        (change_weight, "the loss differs"),
        (change_buffer, "a weight or buffer differs"),
        (lambda *_: torch.rand(1), "torch's random stream differs"),
        (lambda *_: np.random.rand(), "numpy's random stream differs"),  # noqa: NPY002
        (lambda *_: random.random(), "python's random stream differs"),
    ],
)
def test_it_catches_a_probe_that_changes_something(defect, message, monkeypatch):
    honest = bnprobe.attach

    def attach(model, *, optimizer):
        defect(model, optimizer)
        return honest(model, optimizer=optimizer)

    monkeypatch.setattr(bnprobe, "attach", attach)
    assert any(message in failure for failure in check(SOUND).failures)


def test_it_catches_a_global_hook(monkeypatch):
    honest, handles = bnprobe.attach, []

    def attach(model, *, optimizer):
        handles.append(nn.modules.module.register_module_forward_pre_hook(lambda *_: None))
        return honest(model, optimizer=optimizer)

    monkeypatch.setattr(bnprobe, "attach", attach)
    try:
        assert "1 left in torch's _global_forward_pre_hooks" in check(SOUND).failures
    finally:
        handles[0].remove()


def test_it_catches_a_layer_that_is_missed(monkeypatch):
    """A network that calls a layer in the probe's absence only: the inventory's reason is then not true."""

    class Shy(Net):
        def forward(self, x):
            probed = bool(nn.modules.module._global_forward_pre_hooks)
            return self.norm(x) if probed else self.norm(self.first(x))

    failures = check(Specimen("shy", "torch", Shy, SOUND.inputs)).failures
    assert "layer 'first' is said not to have been called, but it was" in failures


def test_what_the_probe_says_is_a_failure(monkeypatch):
    def measure(self, seen):
        raise ValueError("no such luck")

    monkeypatch.setattr(bnprobe.statistics.Saturation, "measure", measure)
    network = Specimen("sigmoid", "torch", lambda: nn.Sequential(nn.Linear(6, 6), nn.Sigmoid()), SOUND.inputs)
    assert any("no such luck" in one for one in check(network).failures)


# The command.


def test_the_command_lists_what_could_not_be_checked(monkeypatch):
    def broken():
        raise ValueError("no weights")

    slow = Specimen("slow", "torch", Net, lambda: (torch.randn(3000, 6),))
    specimens = [
        SOUND,
        Specimen("broken", "torch", broken, SOUND.inputs),
        Specimen("absent", "no_such_package", Net, SOUND.inputs),
        Specimen("crashes", "torch", Net, lambda: (torch.randn(4, 5),)),
        slow,
    ]
    monkeypatch.setattr(zoo_pytorchcv, "specimens", lambda: iter(specimens))
    monkeypatch.setattr(zoo_pytorchcv, "unlisted", lambda: {"new": "not in the list of FAMILIES"})
    monkeypatch.setattr(zoo_transformers, "specimens", lambda: iter(()))
    result = run()
    assert result["networks"] == 3
    assert list(result["failures"]) == ["crashes"]
    assert "mat1 and mat2" in result["failures"]["crashes"][0]
    assert result["not_checked"] == {
        "pytorchcv new": "not in the list of FAMILIES",
        "broken": "cannot be built: ValueError: no weights",
        "absent": "no_such_package is not installed",
    }
    assert result["each"]["sound"]["layers"] == 3


def test_a_network_that_takes_too_long_is_listed(monkeypatch):
    import time

    class Slow(Net):
        def forward(self, x):
            time.sleep(5)
            return super().forward(x)

    monkeypatch.setattr(zoo_pytorchcv, "specimens", lambda: iter([Specimen("slow", "torch", Slow, SOUND.inputs)]))
    monkeypatch.setattr(zoo_transformers, "specimens", lambda: iter(()))
    assert run(limit=1)["not_checked"]["slow"] == "took more than 1 s"
