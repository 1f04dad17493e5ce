import pytest

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules import Severity
from bnprobe.rules.n15_wrong_axis import WrongAxis


def of_batch_norm(behind=3.0, before=0.1, declared=0.0, other=0.0):
    facts = [
        Fact("axis_spread_behind", behind, "bn", place="output", p_value=1e-3),
        Fact("axis_spread_before", before, "bn", place="input"), Fact("axis_other", 2, "bn", place="input"),
        Fact("axis_smoothness_declared", declared, "bn", place="input"),
        Fact("axis_smoothness_other", other, "bn", place="input"),
    ]  # fmt: skip
    return list(WrongAxis().judge(Evidence(facts)))


@pytest.mark.parametrize(
    ("case", "severity"),
    [
        ({}, Severity.WARNING), ({"declared": 0.5}, Severity.ERROR),
        ({"declared": 0.5, "other": 0.4}, Severity.WARNING),
        ({"other": 0.5}, None),  # a picture's rows
        ({"behind": 0.9}, None), ({"before": 0.31}, None),
    ],
)  # fmt: skip
def test_one_axis(case, severity):
    found = of_batch_norm(**case)
    assert [one.severity for one in found] == ([] if severity is None else [severity])
    assert all(one.p_value == 1e-3 for one in found)


def of_layer_norm(behind=3.0, axes=2, dimensions=3):
    facts = [
        Fact("axes_normalized", axes, "ln", place="input"), Fact("input_axes", dimensions, "ln", place="input"),
        Fact("axis_other", 2, "ln", place="input"),
        Fact("axis_spread_behind", behind, "ln", place="output", p_value=1e-3),
    ]  # fmt: skip
    return list(WrongAxis().judge(Evidence(facts)))


@pytest.mark.parametrize(
    ("case", "severity"),
    [({}, Severity.WARNING), ({"behind": 0.5}, None), ({"axes": 3, "dimensions": 4}, None), ({"dimensions": 4}, None)],
)
def test_several_axes(case, severity):
    assert [one.severity for one in of_layer_norm(**case)] == ([] if severity is None else [severity])


def test_a_number_of_features_at_another_axis():
    (found,) = WrongAxis().judge(Evidence([Fact("axis_mismatch", 1, "bn"), Fact("axis_spread_behind", 9.0, "bn")]))
    assert found.severity == Severity.ERROR
    assert "another axis than the second" in found.summary
    assert not list(WrongAxis().judge(Evidence([Fact("axis_mismatch", 0, "bn")])))
