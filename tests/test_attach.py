import copy
import dataclasses
import gc
import importlib
import math
import os
import signal
import subprocess
import sys
import textwrap
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bnprobe
from bnprobe import statistics as s
from bnprobe.errors import ArgumentError, BnprobeError, RunBusyError, SelectionError
from bnprobe.schedule import first
from tests.cases import CASES, Residual, batches, cnn, mlp, train

pytestmark = pytest.mark.usefixtures("no_hooks_left")


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def value(run, step=0, **where):
    frame = run.frame(**where)
    frame = frame[frame.step == step]
    assert len(frame) == 1, frame
    return frame.value.iloc[0]


# What is recorded.


def test_records_are_what_a_naive_listener_computes():
    """Every layer of a CNN, three steps: input, output and gradient moments in float64 by hooks of our own."""
    model, (data, *_) = cnn(), [batches((8, 3, 9, 9), 3)]
    optimizer, expected, step = sgd(model), {}, [0]

    def remember(name, place, tensor):
        expected[step[0], name, place] = tensor.detach().double().clone()

    def before(name):
        return lambda module, args: remember(name, "input", args[0])

    def after(name):
        def hook(module, args, output):
            remember(name, "output", output)
            output.register_hook(lambda gradient: remember(name, "grad_output", gradient))

        return hook

    handles = []
    for name, module in model.named_children():
        handles += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    with bnprobe.attach(
        model, s.Moments(exact=True), s.Quantiles(exact=True), s.Gradients(exact=True), optimizer=optimizer
    ) as probe:
        train(model, optimizer, data, after=lambda: step.__setitem__(0, step[0] + 1))
    for handle in handles:
        handle.remove()
    frame = probe.run.frame(phase="train")
    assert set(frame.step) == {0, 1, 2}
    table = frame[frame.statistic.isin(["mean", "variance", "min", "max"])]
    table = table.set_index(["step", "layer", "place", "statistic"]).sort_index()
    quantiles = frame[frame.statistic == "quantile"]
    for (at, name, place), tensor in expected.items():
        if name in probe.run.layers.name.to_numpy():
            row = table.value.loc[at, name, place]
            assert row["mean"] == pytest.approx(float(tensor.mean()), rel=1e-9, abs=1e-15)
            assert row["variance"] == pytest.approx(float(tensor.var(correction=0)), rel=1e-9)
            assert (row["min"], row["max"]) == (float(tensor.min()), float(tensor.max()))
            assert (table.loc[at, name, place]["count"] == tensor.numel()).all()
            if place != "grad_output":
                mine = quantiles[(quantiles.step == at) & (quantiles.layer == name) & (quantiles.place == place)]
                np.testing.assert_allclose(mine.value, np.quantile(tensor, mine.level), rtol=1e-9, atol=1e-12)
    assert frame.exact.all()


def test_default_statistics_of_a_batch_norm_layer():
    model = mlp()
    optimizer = sgd(model)
    with bnprobe.attach(model, optimizer=optimizer) as probe:
        train(model, optimizer, batches((16, 6), 4))
    run = probe.run
    at_input = run.frame(layer="1", place="input")
    assert set(at_input.statistic) == {
        "mean", "variance", "skewness", "excess_kurtosis", "min", "max", "zeros", "nonfinite", "quantile",
        "mean_gap", "variance_gap",
    }  # fmt: skip
    assert set(at_input[at_input.statistic == "mean"].source) == {"saved"}
    assert run.channels("1", "mean").shape == (4, 12)
    assert run.channels("1", "mean_gap").shape == (4, 12)
    # The layer's input is the linear layer's output, measured once and told of both.
    both = [run.channels(name, "variance", place=place) for name, place in (("0", "output"), ("1", "input"))]
    np.testing.assert_array_equal(*both)
    assert set(run.frame(statistic="saturated").layer) == {"2"}
    assert set(run.frame(statistic="dead").layer) == {"5"}
    assert set(run.frame(place="weight", layer="0").statistic) == {"norm", "grad_norm", "learning_rate"}
    assert set(run.frame(statistic="learning_rate").value) == {0.1}


def test_sampled_channel_values_carry_their_errors():
    """200 channels of 4 x 50 x 30 values: about 10 of 6,000 are looked at; the errors must say so."""
    model = nn.Sequential(nn.Conv1d(3, 200, 1), nn.Tanh())
    x = torch.randn(4, 3, 1500)
    with bnprobe.attach(model, s.Moments()) as probe:
        y = model(x).detach().double()
    run = probe.run
    truth = y.transpose(0, 1).flatten(1)
    for statistic, expected in (("mean", truth.mean(1)), ("variance", truth.var(1, correction=0))):
        value, error = (run.channels("1", statistic, "output", error=flag).iloc[0] for flag in (False, True))
        off = ((value - expected.numpy()) / error).abs()
        assert (error.dropna() > 0).mean() > 0.95
        assert off.median() < 1.5
    small = nn.Sequential(nn.Linear(3, 4))
    with bnprobe.attach(small, s.Moments()) as probe:
        small(torch.randn(8, 3))
    assert (probe.run.channels("0", "mean", "output", error=True) == 0).all(axis=None)


def test_quantiles_of_chosen_channels_keep_their_numbers():
    model, x = nn.Sequential(nn.Linear(3, 9)), torch.randn(20, 3)
    with bnprobe.attach(model, s.Quantiles(levels=(0.15, 0.5, 0.85), channels=(2, 7))) as probe:
        y = model(x).detach().double()
    table = probe.run.channels("0", "quantile", "output")
    assert list(table.columns) == [(2, 0.15), (2, 0.5), (2, 0.85), (7, 0.15), (7, 0.5), (7, 0.85)]
    assert table[7, 0.85].iloc[0] == pytest.approx(float(np.quantile(y[:, 7], 0.85)))


def test_the_inventory():
    model = Residual()
    optimizer = sgd(model)
    with bnprobe.attach(model, optimizer=optimizer) as probe:
        train(model, optimizer, batches((4, 3, 6, 6), 1))
    layers = probe.run.layers.set_index("name")
    assert list(layers.index) == ["conv1", "bn1", "shared", "bn2", "head"]
    assert layers.loc["bn1", ["kind", "family", "channels", "eps", "momentum"]].tolist() == [
        "BatchNorm2d",
        "batch_norm",
        4,
        1e-5,
        0.1,
    ]
    assert set(layers.feeds["bn1"]) == {"shared", "head"}
    assert layers.observed.all()
    assert (layers.why == "").all()


def test_a_layer_called_twice_has_a_record_a_call():
    model = Residual()
    optimizer = sgd(model)
    with bnprobe.attach(model, optimizer=optimizer) as probe:
        train(model, optimizer, batches((4, 3, 6, 6), 2))
    frame = probe.run.frame(statistic="mean", layer="shared", place="output")
    assert frame[["step", "call"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_structured_outputs_have_places_of_their_own():
    model, shape = CASES["lstm"][0](), CASES["lstm"][1]
    optimizer = sgd(model)
    with bnprobe.attach(model, optimizer=optimizer) as probe:
        train(model, optimizer, batches(shape, 1))
    places = set(probe.run.frame(layer="lstm", statistic="mean").place)
    assert {"input", "output", "output.1.0", "output.1.1", "grad_output"} <= places


def test_validation_is_a_phase_of_its_own_and_merges_over_its_batches():
    model = mlp()
    optimizer, data = sgd(model), batches((16, 6), 5)
    with bnprobe.attach(model, s.Moments(exact=True), optimizer=optimizer) as probe:
        train(model, optimizer, data[:1])
        model.eval()
        with torch.no_grad():
            for x, _ in data:
                model(x)
    frame = probe.run.frame(layer="0", place="input", statistic="mean", phase="eval")
    assert frame[["step", "count"]].to_numpy().tolist() == [[1, 5 * 16 * 6]]
    assert frame.value.iloc[0] == pytest.approx(float(torch.cat([x for x, _ in data]).double().mean()), rel=1e-9)


def test_micro_batches_merge_into_one_step():
    model = mlp()
    optimizer, data = sgd(model), batches((8, 6), 4)
    with bnprobe.attach(model, s.Moments(exact=True), s.Gradients(), optimizer=optimizer) as probe:
        for i, (x, y) in enumerate(data):
            F.cross_entropy(model(x), y).backward()
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()
    frame = probe.run.frame(layer="0", place="input", statistic="variance")
    assert frame[["step", "count"]].to_numpy().tolist() == [[0, 96], [1, 96]]
    assert frame.value.iloc[0] == pytest.approx(float(torch.cat([data[0][0], data[1][0]]).double().var(correction=0)))


@pytest.mark.parametrize("many", [40])
def test_many_batches_of_one_step_are_folded_in_time(many):
    model, data = mlp().eval(), batches((8, 6), many)
    with bnprobe.attach(model, s.Moments(), s.Quantiles(), sample=64) as probe, torch.no_grad():
        for x, _ in data:
            model(x)
    whole = torch.cat([x for x, _ in data]).double()
    frame = probe.run.frame(layer="0", place="input", statistic="mean")
    assert frame["count"].tolist() == [whole.numel()]
    assert abs(frame.value.iloc[0] - float(whole.mean())) < 4 * frame.error.iloc[0]


def test_a_long_validation_keeps_no_more_than_a_few_batches():
    """What waits in memory is bounded by the layers, not by the batches of a step."""
    model, held = mlp().eval(), []
    with bnprobe.attach(model), torch.no_grad():
        for batch in range(1, 121):
            model(torch.randn(64, 6))
            if batch % 60 == 0:
                held.append(sum(type(one) is s.Observation for one in gc.get_objects()))
    assert held[1] <= held[0] + 50


def test_the_temporary_run_goes_with_its_reader():
    model = mlp()
    with bnprobe.attach(model) as probe:
        model(torch.randn(4, 6))
    path = probe.run.path
    assert path.exists()
    del probe
    gc.collect()
    assert not path.exists()


# The clock.


def test_the_optimizer_keeps_the_clock_and_the_schedule_is_obeyed():
    model = mlp()
    optimizer = sgd(model)
    for every, steps in ((1, range(7)), (3, (0, 3, 6)), (first(2), (0, 1)), (lambda step: step == 5, (5,))):
        with bnprobe.attach(model, s.Moments(), optimizer=optimizer, every=every) as probe:
            train(model, optimizer, batches((8, 6), 7))
        assert probe.run.steps.tolist() == list(steps)
        assert probe.now == 7


def test_step_by_hand():
    model = mlp()
    optimizer = sgd(model)
    with bnprobe.attach(model) as probe:
        train(model, optimizer, batches((8, 6), 3), after=probe.step)
    assert probe.run.steps.tolist() == [0, 1, 2]
    assert set(probe.run.frame(statistic="grad_norm").step) == {0, 1, 2}


def test_without_either_a_training_forward_is_a_step():
    model = mlp()
    optimizer = sgd(model)
    with bnprobe.attach(model, s.Moments(), s.Gradients()) as probe:
        train(model, optimizer, batches((8, 6), 3))
        with torch.no_grad():
            model.eval()(torch.zeros(4, 6))
    run = probe.run
    assert set(run.frame(phase="train", place="output").step) == {0, 1, 2}
    assert set(run.frame(place="grad_output").step) == {0, 1, 2}
    assert set(run.frame(phase="eval").step) == {2}


def test_step_is_refused_where_an_optimizer_keeps_the_clock_or_after_the_end():
    model = mlp()
    with (
        bnprobe.attach(model, optimizer=sgd(model)) as probe,
        pytest.raises(BnprobeError, match="optimizer keeps the clock"),
    ):
        probe.step()
    with bnprobe.attach(model) as probe:
        pass
    with pytest.raises(BnprobeError, match="no longer listens"):
        probe.step()


# Ends, good and bad.


def test_an_exception_detaches_and_keeps_what_was_seen(tmp_path):
    model = mlp()
    optimizer = sgd(model)
    with pytest.raises(KeyboardInterrupt), bnprobe.attach(model, optimizer=optimizer, out=tmp_path / "run") as probe:
        train(model, optimizer, batches((8, 6), 3))
        raise KeyboardInterrupt
    assert not probe.attached
    run = bnprobe.load(tmp_path / "run")
    assert run.steps.tolist() == [0, 1, 2]
    assert run.closed
    assert run.problems == []


def test_a_model_that_raises_in_its_forward():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 3)

        def forward(self, x):
            self.inner(x)
            raise ZeroDivisionError

    model = Fails()
    with pytest.raises(ZeroDivisionError), bnprobe.attach(model) as probe:
        model(torch.zeros(2, 6))
    assert value(probe.run, layer="inner", place="input", statistic="zeros") == 1


def test_attaching_that_fails_half_way_leaves_nothing(tmp_path):
    model = mlp()
    with bnprobe.attach(model, out=tmp_path / "run"):
        with pytest.raises(RunBusyError):
            bnprobe.attach(model, out=tmp_path / "run")
        with pytest.raises(SelectionError):
            bnprobe.attach(model, layers="nowhere")


def test_detaching_twice_and_in_the_middle_of_a_step():
    model = mlp()
    probe = bnprobe.attach(model)
    loss = model(torch.randn(8, 6)).sum()
    probe.detach()
    probe.detach()
    loss.backward()
    assert set(probe.run.frame().place) == {"input", "output"}


def test_two_probes_do_not_disturb_each_other():
    model = mlp()
    optimizer = sgd(model)
    with bnprobe.attach(model, s.Moments(exact=True), optimizer=optimizer) as one:
        with bnprobe.attach(model, s.Moments(exact=True), layers="0", optimizer=optimizer) as other:
            train(model, optimizer, batches((8, 6), 2))
        train(model, optimizer, batches((8, 6), 1))
    assert one.run.steps.tolist() == [0, 1, 2]
    mine, theirs = (probe.run.frame(layer="0", statistic="mean", place="output").value[:2] for probe in (one, other))
    np.testing.assert_array_equal(mine, theirs)


def test_a_resumed_run_appends(tmp_path):
    model = mlp()
    optimizer = sgd(model)
    for _ in range(2):
        with bnprobe.attach(model, s.Moments(), optimizer=optimizer, out=tmp_path / "run"):
            train(model, optimizer, batches((8, 6), 3))
    assert bnprobe.load(tmp_path / "run").steps.tolist() == [0, 1, 2, 3, 4, 5]
    with bnprobe.attach(model, s.Moments(), optimizer=optimizer, out=tmp_path / "run", start=4):
        train(model, optimizer, batches((8, 6), 1))
    assert bnprobe.load(tmp_path / "run").steps.tolist() == [0, 1, 2, 3, 4]


def test_copies_and_saved_models_are_unattached(tmp_path):
    model = mlp()
    with bnprobe.attach(model) as probe:
        twin = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
        for other in (twin, torch.load(tmp_path / "model.pt", weights_only=False)):
            other(torch.zeros(4, 6))
    assert len(probe.run.steps) == 0


def test_a_killed_training_leaves_a_readable_run(tmp_path):
    """SIGKILL in the middle: what was flushed is there, the reader says that the run was not closed."""
    script = textwrap.dedent("""
        import sys, torch, bnprobe
        from bnprobe import statistics as s
        from tests.cases import mlp, batches, train
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        probe = bnprobe.attach(model, s.Moments(), optimizer=optimizer, out=sys.argv[1])
        while True:
            train(model, optimizer, batches((8, 6), 10))
            print(probe.now, flush=True)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    reached = 0
    while reached < 200:
        reached = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    reached = max([reached, *map(int, process.stdout.read().split())])
    process.wait()
    run = bnprobe.load(tmp_path / "run")
    assert not run.closed
    assert any("not closed" in problem for problem in run.problems)
    assert run.steps.tolist() == list(range(len(run.steps)))
    assert reached - 64 <= len(run.steps) <= reached + 10


# Strange models.


class Strange(nn.Module):
    """Layers whose outputs are no ordinary activations."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        for name in ("integers", "booleans", "complexes", "empty", "scalar", "nothing", "never"):
            setattr(self, name, nn.Linear(4, 4))
        self.integers.forward = lambda x: x.long()
        self.booleans.forward = lambda x: x > 0
        self.complexes.forward = lambda x: torch.complex(x, x)
        self.empty.forward = lambda x: x[:0]
        self.scalar.forward = lambda x: x.sum()
        self.nothing.forward = lambda x: None

    def forward(self, tokens):
        x = self.norm(self.embed(tokens))
        for layer in (self.integers, self.booleans, self.complexes, self.empty, self.nothing):
            layer(x)
        return self.scalar(x)


def test_what_cannot_be_measured_is_said():
    model = Strange()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bnprobe.attach(model) as probe:
            model(torch.tensor([[1, 2, 3]])).backward()
    why = probe.run.layers.set_index("name").why
    assert why["embed"] == "input: int64 values"
    assert why["integers"] == "output: int64 values"
    assert why["booleans"] == "output: bool values"
    assert why["complexes"] == "output: complex64 values"
    assert why["empty"] == "output: no values"
    assert why["never"] == "its forward was not called"
    assert probe.run.layers.set_index("name").observed[["scalar", "norm"]].all()
    scalar = probe.run.frame(layer="scalar", place="output", statistic="mean")
    assert scalar["count"].tolist() == [1]


@pytest.mark.parametrize("shape", [(0, 6), (1, 6)])
def test_empty_and_single_batches(shape):
    model = nn.Sequential(nn.Linear(6, 3), nn.LayerNorm(3), nn.ReLU())
    with bnprobe.attach(model) as probe:
        model(torch.randn(shape)).sum().backward()
    assert probe.run.layers.observed.all() == (shape[0] == 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    model = nn.Sequential(nn.Linear(6, 300), nn.LayerNorm(300), nn.GELU()).to(dtype)
    x = torch.randn(64, 6).to(dtype)
    with bnprobe.attach(model) as probe:
        y = model(x)
        y.sum().backward()
    truth = y.detach().double()
    frame = probe.run.frame(layer="2", place="output").set_index("statistic")
    assert abs(frame.value["mean"] - float(truth.mean())) <= 4 * frame.error["mean"]
    assert probe.run.layers.observed.all()


def test_autocast():
    model, x = cnn(), torch.randn(4, 3, 9, 9)
    with torch.autocast("cpu", torch.bfloat16), bnprobe.attach(model) as probe:
        model(x).sum().backward()
    assert probe.run.layers.observed.all()


def test_nan_and_infinity_are_counted_and_the_rest_is_summarised():
    model = nn.Sequential(nn.Linear(6, 6))
    x = torch.randn(10, 6)
    x[0, 0], x[1, 1] = float("nan"), float("inf")
    with bnprobe.attach(model, optimizer=sgd(model)) as probe:
        model(x)
    run = probe.run
    assert value(run, layer="0", place="input", statistic="nonfinite") == pytest.approx(2 / 60)
    assert value(run, layer="0", place="input", statistic="mean") == pytest.approx(
        float(x[x.isfinite()].double().mean())
    )
    assert value(run, layer="0", place="output", statistic="nonfinite") == pytest.approx(12 / 60)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_counts_once(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = nn.Linear(6, 6), cnn()

        def forward(self, x):
            return checkpoint(self.body, x.requires_grad_(), use_reentrant=reentrant)

    model = Checkpointed()
    optimizer = sgd(model)
    with bnprobe.attach(model, optimizer=optimizer) as probe:
        train(model, optimizer, batches((4, 3, 6, 6), 2))
    frame = probe.run.frame(layer="body.3", statistic="mean")
    assert sorted(frame.place.unique()) == ["grad_output", "input", "output"]
    assert (frame["count"] == 4 * 8 * 36).all()


def test_a_statistic_that_fails_is_noted_and_training_goes_on():
    class Broken(s.Statistic):
        reads_all = True

        def applies(self, site, place):
            return True

        def update(self, state, seen):
            raise ValueError("no such luck")

        def merge(self, a, b):
            return a or b

        def finish(self, states):
            return {}

    model = mlp()
    optimizer = sgd(model)
    with (
        pytest.warns(RuntimeWarning, match="could not measure layer '0': no such luck"),
        bnprobe.attach(model, Broken(), optimizer=optimizer) as probe,
    ):
        train(model, optimizer, batches((8, 6), 2))
    assert probe.now == 2
    assert (probe.run.layers.why == "ValueError: no such luck").all()


def test_a_statistic_that_cannot_finish_is_told_and_the_others_are_kept():
    class Unfinished(s.Statistic):
        def applies(self, site, place):
            return True

        def update(self, state, seen):
            return 1

        def merge(self, a, b):
            return a or b

        def finish(self, states):
            raise IndexError("lost count")

    model = mlp()
    with (
        pytest.warns(
            RuntimeWarning, match="could not finish Unfinished: IndexError: lost count; its values are missing"
        ),
        bnprobe.attach(model, Unfinished(), s.Moments()) as probe,
    ):
        model(torch.zeros(4, 6))
    assert set(probe.run.frame().statistic) >= {"mean", "variance"}


def test_a_full_disk_does_not_stop_the_training(monkeypatch):
    monkeypatch.setattr(importlib.import_module("bnprobe.attach"), "_FLUSH_SECONDS", 1e9)  # flushes by steps alone
    model = mlp()
    optimizer = sgd(model)
    probe = bnprobe.attach(model, s.Moments(), optimizer=optimizer)

    def full(table):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(probe._outlet.writer, "append", full)
        with pytest.warns(
            RuntimeWarning, match="could not write to .*No space left on device; records up to step 63 are lost"
        ):
            train(model, optimizer, batches((8, 6), 70))
    probe.detach()
    assert probe.run.steps.tolist() == list(range(64, 70))


def test_an_own_statistic():
    class Range(s.Statistic):
        reads_all = True

        def applies(self, site, place):
            return place == "output"

        def update(self, state, seen):
            return self.merge(state, (seen.values.amin(), seen.values.amax()))

        def merge(self, a, b):
            return a or b if a is None or b is None else (torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1]))

        def finish(self, states):
            return {
                "range": bnprobe.records.Measured(np.array([float(high - low) for low, high in states]), "computed")
            }

    model, x = mlp(), torch.randn(8, 6)
    with bnprobe.attach(model, Range(), layers="0") as probe:
        y = model[0](x)
    assert value(probe.run, statistic="range") == pytest.approx((y.max() - y.min()).item())


# What a reviewer found.


def test_lengths_may_vary_within_a_step():
    model = nn.Sequential(nn.Conv1d(3, 4, 1), Double(), nn.ReLU(), nn.Sigmoid())
    optimizer = sgd(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bnprobe.attach(model, optimizer=optimizer) as probe:
            for length in (10, 7, 1):
                model(torch.randn(4, 3, length)).sum().backward()
            optimizer.step()
    frame = probe.run.frame(statistic="mean", layer="2", place="output")
    assert frame["count"].tolist() == [4 * 4 * 18]


class Double(nn.Module):
    def forward(self, x):
        return x + x


def test_wide_layers_get_no_made_up_channel_values():
    """2048 units, each seen once or twice in the sample: nothing is known of a unit, and that is what is said."""
    model = nn.Sequential(nn.Linear(64, 2048), nn.ReLU())
    with bnprobe.attach(model) as probe:
        model(torch.randn(256, 64))
    frame = probe.run.frame(layer="1", place="output")
    assert "dead" not in set(frame.statistic)
    with pytest.raises(bnprobe.errors.RunError, match="no channel values of 'variance'"):
        probe.run.channels("1", "variance", "output")


@pytest.mark.parametrize("model", [lambda: nn.Sequential(nn.Conv1d(3, 4, 1), Double(), nn.ReLU()), mlp])
def test_a_gradient_has_the_channels_of_its_output(model):
    model = model()
    with bnprobe.attach(model, s.Moments(exact=True), s.Gradients(exact=True)) as probe:
        model(torch.randn(5, 3, 7) if isinstance(model[0], nn.Conv1d) else torch.randn(5, 6)).sum().backward()
    for layer in probe.run.layers.name:
        shapes = {probe.run.channels(layer, "mean", place).shape[1] for place in ("output", "grad_output")}
        assert len(shapes) == 1


def test_a_norm_layers_axis_is_its_own_whatever_made_its_input():
    """A linear layer's ``[N, L, C]`` straight into BatchNorm1d(L): the norm's channels are the positions."""
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(4))
    x = torch.randn(8, 4, 6)
    with bnprobe.attach(model, s.Moments()) as probe:
        y = model[0](x).detach()
        model(x)
    widths = [
        probe.run.channels(*where).shape[1]
        for where in (("0", "mean", "output"), ("1", "mean"), ("1", "mean", "output"))
    ]
    assert widths == [5, 4, 4]
    np.testing.assert_allclose(probe.run.channels("1", "mean").iloc[0], y.mean((0, 2)), atol=1e-6)


def test_layer_norm_without_an_eps_of_its_own():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return F.layer_norm(x, (6,), self.weight, None, 1e-5)

    class LayerNorm(Norm):
        pass

    model = nn.Sequential(LayerNorm())
    with bnprobe.attach(model) as probe:
        model(torch.randn(8, 6))
    assert probe.run.layers.why.tolist() == [""]


def test_gradients_of_a_step_with_a_closure_are_those_of_that_step():
    model, ((x, y),) = mlp(norm=nn.Identity), batches((16, 6), 1)
    optimizer, true = sgd(model), []

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        true.append(float(model[0].weight.grad.norm()))
        return loss

    with bnprobe.attach(model, optimizer=optimizer) as probe:
        for _ in range(3):
            optimizer.step(closure)
    np.testing.assert_allclose(probe.run.frame(layer="0", statistic="grad_norm").value, true, rtol=1e-6)


def test_an_input_that_the_layer_writes_into_is_not_taken_for_what_came():
    class Writes(nn.Linear):
        def forward(self, x):
            return super().forward(x.add_(100))

    model = nn.Sequential(Writes(6, 6))
    with bnprobe.attach(model) as probe, torch.no_grad():
        model(torch.randn(8, 6))
    assert set(probe.run.frame(statistic="mean").place) == {"output"}
    assert probe.run.layers.why.tolist() == ["input: the layer writes into it"]


def test_structures_that_contain_themselves_or_have_holes():
    @dataclasses.dataclass
    class Half:
        there: torch.Tensor
        missing: torch.Tensor = dataclasses.field(init=False)

    class Odd(nn.Linear):
        def forward(self, x):
            loop = {"x": super().forward(x)}
            loop["self"] = loop
            return Half(loop["x"]), loop

    model = nn.Sequential(Odd(6, 6))
    with bnprobe.attach(model) as probe:
        model(torch.randn(8, 6))
    assert "output" in set(probe.run.frame().place)


def test_frozen_float8_and_meta_weights():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = nn.Parameter(model[1].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    model[2].weight = nn.Parameter(model[2].weight.detach().to("meta"), requires_grad=False)
    optimizer = sgd(model)
    with bnprobe.attach(model, optimizer=optimizer) as probe:
        model[0](torch.randn(4, 6)).sum().backward()
        optimizer.step()
    assert set(probe.run.frame(statistic="norm").layer) == {"0"}


def test_a_default_device_is_the_users_not_ours():
    model, data = mlp().eval(), batches((64, 6), 4)
    torch.set_default_device("meta")
    try:
        with bnprobe.attach(model, sample=16) as probe:
            for x, _ in data:
                model(x)
    finally:
        torch.set_default_device(None)
    assert probe.run.frame(layer="0", statistic="mean", place="input")["count"].tolist() == [4 * 64 * 6]


def test_a_forward_that_failed_keeps_no_graph_alive():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 3)

        def forward(self, x):
            held.append(weakref.ref(x))
            self.inner(x)
            raise ZeroDivisionError

    held, model = [], Fails()
    with bnprobe.attach(model):
        for _ in range(2):
            x = torch.randn(2, 6, requires_grad=True) * 2
            with pytest.raises(ZeroDivisionError):
                model(x)
            del x
    gc.collect()
    assert [one() for one in held] == [None, None]


def test_one_value_has_no_gap():
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    with bnprobe.attach(model) as probe:
        model(torch.randn(1, 3))
    assert not {"mean_gap", "variance_gap"} & set(probe.run.frame().statistic)


# Wrong arguments.


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((), {"every": 0}, "interval must be an int of at least 1; got 0"),
        ((), {"every": "often"}, "every must be a positive int or a callable"),
        ((), {"optimizer": "sgd"}, r"optimizer must be a torch\.optim\.Optimizer; got str"),
        ((), {"sample": 1}, "sample must be an int of at least 2; got 1"),
        ((), {"start": -1}, "start must be None or a step"),
        ((), {"layers": 7}, "layers must be None, glob"),
        ((s.Moments,), {}, r"write Moments\(\), not Moments"),
        (("mean",), {}, r"statistics must come from bnprobe\.statistics; got 'mean'"),
        ((s.Moments(), s.Moments(exact=True)), {}, "each statistic may be given once"),
    ],
)
def test_wrong_arguments_are_named(arguments, settings, message):
    with pytest.raises(ArgumentError, match=message):
        bnprobe.attach(mlp(), *arguments, **settings)


def test_wrong_model():
    with pytest.raises(ArgumentError, match=r"model must be a torch\.nn\.Module; got function"):
        bnprobe.attach(mlp)


# What it costs in memory.


def test_no_activation_is_kept_alive():
    model = mlp()
    alive = []
    model[2].register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output)))
    optimizer = sgd(model)
    with bnprobe.attach(model, optimizer=optimizer):
        train(model, optimizer, batches((4096, 6), 2))
        gc.collect()
        assert [one() for one in alive] == [None, None]


_GROWTH = """
import sys, psutil, torch, bnprobe
from tests.cases import mlp, batches
import torch.nn.functional as F
torch.set_num_threads(1)
model = mlp()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
((x, y),) = batches((16, 6), 1)
process, marks = psutil.Process(), []
out = sys.argv[1] if len(sys.argv) > 1 else None
with bnprobe.attach(model, optimizer=optimizer, out=out) as probe:
    for step in range(10_000):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step in (499, 9_999):
            marks.append(process.memory_info().rss)
print((marks[1] - marks[0]) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["directory", "memory"])
def test_memory_does_not_grow_with_steps(where, tmp_path):
    """10,000 steps with the default statistics at every step: less than 30 MB beyond the first 500."""
    arguments = [str(tmp_path / "run")] if where == "directory" else []
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert float(done.stdout) < 30
    assert math.isfinite(float(done.stdout))


def test_a_traced_forward_is_no_step():
    model, x = nn.Sequential(nn.Linear(6, 3), nn.ReLU()), torch.randn(4, 6)
    with bnprobe.attach(model) as probe:
        model(x)
        torch.jit.trace(model, x, check_trace=False)
        assert probe.now == 0
        model(x)
        assert probe.now == 1
    assert list(probe.run.steps) == [0, 1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("statistic", [s.Quantiles(places=("input",)), s.Moments(places=("input",)), s.Saturation()])
def test_a_statistic_of_inputs_alone_reads_what_a_layer_before_has_shown(statistic):
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Sigmoid())
    with bnprobe.attach(model, statistic) as probe:
        model(torch.randn(9, 8))
    found = probe.run.frame()
    assert "2" in set(found.layer)
    assert set(found.place) == {"input"}
    assert found.value.notna().all()


def test_what_autograd_saved_counts_among_what_waits():
    model, x = nn.LayerNorm(4), torch.randn(4096, 4)
    with bnprobe.attach(model, s.Moments(places=("input",))) as probe:
        model(x)
        waiting = probe._collector.bytes
    assert waiting >= 2 * 4 * 4096 + 2048 * 4  # mean and inverse deviation of each row, and the sample
