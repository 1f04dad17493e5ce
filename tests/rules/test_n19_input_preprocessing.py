import numpy as np
import pytest

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules import Severity
from bnprobe.rules.n19_input_preprocessing import InputPreprocessing

AFFINE = {
    "explained": 0.99, "p": 0.002, "gap": 2.0, "given": 0.9, "undone": 0.02, "excess": 3.0, "excess_p": 1e-6,
    "flipped": 0.9, "flipped_excess": -0.1, "default": 0,
}  # fmt: skip


def judged(**case):
    case = AFFINE | case
    facts = [
        Fact("preprocessing_share", case["explained"], "bn", place="input", p_value=case["p"]),
        Fact("preprocessing_gap", case["gap"], "bn", place="input"),
        Fact("preprocessing_gain", 0.2, "bn", channels=np.array([0.2, 0.21, 0.22])),
        Fact("preprocessing_offset", 0.4, "bn", channels=np.array([0.4, 0.5, 0.3])),
        Fact("gap_given", case["given"]), Fact("gap_undone", case["undone"]), Fact("gap_flipped", case["flipped"]),
        Fact("default_statistics", case["default"], "bn"), Fact("loss_stored", 2.0, place="loss"),
        Fact("loss_flipped", 0.5, place="loss"),
        Fact("excess_stored_over_flipped", case["flipped_excess"], place="loss", p_value=1e-6),
    ]  # fmt: skip
    if case["excess"] is not None:
        facts.append(Fact("excess_stored_over_undone", case["excess"], place="loss", p_value=case["excess_p"]))
    if "distance" in case:
        facts.append(Fact("distance_stored", case["distance"], place="output", low=case["distance"], high=9.0))
    return list(InputPreprocessing().judge(Evidence(facts)))


@pytest.mark.parametrize(
    ("case", "severity"),
    [
        ({}, Severity.WARNING), ({"explained": 0.9}, None), ({"p": 0.02}, None), ({"gap": 0.2}, None),
        ({"undone": 0.3}, None),
        ({"default": 1}, None), ({"excess": 0.1}, Severity.INFO), ({"excess": -0.3}, None),
        ({"excess_p": 0.2}, Severity.INFO), ({"excess": None}, Severity.INFO),
        ({"excess": None, "distance": 0.6}, Severity.WARNING), ({"excess": None, "distance": 0.2}, Severity.INFO),
        ({"explained": 0.1, "flipped": 0.02, "flipped_excess": 2.0}, Severity.WARNING),
        ({"explained": 0.1, "flipped": 0.02, "flipped_excess": 0.1}, None),
        ({"explained": 0.1, "flipped": 0.5, "flipped_excess": 2.0}, None), ({"undone": 0.2}, Severity.WARNING),
    ],
)  # fmt: skip
def test_everything_has_to_fit_when_it_is_undone(case, severity):
    assert [one.severity for one in judged(**case)] == ([] if severity is None else [severity])


def test_it_calls_normalization_innocent_and_tells_the_map():
    (found,) = judged()
    assert "normalization is innocent" in found.summary
    assert "a gain of 0.2, 0.21, 0.22 and an offset of 0.4, 0.5, 0.3" in found.summary
    (found,) = judged(explained=0.1, flipped=0.02, flipped_excess=2.0)
    assert "reverse order the loss is 0.5 instead of 2" in found.summary
