"""Weight decay and the angle per step: the rule that judges, by hand-made results; the trials, at smoke scale."""

from pathlib import Path
from typing import Any

import pytest

from analyses import data, li2020_weight_decay
from analyses.analysis import Settings
from analyses.li2020_weight_decay import DECAYS, Results, Scale, judge
from analyses.publish import publish
from analyses.trials import Finished, Trial
from bnprobe.errors import ArgumentError

SEEDS = 5
HIDDEN = ("hidden1.linear", "hidden2.linear", "hidden3.linear")


def finished(seed: int, angle: float, balance: float, fourth: float, **changes: Any) -> Finished:
    spread = 1 + 0.005 * (seed - 2)
    numbers = {
        "angle": angle * spread,
        "law": 1.0,
        "fourth": fourth * spread,
        "balance": fourth / balance,
        "drift": 1.0,
    }
    layers = {name: numbers | changes.get("numbers", {}) for name in changes.get("layers", HIDDEN)}
    result = {"layers": layers, "accuracy": changes.get("accuracy", 0.95), "finite": changes.get("finite", True)}
    return Finished(Trial(f"seed{seed}", {}), Path("nowhere"), result)


def results(
    angle: float = 1.03, balance: float = 1.05, power: float = 1.0, control: float = 2.0, **changes: Any
) -> Results:
    """Fourth powers of norms that go as decay to the minus ``power``."""
    normed = {
        decay: [
            finished(seed, angle, balance, decay**-power * (1 + 0.01 * ((3 * seed + i) % 4)), **changes)
            for seed in range(SEEDS)
        ]
        for i, decay in enumerate(DECAYS)
    }
    without = [finished(seed, control, 1.0, 1.0) for seed in range(SEEDS)]
    return Results(Settings(Path("nowhere")), Scale(10, SEEDS), data.load("digits"), normed, without)


@pytest.mark.parametrize(
    ("found", "angle", "norm"),
    [
        (results(), "reproduced", "reproduced"),
        (results(angle=0.97), "reproduced", "reproduced"),
        (results(angle=0.8), "not reproduced", "reproduced"),
        (results(angle=1.3), "not reproduced", "reproduced"),
        (results(angle=1.1), "undecided", "reproduced"),
        (results(balance=1.6), "reproduced", "not reproduced"),
        (results(power=0.5), "reproduced", "not reproduced"),
    ],
)
def test_angles_within_a_tenth_and_norms_within_a_fifth(found: Results, angle: str, norm: str) -> None:
    assert [verdict.outcome for verdict in judge(found)] == [angle, norm]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"finite": False}, "finite (not finite: seed0"),
        ({"layers": HIDDEN[:2]}, "found (others in seed0"),
        ({"accuracy": 0.5}, "trained (50.0 % at the worst weight decay)"),
        ({"numbers": {"drift": 0.5}}, "settled (by a factor 2.00 at most)"),
        ({"control": 1.0}, "control (off by a factor 1.00 at least)"),
    ],
)
def test_gates(changes: dict[str, Any], says: str) -> None:
    verdict, _ = judge(results(**changes))
    assert verdict.outcome == "undecided"
    assert says in verdict.reason


def test_an_unknown_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="scale must be one of smoke, laptop, gpu; got 'huge'"):
        li2020_weight_decay.run(Settings(tmp_path, scale="huge"))


def test_smoke_runs_finds_the_hidden_weights_and_is_published(tmp_path: Path) -> None:
    found = li2020_weight_decay.run(Settings(tmp_path, scale="smoke", seeds=1, jobs=1))
    verdicts = judge(found)
    assert {verdict.outcome for verdict in verdicts} == {"undecided"}
    assert {gate.name: gate.passed for gate in verdicts[0].gates}["found"]
    page = publish("li2020_weight_decay", li2020_weight_decay, found.settings, found, verdicts).read_text()
    assert li2020_weight_decay.CLAIMS[0].statement in page
    assert "0.002, without batch norm" in page
