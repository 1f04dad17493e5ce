"""Laws of every track, which follows weights through updates: it leaves no trace, waits for nothing, keeps nothing."""

import copy
import importlib
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnprobe
from bnprobe import statistics as s
from bnprobe.statistics import Track
from tests.cases import CASES, batches
from tests.laws.guard import guarded
from tests.laws.test_no_observer_effect import assert_bitwise, run


@pytest.fixture(autouse=True)
def _everything_is_followed(monkeypatch):
    monkeypatch.setattr(importlib.import_module("bnprobe.statistics.weight_tracker"), "_BY_CHANCE", math.inf)


# One of each exported kind, in each of its ways.
MEMBERS = {
    "WeightScale": lambda: s.WeightScale(screen=3, tolerance=10.0),
    "WeightScale of a batch": lambda: s.WeightScale(batch=(torch.randn(4, 6), torch.randint(3, (4,)))),
}


def every_weight(model, **more):
    return s.WeightScale([name for name, p in model.named_parameters() if p.dim() > 1], **more)


def test_every_exported_track_is_under_the_laws():
    kinds = [getattr(s, name) for name in s.__all__]
    found = {kind.__name__ for kind in kinds if issubclass(kind, Track) and kind is not Track}
    assert found == {name.split()[0] for name in MEMBERS}


OPTIMIZERS = {
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_the_run_is_bitwise_the_same(name, make):
    build, shape = CASES[name]
    arguments = (build, batches(shape, 7), make, 7)
    probed = run(*arguments, statistics=(MEMBERS["WeightScale"](), s.Moments()), every=2)
    assert_bitwise(run(*arguments), probed)


@pytest.mark.parametrize("when", ["before", "after", "take", "search"])
def test_the_run_is_the_same_where_reading_fails(when, monkeypatch):
    build, shape = CASES["mlp"]
    arguments = (build, batches(shape, 6), OPTIMIZERS["adamw"], 6)
    plain = run(*arguments)

    def fail(*args, **kwargs):
        raise ValueError("not now")

    tracker = importlib.import_module("bnprobe.statistics.weight_tracker")
    member = MEMBERS["WeightScale of a batch" if when == "search" else "WeightScale"]()
    if when == "search":
        monkeypatch.setattr(s.WeightScale, "_search", fail)
    elif when == "take":
        monkeypatch.setattr(tracker, "to_host", fail)
    else:
        monkeypatch.setattr(tracker.WeightReader, when, fail)
    with pytest.warns(RuntimeWarning, match=r"could not measure WeightScale: .*ValueError: not now") as told:
        probed = run(*arguments, statistics=(member, s.Moments()), every=1)
    assert len(told) == 1
    assert_bitwise(plain, probed)


def trained(*statistics, steps=6):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bnprobe.attach(model, *statistics, optimizer=optimizer) as probe:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(16, 6)).square().mean().backward()
            optimizer.step()
    return probe.run


def test_other_statistics_see_nothing_of_it():
    def records(*more):
        found = trained(s.Moments(), s.Gradients(), s.RunningGap(), *more)
        frame = found.frame(statistic=[name for name in found.statistics if name in known])
        keys = ["step", "phase", "layer", "call", "place", "statistic", "level"]
        return frame.sort_values(keys, ignore_index=True).astype(str), found.statistics

    known = trained(s.Moments(), s.Gradients(), s.RunningGap()).statistics
    plain, beside = records(), records(MEMBERS["WeightScale"]())
    assert len(beside[1]) > len(known)
    assert plain[0].equals(beside[0])


@pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS)
def test_it_does_not_change_itself_and_serves_several_probes(make, monkeypatch):
    monkeypatch.setattr(s.WeightScale, "_search", lambda self, root: {"0.weight", "4.weight"})
    member = make()
    before = copy.deepcopy(vars(member))
    one, other = (trained(member).frame(place="weight") for _ in range(2))
    assert len(one) > 100
    assert one.equals(other)
    for name, value in vars(member).items():
        same = value[0].equal(before[name][0]) if name == "batch" and value is not None else value == before[name]
        assert same


@pytest.fixture
def no_flushes(monkeypatch):
    """A flush moves numbers to the host, now and then; here it comes with the end."""
    monkeypatch.setattr(importlib.import_module("bnprobe.attach"), "_FLUSH_SECONDS", 1e9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("closure", [False, True])
def test_no_hook_asks_for_a_number(name, closure, monkeypatch, no_flushes, no_hooks_left):
    build, shape = CASES[name]
    model = build()
    rate = torch.tensor(0.01)
    optimizer = torch.optim.AdamW(model.parameters(), rate, foreach=False)
    probes = {"optimizer": optimizer}
    with guarded(monkeypatch) as guard, bnprobe.attach(model, every_weight(model), s.Moments(), **probes) as probe:
        for x, y in batches(shape, 3):

            def work(x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            if closure:
                optimizer.step(work)
            else:
                work()
                optimizer.step()
        assert not guard.waits
        assert guard.entered > 6
    assert len(probe.run.frame(statistic="angular_update"))


def test_a_track_is_an_interface():
    with pytest.raises(TypeError, match="abstract"), warnings.catch_warnings():
        Track()


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("name", CASES)
def test_no_hook_waits_for_a_gpu(name, no_flushes):
    build, shape = CASES[name]
    model = build().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=True)
    data = [(x.cuda(), y.cuda()) for x, y in batches(shape, 4)]

    def train():
        for x, y in data:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    train()  # kernels are loaded, workspaces made
    with bnprobe.attach(model, every_weight(model), optimizer=optimizer) as probe:
        torch.cuda.set_sync_debug_mode("error")
        try:
            train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(probe.run.frame(statistic="angular_update"))
    assert not probe.run.layers["why"].str.contains("not measured").any()
