"""The benchmarks measure what they say; that they run at all is tested on the smallest subject."""

import dataclasses
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import contest, gpu, growth, memory, overhead
from benchmarks.arms import ARMS, Arm, Plain, default_layers
from benchmarks.contest import Contest, Entrant, bootstrap
from benchmarks.models import SUBJECTS, Subject, labelled, mlp, resnet50, small_cnn, train_step
from benchmarks.peers import PEERS
from bnprobe.attach import _FLUSH_SECONDS, _FLUSH_STEPS

ROOT = Path(__file__).parent.parent.parent
TINY = Subject("tiny", small_cnn, labelled(2, 3, 8, 8))


def state_of(model):
    return {name: (dict(vars(one)), len(one._forward_hooks)) for name, one in model.named_modules()}


@pytest.mark.parametrize("arm", [Plain, *ARMS, *PEERS], ids=lambda arm: arm.name)
def test_an_arm_watches_two_steps_and_goes(arm):
    if arm.missing():
        pytest.skip(f"{arm.requires} is not installed")
    entrant = Entrant(TINY, arm)
    keys = {name: (set(attributes), hooks) for name, (attributes, hooks) in state_of(entrant.model).items()}
    assert entrant.block(2, warm=1) > 0
    assert {name: (set(attributes), hooks) for name, (attributes, hooks) in state_of(entrant.model).items()} == keys
    assert bool(arm.version()) == bool(arm.requires)


def test_what_is_not_installed_is_named():
    class Missing(Arm):
        name, requires = "missing", "no_such_package"

    assert Missing.missing()
    assert Missing.version() == ""


def test_the_users_hook_sees_the_layers_that_the_probe_sees():
    arm = next(one for one in ARMS if one.name == "users_hook")
    model, (x, _) = mlp(), labelled(8, 784)()
    watcher = arm(model, torch.optim.SGD(model.parameters(), lr=0.1))
    y = model(x).detach()
    watcher.close()
    assert [name for name, _ in watcher.rows] == list(default_layers(model))
    np.testing.assert_allclose(watcher.rows[-1][1][:2], [y.mean(), y.std()], rtol=1e-5)


def test_the_ratio_is_that_of_medians_and_its_interval_covers_it():
    rng = np.random.default_rng(0)
    mood = rng.uniform(1, 3, 40)  # what neighbours share
    times = [(1e-3 * m, 1.2e-3 * m * one) for m, one in zip(mood, rng.normal(1, 0.01, 40), strict=True)]
    result = bootstrap(times)
    a, b = np.array(times).T
    assert result["ratio"] == pytest.approx(np.median(b) / np.median(a))
    assert result["interval"][0] < 1.2 < result["interval"][1]
    assert result["pairs"] == 40
    assert result["extra_ms"] == pytest.approx(1e3 * np.median(b - a))


def test_a_watcher_that_doubles_the_work_costs_twice(monkeypatch):
    """Counted, not timed: the clock says how many steps have been taken."""

    class Twice(Arm):
        name, quick = "twice", True

        def step(self):
            clock[0] += 1

    clock = [0.0]

    def step(forward, optimizer, batch):
        clock[0] += 1

    monkeypatch.setattr(contest.time, "perf_counter", lambda: clock[0])
    result = Contest(dataclasses.replace(TINY, step=step), Twice, 0.0, pairs=3, steps=30).run()
    assert result["ratio"] == 2
    assert result["interval"] == [2, 2]
    assert (result["plain_ms"], result["step_ms"], result["extra_ms"]) == (1000, 2000, 1000)
    assert (result["pairs"], result["steps_a_block"]) == (3, 30)


def test_a_block_is_made_of_the_probes_own_periods():
    assert (contest.FLUSH_STEPS, contest.FLUSH_SECONDS) == (_FLUSH_STEPS, _FLUSH_SECONDS)


def test_a_block_of_the_probe_is_whole_periods_of_flushes():
    probe = ARMS[0]
    of_probe = Contest(TINY, probe, 1.0)
    assert of_probe.block_steps(1e-3, None) == 512  # half a second, and 8 periods
    assert of_probe.block_steps(0.1, None) == 64
    assert of_probe.block_steps(1.0, None) == 10  # flushes come by time


def test_activations_are_what_autograd_saves():
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Sigmoid(), nn.Linear(5, 4, bias=False))
    subject = Subject("two", lambda: model, lambda: (torch.randn(8, 6), torch.zeros(8, dtype=torch.long)))
    # The sigmoid's output is saved once, by itself and by the second layer; the batch and the weights are not counted.
    assert memory.activation_bytes(subject) == 8 * 5 * 4


@pytest.fixture
def _small(monkeypatch):
    """The smallest subject under the first one's name and target, and short blocks."""
    monkeypatch.setattr(overhead, "SUBJECTS", (dataclasses.replace(TINY, name="mlp", target=1.35), *SUBJECTS[1:]))
    monkeypatch.setattr(contest, "FLUSH_STEPS", 4)
    monkeypatch.setattr(contest, "_BLOCK_SECONDS", 0.01)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_small")
def test_overhead_runs_and_names_what_is_missing():
    result = overhead.run("mlp", "probe,users_hook,torchlens", seconds=0.0, threads=1, memory=False)
    assert result["not_installed"] == ([] if find_spec("torchlens") else ["torchlens"])
    measured = result["subjects"]["mlp"]
    assert measured["probe"]["target"] == 1.35
    assert measured["probe"]["interval"][0] <= measured["probe"]["ratio"] <= measured["probe"]["interval"][1]
    json.dumps(result)


@pytest.mark.usefixtures("_small")
def test_overhead_goes_on_when_another_tool_breaks(monkeypatch):
    class Breaks(Arm):
        name, requires = "breaks", "numpy"

        def step(self):
            raise ZeroDivisionError("by design")

    monkeypatch.setitem(overhead._EVERYBODY, "breaks", Breaks)
    result = overhead.run("mlp", "breaks", seconds=0.0, threads=1, memory=False)
    assert result["subjects"]["mlp"]["breaks"] == {"failed": "ZeroDivisionError: by design"}


def test_unknown_names_are_told():
    with pytest.raises(SystemExit, match="unknown: vgg; there are mlp, resnet20"):
        overhead.run("mlp,vgg", "probe")


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own():
    command = [sys.executable, "-m", "benchmarks.memory", "mlp", "probe"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    result = json.loads(done.stdout)
    assert 50 < result["peak_mb"] < 5000
    assert 1 <= result["steps"] <= 70


def test_growth_fits_a_line_and_a_slope():
    points = [{"layers": n, "extra_ms": 0.5 * n + 2, "plain_ms": n} for n in (3, 6, 12)]
    assert growth._line(points) == pytest.approx({"ms_a_layer": 0.5, "ms_at_none": 2.0, "explained": 1.0})
    points = [{"batch": n, "extra_ms": 3 * n**0.25, "plain_ms": 2.0 * n} for n in (16, 64, 256)]
    slopes = growth._slope([*points, {"batch": 512, "extra_ms": -1.0, "plain_ms": 1024.0}])
    assert slopes == pytest.approx({"exponent_of_extra_ms": 0.25, "exponent_of_plain_ms": 1.0})


def test_growth_is_drawn(tmp_path):
    point = {"extra_ms": 1.0, "plain_ms": 5.0, "extra_interval_ms": [0.5, 1.5]}
    result = {name: {"points": [{name: n} | point for n in (16, 32, 64)]} for name in ("layers", "batch")}
    growth.draw(result, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_resnet50_is_resnet50():
    model = resnet50()
    assert sum(one.numel() for one in model.parameters()) == 25_557_032


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_benchmark_says_so():
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        gpu.run()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run the benchmark itself")
def test_the_gpu_benchmarks_code_runs_on_the_cpu(monkeypatch):
    monkeypatch.setattr(gpu, "_ARMS", ARMS[:1])
    monkeypatch.setattr(gpu, "resnet50", small_cnn)
    result = gpu.run(seconds=0.0, modes="eager", tiny=True)
    assert result["device"] == "cpu (no result)"
    assert result["eager"]["probe"]["ratio"] > 0


def test_a_training_step_takes_any_forward():
    model = mlp()
    optimizer, before = torch.optim.SGD(model.parameters(), lr=0.1), model[0].weight.detach().clone()
    train_step(lambda x: model(x), optimizer, labelled(8, 784)())
    assert not torch.equal(before, model[0].weight)


def test_every_subject_has_its_target():
    assert {one.name: one.target for one in SUBJECTS} == {
        "mlp": 1.35,
        "resnet20": 1.08,
        "resnet18": 1.05,
        "encoder": 1.08,
    }
