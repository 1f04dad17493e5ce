"""When measurements are taken, what becomes of one that fails, and how their results travel between processes."""

import sys
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

import bnprobe
from bnprobe import measuring
from bnprobe.collect import Collector
from bnprobe.errors import ArgumentError
from bnprobe.ranks import mail
from bnprobe.records import COMPUTED, Measured
from bnprobe.statistics import Measurement, Moments, Readings, Spectra
from tests.cases import batches, mlp


@dataclass(frozen=True, eq=False)
class Sum(Measurement):
    """The sum of a layer's weights, and notes on how it was called."""

    every: object = 1
    layers: object = None
    fails: tuple = ()
    seen: list = field(default_factory=list)

    def measure(self, occasion):
        self.seen.append((occasion.step, torch.is_autocast_enabled("cpu"), torch._C._len_torch_dispatch_stack()))
        if occasion.step in self.fails:
            raise ZeroDivisionError("on purpose")
        sites = [site for site in occasion.sites if hasattr(site.module, "weight")]
        sums = np.array([site.module.weight.detach().double().sum().item() for site in sites])
        why = {site.name: "no weights" for site in occasion.sites if site not in sites}
        names = [site.name for site in sites]
        return Readings("jacobian", names, [1] * len(names), {"singular_max": Measured(sums, COMPUTED)}, why)


def train(model, optimizer, steps, after=lambda: None):
    for x, _ in batches((8, 6), steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        after()


def sums(run, layer="0"):
    frame = run.frame(statistic="singular_max", layer=layer)
    return dict(zip(frame["step"], frame["value"], strict=True))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return mlp()


def weights(model):
    return model[0].weight.detach().double().sum().item()


def test_its_own_schedule_counts_and_the_weights_are_those_of_the_step(model):
    optimizer, expected = torch.optim.SGD(model.parameters(), 0.1), {0: weights(model)}
    with bnprobe.attach(model, Sum(every=3), every=2, optimizer=optimizer) as probe:
        train(model, optimizer, 8, lambda: expected.update({probe.now: weights(model)}))
    assert sums(probe.run) == {step: expected[step] for step in (0, 3, 6)}
    assert list(probe.run.steps) == [0, 2, 3, 4, 6]  # learning rates at even steps


def test_after_the_update_where_the_probe_knows_no_optimizer(model):
    optimizer, expected = torch.optim.SGD(model.parameters(), 0.1), {}
    with bnprobe.attach(model, Sum()) as probe:
        train(model, optimizer, 3, lambda: (expected.update({probe.now: weights(model)}), probe.step()))
    assert sums(probe.run) == expected
    assert len(expected) == 3


def test_where_a_forward_begins_the_next_step(model):
    optimizer, expected = torch.optim.SGD(model.parameters(), 0.1), {}
    with bnprobe.attach(model, Spectra(torch.randn(4, 6), 1, k=None), Moments()) as probe:
        train(model, optimizer, 4, lambda: expected.update({probe.now: weights(model)}))
    run = probe.run
    assert set(run.frame(place="jacobian")["step"]) == {0, 1, 2}
    assert set(run.frame(statistic="mean", place="input")["count"]) <= {8 * 6, 8 * 12}


def test_once_a_step_of_several_optimizers(model):
    first, last = (torch.optim.SGD(part.parameters(), 0.1) for part in (model[:3], model[3:]))
    watched = Sum()
    with bnprobe.attach(model, watched, optimizer=[first, last]):
        for x, _ in batches((8, 6), 3):
            model(x).square().mean().backward()
            first.step()
            last.step()
    assert [step for step, *_ in watched.seen] == [0, 1, 2]


def test_what_fails_is_said_once_and_tried_again(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = bnprobe.attach(model, Sum(fails=(1, 3)), Moments(), optimizer=optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, 4)
    text = "bnprobe could not measure Sum at step 1: ZeroDivisionError: on purpose"
    assert [str(one.message) for one in caught] == [text]
    probe.detach()
    assert list(sums(probe.run)) == [0, 2]
    layers = probe.run.layers.set_index("name")
    assert layers.loc["0", "why"] == "Sum: not measured at step 3: ZeroDivisionError: on purpose"
    assert layers.loc["0", "observed"]


def test_a_reason_ends_with_the_next_success(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(RuntimeWarning), bnprobe.attach(model, Sum(fails=(0,)), optimizer=optimizer) as probe:
        train(model, optimizer, 2)
    assert list(probe.run.layers["why"][[0, 2]]) == ["", "Sum: no weights"]


def test_layers_that_the_probe_does_not_listen_to_are_in_the_inventory(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bnprobe.attach(model, Sum(layers=["3", "5"]), Moments(), layers="0", optimizer=optimizer) as probe:
        train(model, optimizer, 2)
    layers = probe.run.layers.set_index("name")
    assert list(layers.index) == ["0", "3", "5"]
    assert list(layers["observed"]) == [True, True, False]
    assert layers.loc["5", "why"] == "Sum: no weights"
    assert list(sums(probe.run, "3")) == [0, 1]


def test_outside_of_autocast_and_of_the_users_modes(model):
    from torch.utils.flop_counter import FlopCounterMode

    watched = Sum()
    with bnprobe.attach(model, watched) as probe, torch.autocast("cpu"), FlopCounterMode(display=False):
        model(torch.randn(8, 6))
        probe.step()
    assert watched.seen == [(0, False, 0)]


def test_not_inside_of_a_backward_pass(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model[0].weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    with (
        pytest.warns(RuntimeWarning, match="the step ends inside of a backward pass"),
        bnprobe.attach(model, Sum(), optimizer=optimizer) as probe,
    ):
        model(torch.randn(8, 6)).sum().backward()
    assert "inside of a backward pass" in probe.run.layers["why"][0]


@pytest.mark.parametrize("training", [True, False])
def test_not_where_layers_wait_for_other_ranks(training, monkeypatch):
    monkeypatch.setattr(measuring, "world", lambda: (0, 2))
    model = nn.Sequential(nn.Linear(6, 4), nn.SyncBatchNorm(4)).train(training)
    why = "SyncBatchNorm would wait for the other ranks" if training else ""
    assert measuring.why_not_now(model) == why
    model.append(type("FullyShardedDataParallel", (nn.Identity,), {})())
    assert measuring.why_not_now(model.eval()) == "its weights are sharded over the ranks"


def test_only_the_rank_that_writes_the_run_measures(model, monkeypatch):
    watched = Sum()
    monkeypatch.setattr(sys.modules["bnprobe.attach"], "leads", lambda outlet: False)
    with bnprobe.attach(model, watched) as probe:
        model(torch.randn(8, 6))
        probe.step()
    assert watched.seen == []


def test_readings_travel_between_processes():
    def filled():
        collector = Collector([])
        for step in (1, 2):
            sums = Measured(np.array([1.0, np.nan]), COMPUTED, np.array([0.5, 0.0]), [np.arange(3.0), None])
            collector.add_readings(step, "eval", Readings("jacobian", ["a", "b"], [3, 4], {"singular_max": sums}))
        collector.add_numbers(2, "norm", ["a"], [7.0])
        return collector

    assert len(filled()) == 3
    straight, collector = filled().table(), filled()
    taken = mail.decode(mail.encode(collector.take()))
    assert len(collector) == 0
    early = taken.split(1)
    assert [one.step for one in early.readings] == [1]
    assert [one.step for one in taken.readings] == [2]
    assert collector.table(collector.join([early, taken])).equals(straight)
    rows = straight.to_pylist()
    assert [(row["step"], row["layer"], row["count"]) for row in rows[:2]] == [(1, "a", 3), (1, "b", 4)]
    assert [row["singular_max"] for row in rows] == [1.0, None, 1.0, None, None]
    assert rows[4]["norm"] == 7.0


def test_a_class_or_two_of_a_kind_are_refused(model):
    with pytest.raises(ArgumentError, match=r"write Spectra\(\), not Spectra"):
        bnprobe.attach(model, Spectra)
    with pytest.raises(ArgumentError, match="each statistic may be given once; got Sum, Sum"):
        bnprobe.attach(model, Sum(), Sum())
