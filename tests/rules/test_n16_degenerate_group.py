import pytest

from bnprobe.evidence import Evidence, Fact
from bnprobe.records import Layer
from bnprobe.rules import Severity
from bnprobe.rules.n16_degenerate_group import DegenerateGroup


@pytest.mark.parametrize(
    ("elements", "output", "inputs", "family", "severity"),
    [
        (1, 0.0, 1.0, "group_norm", Severity.ERROR), (2, 1.0, 1.0, "group_norm", Severity.WARNING),
        (3, 1.0, 1.0, "group_norm", None), (64, 1e-4, 1.0, "instance_norm", Severity.ERROR),
        (64, 1e-4, 0.0, "instance_norm", None), (64, 2e-3, 1.0, "layer_norm", None),
        (2, 1.0, 1.0, "rms_norm", None), (1, 1.0, 1.0, "rms_norm", Severity.ERROR),
    ],
)  # fmt: skip
def test_severity(elements, output, inputs, family, severity):
    facts = [
        Fact("group_elements", elements, "norm"), Fact("output_spread", output, "norm"),
        Fact("input_spread", inputs, "norm"),
    ]  # fmt: skip
    found = list(DegenerateGroup().judge(Evidence(facts, [Layer("norm", "Norm", family)])))
    assert [one.severity for one in found] == ([] if severity is None else [severity])


def test_without_a_gain_there_is_no_spread_to_judge():
    facts = [Fact("group_elements", 64, "norm"), Fact("input_spread", 1.0, "norm")]
    assert not list(DegenerateGroup().judge(Evidence(facts, [Layer("norm", "Norm", "group_norm")])))
