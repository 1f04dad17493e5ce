"""The Jacobian conjecture: the rule that judges, by hand-made results; the trials, at smoke scale."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyses import data, ioffe2015_jacobian
from analyses.analysis import Settings
from analyses.ioffe2015_jacobian import CLAIMS, Results, Scale, judge
from analyses.publish import publish
from analyses.trials import Finished, Trial
from bnprobe.errors import ArgumentError

SEEDS = 10


def spectrum(share: float, seed: int) -> dict[str, Any]:
    """A hundred values of which this share, give or take, is near one."""
    near = round(100 * share) + 2 * (seed % 2) - 1
    return {"values": [[1.0] * near + [0.3] * (100 - near)], "error": 1e-9}


def finished(norm: bool, seed: int, shares: tuple[float, float, float], **changes: Any) -> Finished:
    linear, before, after = (spectrum(share, seed) for share in shares)
    result = {
        "gaussian": linear,
        "before": before,
        "after": after,
        "orthogonal": {"values": [[1.0] * 100], "error": 1e-9},
        "accuracy": 0.95,
        "weights": f"of seed {seed}",
        "finite": True,
        **(changes if norm else {}),
    }
    return Finished(Trial(f"norm{norm}-seed{seed}", {}), Path("nowhere"), result)


def results(shares: tuple[float, float, float], **changes: Any) -> Results:
    arms = [[finished(norm, seed, shares, **changes) for seed in range(SEEDS)] for norm in (False, True)]
    return Results(Settings(Path("nowhere")), Scale(10, 5, SEEDS), data.load("digits"), *arms)


@pytest.mark.parametrize(
    ("shares", "outcome"),
    [
        ((0.9, 0.8, 0.7), "reproduced"),
        ((0.11, 0.1, 0.09), "not reproduced"),
        ((0.9, 0.9, 0.1), "not reproduced"),
        ((0.9, 0.5, 0.9), "undecided"),
        ((0.9, 0.4, 0.9), "undecided"),
        ((0.9, 0.25, 0.9), "undecided"),
        ((0.9, 0.4, 0.2), "not reproduced"),
    ],
)
def test_the_claim_needs_more_than_half_of_the_values_everywhere(
    shares: tuple[float, float, float], outcome: str
) -> None:
    (verdict,) = judge(results(shares))
    assert verdict.claim.code == "C1d"
    assert verdict.outcome == outcome
    assert [one.decision.value for one in verdict.findings] == pytest.approx([100 * share for share in shares])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"finite": False}, "finite (not finite: "),
        ({"weights": "other"}, "paired (unlike: seeds [0, 1,"),
        ({"accuracy": 0.5}, "trained (50.0 %)"),
        ({"orthogonal": {"values": [[0.5] * 100], "error": 0.0}}, "control (0.0 % in the worst seed)"),
        ({"after": {"values": [[1.0] * 100], "error": 0.01}}, "exact (0.01)"),
    ],
)
def test_gates(changes: dict[str, Any], says: str) -> None:
    (verdict,) = judge(results((0.9, 0.9, 0.9), **changes))
    assert verdict.outcome == "undecided"
    assert says in verdict.reason


def test_an_unknown_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="scale must be one of smoke, laptop, gpu; got 'huge'"):
        ioffe2015_jacobian.run(Settings(tmp_path, scale="huge"))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return ioffe2015_jacobian.run(Settings(tmp_path_factory.mktemp("smoke"), scale="smoke", jobs=1))


def test_smoke_is_undecided_for_a_reason_and_near_the_law(smoke: Results) -> None:
    (verdict,) = judge(smoke)
    assert verdict.outcome == "undecided"
    passed = {gate.name: gate.passed for gate in verdict.gates}
    assert {name: passed[name] for name in ("finite", "paired", "control", "exact")} == dict.fromkeys(
        ("finite", "paired", "control", "exact"), True
    )
    for share in smoke.shares("gaussian"):
        assert share == pytest.approx(11.02, abs=3)  # one matrix of 256 has about 1 % of its own
    assert np.mean([(v**2).mean() for v in smoke.values("gaussian")]) == pytest.approx(1, abs=0.02)


def test_the_probe_records_the_linear_layers(smoke: Results) -> None:
    for run in smoke.runs:
        assert set(run.frame(place="jacobian")["layer"]) == {"hidden1.linear", "hidden2.linear", "hidden3.linear",
                                                             "classifier"}  # fmt: skip
        values = run.channels("hidden3.linear", "singular_value", place="jacobian")
        assert list(values.index) == [0, 20, 40]
        assert values.shape[1] == 256


def test_the_page(smoke: Results) -> None:
    page = publish("ioffe2015_jacobian", ioffe2015_jacobian, smoke.settings, smoke, judge(smoke)).read_text()
    assert CLAIMS[0].statement in page
    assert re.search(r"quarter circle[^<]*</t[dh]>\s*<td[^>]*>11\.0 %", page)
