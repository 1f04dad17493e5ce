"""Hooks never ask for a number that a device would have to be waited for, and keep no activation alive."""

import gc
import importlib
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

import bnprobe
from bnprobe import statistics as s
from tests.cases import CASES, batches, mlp, train
from tests.laws.guard import guarded
from tests.laws.test_no_observer_effect import Checkpointed

pytestmark = pytest.mark.usefixtures("no_hooks_left")

CHOSEN = {
    "default": (),
    "exact": (
        s.Moments(exact=True),
        s.Quantiles(exact=True, channels=(0,)),
        s.Gradients(exact=True),
        s.Saturation(exact=True),
        s.RunningGap(),
    ),
}
MODELS = {**CASES, "checkpointed": (lambda: Checkpointed(reentrant=True), (16, 6)), "wide": (lambda: mlp(60), (64, 6))}


@pytest.fixture
def no_flushes(monkeypatch):
    """A flush moves records to the host, now and then; here it comes with the end."""
    monkeypatch.setattr(importlib.import_module("bnprobe.attach"), "_FLUSH_SECONDS", 1e9)


def loop(model, optimizer, shape, device="cpu"):
    """Two steps, one of them of 17 micro-batches (what waits is merged at 16), and an evaluation."""
    for part in (batches(shape, 1), batches(shape, 17, seed=2)):
        optimizer.zero_grad()
        for x, y in part:
            F.cross_entropy(model(x.to(device)), y.to(device)).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        model(x.to(device))


@pytest.mark.parametrize("chosen", CHOSEN)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scaling", [False, True])
def test_no_hook_asks_for_a_number(name, chosen, scaling, monkeypatch, no_flushes):
    if scaling and name not in ("mlp", "cnn"):
        pytest.skip("a scaler does the same in every model")
    make, shape = MODELS[name]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu") if scaling else None
    settings = {"optimizer": optimizer, "scaler": scaler, "sample": 100}
    with guarded(monkeypatch) as guard, bnprobe.attach(model, *CHOSEN[chosen], **settings) as probe:
        loop(model, optimizer, shape)
        assert not guard.waits
        assert guard.entered > 100
    assert probe.run.layers.observed.all()
    assert (probe.run.layers.why == "").all()


WAITS = {
    "item": lambda x: x.mean().item(),
    "tolist": lambda x: x.tolist(),
    "bool": lambda x: bool(x.mean() > 0),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "float": lambda x: float(x.mean()),
    "int": lambda x: int(x.mean()),
    "numpy": lambda x: x.numpy(),
    "np.asarray": lambda x: np.asarray(x),
    "cpu": lambda x: x.cpu(),
    "print": lambda x: repr(x),
    "format": lambda x: f"{x.mean():.3f}",
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: torch.masked_select(x, x > 0),
    "nonzero": lambda x: torch.nonzero(x),
    "where": lambda x: torch.where(x > 0),
    "unique": lambda x: torch.unique(x),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "in": lambda x: 0.0 in x,
    "histogram": lambda x: torch.histc(x),
    "range": lambda x: list(range(x.argmax())),
}


@pytest.mark.parametrize("wait", WAITS)
def test_the_guard_catches_a_statistic_that_waits(wait, monkeypatch, no_flushes):
    class Waits(s.Statistic):
        reads_all = True

        def applies(self, site, place):
            return True

        def update(self, state, seen):
            WAITS[wait](seen.values)
            return 1

        def merge(self, a, b):
            return a or b

        def finish(self, states):
            return {}

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with guarded(monkeypatch) as guard, bnprobe.attach(model, Waits(), optimizer=optimizer):
        with pytest.warns(RuntimeWarning, match="could not measure"):
            train(model, optimizer, batches((8, 6), 1))
        assert guard.waits


def test_a_users_own_waiting_is_no_business_of_the_guard(monkeypatch, no_flushes):
    model = mlp()
    seen = []
    model[1].register_forward_hook(lambda module, args, output: seen.append(output.mean().item()))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with guarded(monkeypatch) as guard, bnprobe.attach(model, optimizer=optimizer):
        train(model, optimizer, batches((8, 6), 1))
        assert not guard.waits


# Memory.


def wide(activation=nn.ReLU):
    """Ten activations of 4 MB each."""
    layers = [nn.Linear(64, 512), nn.BatchNorm1d(512), activation()]
    for _ in range(2):
        layers += [nn.Linear(512, 512), nn.LayerNorm(512), activation()]
    return nn.Sequential(*layers, nn.Linear(512, 3))


ACTIVATIONS = 9 * 2048 * 512 * 4  # bytes


def peak(work):
    """The largest sum of CPU allocations during ``work()``, beyond what was there before; of C++ and Python alike."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [one for one in record.profiler.kineto_results.events() if one.name() == "[memory]"]
    sizes = [one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())]
    assert sizes
    return int(np.cumsum(sizes).max())


def test_peak_memory_rises_by_less_than_a_hundredth_of_the_activations():
    torch.manual_seed(0)
    model, x = wide(), torch.randn(2048, 64)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step()
    plain = peak(step)
    assert plain > 0.5 * ACTIVATIONS  # the measure sees what autograd keeps
    with bnprobe.attach(model, optimizer=optimizer):
        step()  # the first step draws positions
        probed = peak(step)
    assert probed - plain < 0.01 * ACTIVATIONS
    kept = []
    model[2].register_forward_hook(lambda module, args, output: kept.append(output.detach().clone()))
    assert peak(step) - plain > 0.05 * ACTIVATIONS  # and would see a tool that keeps one


def test_every_activation_and_gradient_is_let_go():
    """After each forward and backward, with nothing but reference counts: no cycle holds one."""
    model, x, alive = wide(), torch.randn(256, 64), []
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def watch(module, args, output):
        alive.append(weakref.ref(output))
        if output.requires_grad:
            output.register_hook(lambda gradient: alive.append(weakref.ref(gradient)))

    for layer in model:
        layer.register_forward_hook(watch)
    gc.collect()
    gc.disable()
    try:
        with bnprobe.attach(model, optimizer=optimizer):
            for _ in range(2):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                assert len(alive) == 20
                assert not [one() for one in alive if one() is not None]
                optimizer.step()
                alive.clear()
            with torch.no_grad():
                model(x)
            assert not [one() for one in alive if one() is not None]
    finally:
        gc.enable()


# On a GPU.

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("chosen", CHOSEN)
@pytest.mark.parametrize("name", MODELS)
def test_no_hook_waits_for_a_gpu(name, chosen, no_flushes):
    make, shape = MODELS[name]
    model = make().cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = [(x.cuda(), y.cuda()) for x, y in batches(shape, 4)]
    train(model, optimizer, data)  # kernels are loaded, workspaces made
    with bnprobe.attach(model, *CHOSEN[chosen], optimizer=optimizer) as probe:
        torch.cuda.set_sync_debug_mode("error")
        try:
            train(model, optimizer, data)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert probe.run.layers.observed.all()
    assert (probe.run.layers.why == "").all()  # a wait would have been noted there


@pytest.mark.gpu
@on_a_gpu
def test_peak_memory_on_a_gpu():
    model, x = wide().cuda(), torch.randn(65536, 64, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    activations = ACTIVATIONS * len(x) // 2048

    def measured():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    measured()
    plain = measured()
    with bnprobe.attach(model, optimizer=optimizer):
        probed = measured()
    assert probed - plain < 0.01 * activations
