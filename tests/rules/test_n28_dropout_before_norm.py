import pytest

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules import Severity
from bnprobe.rules.n28_dropout_before_norm import DropoutBeforeNorm


def judged(ratio=2.0, low=1.8, nearer=-0.5, excess=0.3, p=1e-5, distance=None):
    facts = [
        Fact("dropout_ratio", ratio, "bn", place="input", low=low, high=2.2, p_value=1e-6),
        Fact("dropout_ratio", 1.0, "first", place="input", low=1.0, high=1.0, p_value=1.0),
        Fact("stored_with_dropout", nearer, "bn", place="input"),
    ]  # fmt: skip
    if excess is not None:
        facts.append(Fact("excess_stored_over_pooled", excess, place="loss", p_value=p))
    if distance is not None:
        facts.append(Fact("distance_stored", distance, place="output", low=distance, high=distance))
    return list(DropoutBeforeNorm().judge(Evidence(facts)))


@pytest.mark.parametrize(
    ("case", "severity"),
    [
        ({}, Severity.WARNING), ({"ratio": 1.1}, None), ({"low": 0.9}, None), ({"nearer": 0.2}, None),
        ({"excess": 0.01}, Severity.INFO), ({"p": 0.5}, Severity.INFO), ({"excess": None}, Severity.INFO),
        ({"excess": None, "distance": 0.5}, Severity.WARNING), ({"excess": None, "distance": 0.2}, Severity.INFO),
    ],
)  # fmt: skip
def test_severity(case, severity):
    found = judged(**case)
    assert [one.severity for one in found] == ([] if severity is None else [severity])


def test_it_names_the_worst_layer():
    (found,) = judged()
    assert found.layer == "bn"
    assert "2 times as large with dropout" in found.summary
    assert "1 of 2 layers" in found.summary
