"""What a probe's run says: each fact against a network whose disease is known."""

import numpy as np
import pytest
import torch
from torch import nn

import bnprobe
from bnprobe.recorded_evidence import LAST, diagnosis_of_run, evidence_of_run
from bnprobe.rules import Severity
from bnprobe.statistics import Moments, Quantiles, RunningGap


class Twice(nn.Module):
    """One layer, two calls with distributions of their own."""

    def __init__(self, shift):
        super().__init__()
        self.bn, self.shift = nn.BatchNorm1d(4), shift

    def forward(self, x):
        return self.bn(x) + self.bn(x.roll(1, 0) + self.shift)


def recorded(model, batches, tmp_path, *statistics, every=1):
    with bnprobe.attach(model, *statistics, out=tmp_path / "run", every=every) as probe:
        for batch in batches:
            model(batch).sum().backward()
    return bnprobe.load(probe.run.path)


def batches(count=24, size=16):
    return [torch.randn(size, 4) for _ in range(count)]


def test_settings_and_gaps_of_a_sound_run(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=0.3, eps=1e-4), nn.Linear(4, 2))
    data = batches(100)
    evidence = evidence_of_run(recorded(model, data, tmp_path))
    assert evidence.value("momentum", "0") == 0.3
    assert evidence.value("eps", "0") == 1e-4
    assert evidence.value("training", "0") == evidence.value("has_buffers", "0") == 1
    assert evidence.value("nonfinite_statistics", "0") == 0
    assert evidence.value("mean_gap", "0") < 0.2
    assert evidence.fact("mean_gap", "0").count == LAST
    assert evidence.fact("calls_per_pass", "0") is None
    assert [layer.kind for layer in evidence.layers] == ["BatchNorm1d", "Linear"]


def test_running_statistics_that_are_no_numbers_are_seen_in_later_batches(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    data = batches(9)
    data[3][0, 2] = float("inf")
    run = recorded(model, data, tmp_path)
    assert torch.isfinite(model[0].running_mean).tolist() == [True, True, False, True]
    fact = evidence_of_run(run).fact("nonfinite_statistics", "0")
    assert (fact.value, fact.count) == (1, 4)
    made = diagnosis_of_run(run, ["N11"])
    assert [(one.code, one.severity) for one in made.findings] == [("N11", Severity.ERROR)]
    assert made.proof == {}


def test_a_constant_channel_is_no_number_gone_wrong(tmp_path):
    data = batches(9)
    for batch in data:
        batch[:, 1] = 3.0
    evidence = evidence_of_run(recorded(nn.Sequential(nn.BatchNorm1d(4)), data, tmp_path))
    assert evidence.value("nonfinite_statistics", "0") == 0


@pytest.mark.parametrize(("shift", "differs"), [(3.0, True), (0.0, False)])
def test_calls_that_differ(tmp_path, shift, differs):
    evidence = evidence_of_run(recorded(Twice(shift), batches(), tmp_path))
    assert evidence.value("calls_per_pass", "bn") == 2
    fact = evidence.fact("call_contrast_mean", "bn")
    assert (fact.p_value < 0.01) == differs
    if differs:
        # Two halves, 3 standard deviations apart: between 1.5^2, in all 1 + 1.5^2.
        np.testing.assert_allclose(fact.value, 2.25 / 3.25, atol=0.06)
        expected = 0.5 * (1 / 3.25 + 2.25 / 3.25 - 1 + np.log(3.25))
        found = [one.value for one in evidence.all("call_divergence", "bn")]
        np.testing.assert_allclose(found, [expected, expected], atol=0.08)


@pytest.mark.parametrize("taking_turns", [True, False])
def test_batches_that_take_turns(tmp_path, taking_turns):
    data = [batch + 2.0 * (number % 3 == 0) * taking_turns for number, batch in enumerate(batches(30))]
    evidence = evidence_of_run(recorded(nn.Sequential(nn.BatchNorm1d(4)), data, tmp_path))
    fact = evidence.fact("batch_periodicity", "0")
    assert (fact.p_value < 0.01) == taking_turns
    if taking_turns:
        assert evidence.value("batch_period", "0") == 3


def test_steps_left_out_tell_nothing_of_turns(tmp_path):
    run = recorded(nn.Sequential(nn.BatchNorm1d(4)), batches(40), tmp_path, every=2)
    assert evidence_of_run(run).fact("batch_periodicity", "0") is None


@pytest.mark.parametrize(
    ("statistics", "code", "why"),
    [
        ((Moments(),), "N11", "attach with bnprobe.statistics.RunningGap() and bnprobe.statistics.Moments()"),
        ((Quantiles(),), "N11", "attach with bnprobe.statistics.RunningGap() and bnprobe.statistics.Moments()"),
        ((RunningGap(),), "N02", "needs the model and batches"),
    ],
)
def test_what_was_not_recorded_is_named(tmp_path, statistics, code, why):
    made = diagnosis_of_run(recorded(nn.Sequential(nn.BatchNorm1d(4)), batches(6), tmp_path, *statistics))
    (one,) = [one for one in made.not_run if one.code == code]
    assert why in one.why


def test_gaps_alone_cannot_tell_whether_the_batch_was_finite(tmp_path):
    data = batches(6)
    data[2][0, 0] = float("nan")
    run = recorded(nn.Sequential(nn.BatchNorm1d(4)), data, tmp_path, RunningGap())
    evidence = evidence_of_run(run)
    assert evidence.fact("nonfinite_statistics", "0") is None
    (one,) = [one for one in diagnosis_of_run(run).not_run if one.code == "N11"]
    assert "bnprobe.statistics.Moments()" in one.why


def test_a_run_without_batch_norm_or_training_says_so(tmp_path):
    run = recorded(nn.Sequential(nn.Linear(4, 4)), batches(3), tmp_path)
    assert {one.why for one in diagnosis_of_run(run, ["N11"]).not_run} == {
        "the run has no records of a batch norm's input in training"
    }


def test_a_run_has_no_certificate(tmp_path):
    made = diagnosis_of_run(recorded(nn.Sequential(nn.BatchNorm1d(4)), batches(8), tmp_path))
    assert made.ok
    assert made.certificate is None


def test_a_diagnosis_is_judged_again_with_the_same_result(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].running_var[1] = float("nan")
    first = bnprobe.diagnose(model.eval(), batches(3), out=tmp_path / "run", select=["N11"])
    again = diagnosis_of_run(bnprobe.load(tmp_path / "run"), ["N11"])
    assert again.findings == first.findings
    assert again.evidence.context == first.evidence.context
