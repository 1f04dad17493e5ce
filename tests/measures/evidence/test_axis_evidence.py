import math

import pytest
import torch
from torch import nn

from bnprobe.diagnose import diagnose
from bnprobe.measures.evidence import Patient
from bnprobe.measures.evidence.axis import measure, smoothness, spread
from bnprobe.measures.untouched import untouched
from bnprobe.rules import Severity


def facts_of(model, batches):
    with untouched(model) as origin:
        found = measure(Patient(model, batches, origin))
    return {fact.statistic: fact for fact in found}


def of_units(count, length=24, units=None):
    """Sequences ``[N, T, F]`` that run smoothly, each feature in a unit of its own."""
    units = torch.logspace(-2, 2, 6) if units is None else units
    course = torch.randn(count, length, len(units)).cumsum(1) / math.sqrt(length) + torch.randn(
        count, length, len(units)
    )
    return units * course


def test_spread_is_that_of_the_logarithms_of_variances():
    units = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    values = torch.randn(4000, 3, 5, dtype=torch.float64) * units[:, None]
    naive = torch.stack([values[:, index].var(correction=0) for index in range(3)]).log().std(correction=0)
    assert spread(values, 1) == pytest.approx(float(naive))
    assert spread(values, 1) == pytest.approx(math.log(100) * math.sqrt(2 / 3), rel=0.02)
    assert spread(torch.zeros(3, 4, 5), 1) == 0


def test_neighbours_in_time_resemble_each_other_features_do_not():
    values = of_units(64).double()
    assert smoothness(values, 1) > 0.05
    assert abs(smoothness(values, 2)) < 0.05
    assert smoothness(values[:, :3], 1) == 0


def test_declared_and_other_axis_in_either_orientation():
    batches = [of_units(32) for _ in range(4)]
    wrong = facts_of(nn.BatchNorm1d(24), batches)
    assert wrong["axis_spread_behind"].value > 3
    assert wrong["axis_spread_behind"].p_value < 0.001
    assert wrong["axis_spread_before"].value < 0.3
    assert wrong["axis_smoothness_declared"].value > wrong["axis_smoothness_other"].value
    right = facts_of(nn.BatchNorm1d(6), [one.transpose(1, 2) for one in batches])
    assert right["axis_spread_behind"].value < 1
    assert right["axis_spread_before"].value > 3


def test_an_axis_whose_entries_can_be_exchanged_has_no_small_p_value():
    found = facts_of(nn.BatchNorm1d(8), [torch.randn(32, 8, 12) for _ in range(2)])
    assert found["axis_spread_behind"].p_value > 0.01


def test_another_number_of_features_where_nothing_checks_it():
    found = facts_of(nn.BatchNorm1d(6, affine=False, track_running_stats=False), [of_units(8)])
    assert found["axis_mismatch"].value == 1
    assert "axis_mismatch" not in facts_of(nn.BatchNorm1d(24), [of_units(8)])


@pytest.mark.parametrize(
    ("norm", "severity"), [(nn.BatchNorm1d(24), True), (nn.LayerNorm([24, 6]), True), (nn.LayerNorm(6), False)]
)
def test_diagnosis(norm, severity):
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(144, 3))
    found = diagnose(model, [of_units(32) for _ in range(4)], select=["N15"]).findings
    assert any(one.severity >= Severity.WARNING for one in found) == severity


def test_pictures_with_a_dark_border_are_no_wrong_axis():
    place = torch.linspace(-1, 1, 16)
    disc = place[:, None] ** 2 + place**2 < 0.5
    smooth = nn.functional.interpolate(torch.randn(64, 3, 5, 5), size=16, mode="bilinear") * disc
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 196, 3))
    assert not diagnose(model, list(smooth.split(16)), select=["N15"]).findings
