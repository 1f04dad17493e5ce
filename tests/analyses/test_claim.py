"""From evidence to verdicts: gates, seeds, several quantities, and what a reader gets to see."""

import json
import math
from collections.abc import Sequence

import pytest

from analyses.claim import Claim, Evidence, Gate, Quantity, Verdict, decide
from analyses.inference import Interval
from bnprobe.errors import ArgumentError

LARGE = [2.0, 2.1, 1.9, 2.0, 2.2]
NULL = [0.0, 0.1, -0.1, 0.0, 0.2]
WILD = [2.0, -2.0, 1.0, 0.0, 1.5]


def claim(*names: str, seeds: int = 5) -> Claim:
    quantities = tuple(Quantity(name, "some difference", "pp", "above", 0.5) for name in names)
    return Claim("X1", "Nobody 2000", "section 1", "it helps", "figure 1", "large", quantities, seeds,
                 {"finite": "no NaN"}, "no difference")  # fmt: skip


def verdict(*values: Sequence[float], gate: bool = True, seeds: int = 5) -> Verdict:
    names = [f"q{i}" for i in range(len(values))]
    gates = (Gate("finite", gate, "3 NaN" if not gate else "none"),)
    return decide([Evidence(claim(*names, seeds=seeds), dict(zip(names, values, strict=True)), gates)], "small")[0]


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([LARGE], "reproduced"),
        ([NULL], "not reproduced"),
        ([WILD], "undecided"),
        ([LARGE, LARGE], "reproduced"),
        ([LARGE, NULL], "not reproduced"),
        ([LARGE, WILD], "undecided"),
        ([NULL, WILD], "not reproduced"),
    ],
)
def test_reproduced_needs_all_and_one_refutes(values: list[list[float]], outcome: str) -> None:
    assert verdict(*values).outcome == outcome


def test_a_failed_gate_leaves_the_claim_undecided_and_says_which() -> None:
    found = verdict(LARGE, gate=False)
    assert (found.outcome, found.reason) == ("undecided", "gate failed: finite (3 NaN)")


def test_one_seed_is_undecided_but_shows_its_value() -> None:
    found = verdict([2.0])
    assert found.outcome == "undecided"
    assert "1 seed: the spread between seeds is unknown" in found.reason
    assert found.findings[0].measured == "+2.00 pp"


def test_fewer_seeds_than_asked_are_undecided_with_an_interval() -> None:
    found = verdict(LARGE[:4])
    assert (found.outcome, found.reason) == ("undecided", "4 seeds; the claim asks for 5")
    assert found.findings[0].decision.interval is not None


def test_the_quantities_of_all_claims_share_one_error_rate() -> None:
    # alone, p = 0.03 decides; as one of two whose partner stays open it needs p <= 0.025
    borderline = [1.0, 2.9, 1.4, 3.0, 1.2]
    assert verdict(borderline).outcome == "reproduced"
    evidence = [Evidence(claim("q0"), {"q0": values}, (Gate("finite", True, ""),)) for values in (borderline, WILD)]
    assert [v.outcome for v in decide(evidence, "small")] == ["undecided", "undecided"]


def test_the_shown_interval_has_the_confidence_that_decided() -> None:
    alone, paired = verdict(LARGE), verdict(LARGE, WILD)
    assert "(95 %)" in alone.findings[0].measured
    assert "(97.5 %)" in paired.findings[0].measured


def test_evidence_must_be_complete() -> None:
    with pytest.raises(ArgumentError, match=r"X1 needs the quantities \['q0', 'q1'\]; got \['q0'\]"):
        Evidence(claim("q0", "q1"), {"q0": LARGE}, (Gate("finite", True, ""),))
    with pytest.raises(ArgumentError, match=r"X1 needs the gates \['finite'\]; got \[\]"):
        Evidence(claim("q0"), {"q0": LARGE}, ())


def test_numbers_for_people() -> None:
    points = Quantity("q", "", "pp", "above", 0.5)
    ratio = Quantity("r", "", "log ratio", "above", math.log(1.5))
    assert points.show(-1.234) == "-1.23 pp"
    assert ratio.show(math.log(1.5)) == "\u00d71.50"
    assert points.show(math.nan) == "none"
    assert ratio.show_interval(Interval(0.0, math.log(2), 0.95, "t")) == "\u00d71.00 to \u00d72.00 (95 %)"


def test_json_is_strict_and_complete() -> None:
    for found in (verdict(LARGE, WILD), verdict([math.nan, 1.0]), verdict([1.0])):
        text = json.dumps(found.as_json(), allow_nan=False)
        back = json.loads(text)
        assert back["outcome"] == found.outcome
        assert back["claim"] == "X1"
        assert len(back["quantities"]) == len(found.findings)
    assert json.loads(json.dumps(verdict([1.0]).as_json()))["quantities"][0]["interval"] is None
