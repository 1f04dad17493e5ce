"""Ioffe & Szegedy 2015, section 4.1: the rule that judges, by hand-made results; the trials, at smoke scale."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import bnprobe
from analyses import data, ioffe2015_mnist
from analyses._ioffe2015_results import ALL_RATES, RATES, SHARED, Arm, Results, Scale
from analyses.analysis import Settings
from analyses.ioffe2015_mnist import _STDS, CHOICES, CLAIMS, _next_rate, _scale, judge
from analyses.publish import publish, verdict_table
from analyses.travel import UnitPaths, wanted_levels
from analyses.trials import Finished, Trial
from bnprobe.errors import ArgumentError

SCALE = Scale(steps=3000, compare_at=2000, settle=1000, every=1000, seeds=5, pilots=1)
IMAGES = len(data.load("digits").y_test)


# --- the rule -------------------------------------------------------------------------------------------------------


def finished(arm: Arm, seed: int, reached: float, *, pilot: bool = False, **changes: Any) -> Finished:
    settings = {"seed": seed, "pilot": pilot}
    steps = [0, 1000, 2000, 3000]
    result = {
        "steps": steps,
        "accuracy": [0.1, 0.5, reached, 1.0],
        "moving_accuracy": [0.1, 0.5, reached, 1.0],
        "test_loss": [2.3, 1.0, 0.5, 1 - reached],
        "weights": f"weights of seed {seed}",
        "finite": True,
        **changes,
    }
    if pilot:
        result["accuracy"] = [reached]
    return Finished(Trial(f"{arm.label}-seed{seed}", settings), Path("nowhere"), result)


def paths(step_length: float, seed: int, records: int = 30) -> UnitPaths:
    """Five normal units whose medians walk ``step_length`` standard deviations from record to record."""
    levels = wanted_levels(IMAGES)
    medians = step_length * np.arange(records)[:, None] * np.linspace(0.9, 1.1, 5) * (1 + 0.05 * seed)
    quantiles = medians[:, :, None] + stats.norm.ppf(np.asarray(levels))
    return UnitPaths(np.arange(records) * 100, levels, quantiles, IMAGES)


def results(
    same: Sequence[tuple[float, float]],
    own: Sequence[tuple[float, float]],
    walks: tuple[float, float] = (0.2, 0.02),
    pilots: dict[float, tuple[float, float]] | None = None,
    **changes: Any,
) -> Results:
    """Results with (without, with) accuracies at the shared rate and at rate 1, the best one by the pilots."""
    held_out = pilots or {rate: (0.95, 0.95) if rate == 1.0 else (0.9, 0.9) for rate in RATES}
    made = Results(
        Settings(Path("nowhere")),
        SCALE,
        data.load("digits"),
        {
            arm: [finished(arm, seed, pair[arm.batch_norm], **changes) for seed, pair in enumerate(values)]
            for rate, values in ((0.1, same), (1.0, own))
            for arm in (Arm(False, rate), Arm(True, rate))
        },
        {
            Arm(norm, rate): [finished(Arm(norm, rate), 1000, pair[norm], pilot=True)]
            for rate, pair in held_out.items()
            for norm in (False, True)
        },
    )
    made.__dict__["_paths"] = {
        arm: [paths(walk, seed) for seed in range(len(same))] for arm, walk in zip(SHARED, walks, strict=True)
    }
    return made


def pairs(advantage: float) -> list[tuple[float, float]]:
    """Five seeds with this advantage of batch norm in percentage points, give or take 0.1."""
    return [(0.9, 0.9 + (advantage + wobble) / 100) for wobble in (-0.1, -0.05, 0.0, 0.05, 0.1)]


@pytest.mark.parametrize(
    ("same", "own", "outcome"),
    [
        (5.0, 2.0, "reproduced"),
        (5.0, 0.0, "not reproduced"),
        (0.0, 2.0, "not reproduced"),
        (-5.0, -5.0, "not reproduced"),
        (5.0, 0.5, "undecided"),
    ],
)
def test_c1a_needs_an_advantage_at_both_learning_rates(same: float, own: float, outcome: str) -> None:
    verdict = judge(results(pairs(same), pairs(own)))[0]
    assert verdict.claim.code == "C1a"
    assert verdict.outcome == outcome
    values = {finding.quantity.name: finding.decision.value for finding in verdict.findings}
    assert values == pytest.approx({"same learning rate": same, "own learning rates": own})


@pytest.mark.parametrize(
    ("walks", "outcome"),
    [((0.2, 0.02), "reproduced"), ((0.2, 0.2), "not reproduced"), ((0.02, 0.2), "not reproduced")],
)
def test_c1b_is_the_ratio_of_travels(walks: tuple[float, float], outcome: str) -> None:
    made = results(pairs(5), pairs(2), walks)
    for seed, path in enumerate(made.paths(SHARED[1])):  # seeds that are all alike would leave no interval
        path.quantiles[:] *= 1 + 0.02 * seed
        path.quantiles[-1] += 0.01 * seed
    verdict = judge(made)[1]
    assert (verdict.claim.code, verdict.outcome) == ("C1b", outcome)
    assert np.exp(verdict.findings[0].decision.value) == pytest.approx(walks[0] / walks[1], rel=0.1)


def test_c1b_leaves_the_first_steps_out() -> None:
    made = results(pairs(5), pairs(2))
    before = judge(made)[1].findings[0].decision.value
    for path in made.paths(SHARED[0]):
        path.quantiles[:5] += 100  # steps 0 to 400
    assert judge(made)[1].findings[0].decision.value == pytest.approx(before)


def test_medians_that_stay_within_their_band_decide_nothing() -> None:
    verdict = judge(results(pairs(5), pairs(2), (1e-4, 1e-5)))[1]
    assert verdict.outcome == "undecided"
    assert "above the noise (so for 0 of 5 seeds)" in verdict.reason


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"finite": False}, "finite (not finite: "), ({"accuracy": [0.1, 0.1, 0.5, 0.5]}, "trained (50.0 %)")],
)
def test_gates(changes: dict[str, Any], says: str) -> None:
    verdict = judge(results(pairs(5), pairs(2), **changes))[0]
    assert verdict.outcome == "undecided"
    assert says in verdict.reason


def test_unlike_weights_are_noticed() -> None:
    made = results(pairs(5), pairs(2))
    made.arms[SHARED[1]][3].result["weights"] = "other"  # type: ignore[index]
    assert "paired (unlike: seeds [3])" in judge(made)[0].reason


def test_a_best_rate_at_the_end_of_those_tried_is_not_the_best() -> None:
    ends = {rate: (rate, 0.9 if rate == 1.0 else 0.5) for rate in RATES if rate <= 1.0}
    made = results(pairs(5), pairs(2), pilots=ends)
    assert made.own() == (Arm(False, 1.0), Arm(True, 1.0))
    assert "bracketed (1 and 1 of" in judge(made)[0].reason


@pytest.mark.parametrize(
    ("best", "tried", "then"),
    [
        ((1.0, 1.0), RATES, None),
        ((3.0, 0.3), RATES, 10.0),
        ((0.3, 10.0), (*RATES, 10.0), 30.0),
        ((0.03, 1.0), RATES, 0.01),
        ((30.0, 30.0), ALL_RATES[2:], None),
        ((0.003, 0.1), ALL_RATES, None),
    ],
)
def test_the_search_for_a_rate_goes_on_until_the_best_lies_inside(
    best: tuple[float, float], tried: Sequence[float], then: float | None
) -> None:
    pilots = {rate: (float(rate == best[0]), float(rate == best[1])) for rate in tried}
    assert _next_rate(results(pairs(5), pairs(2), pilots=pilots)) == then


def test_of_equally_good_rates_the_one_with_the_lower_loss_is_taken() -> None:
    made = results(pairs(5), pairs(2), pilots=dict.fromkeys(RATES, (0.9, 0.9)))
    for arm, (one,) in made.pilots.items():
        one.result["test_loss"] = [abs(np.log(arm.learning_rate / 0.3)) if arm.learning_rate < 3 else np.nan]  # type: ignore[index]
    assert made.own() == (Arm(False, 0.3), Arm(True, 0.3))


def test_steps_to_a_target_are_missing_where_it_was_not_reached() -> None:
    made = results([(0.94, 0.96)] * 5, pairs(2))
    assert made.steps_to(0.95, SHARED[0]) == [3000] * 5
    assert made.steps_to(0.95, SHARED[1]) == [2000] * 5
    assert made.steps_to(1.1, SHARED[1]) == [None] * 5


def test_scales() -> None:
    digits, mnist = _scale(Settings(Path("x"))), _scale(Settings(Path("x"), data="mnist"))
    assert digits.seeds >= 5
    assert (mnist.steps, mnist.every, mnist.seeds) == (50_000, 100, 1), "the paper's length"
    assert _scale(Settings(Path("x"), seeds=7)).seeds == 7
    with pytest.raises(ArgumentError, match="scale must be one of smoke, laptop, gpu; got 'huge'"):
        _scale(Settings(Path("x"), scale="huge"))


def test_every_scale_looks_at_the_step_of_comparison() -> None:
    for scales in (ioffe2015_mnist._SHORT, ioffe2015_mnist._LONG):
        for scale in scales.values():
            assert scale.compare_at % scale.every == scale.steps % scale.every == 0
            assert scale.settle < scale.steps >= scale.compare_at


def test_claims_are_complete() -> None:
    assert [claim.code for claim in CLAIMS] == ["C1a", "C1b"]
    assert all(claim.seeds == 5 and claim.refuted_by and claim.statement for claim in CLAIMS)
    assert {q.smallest_effect for q in CLAIMS[0].quantities} == {0.5}
    assert CLAIMS[1].quantities[0].smallest_effect == pytest.approx(np.log(1.5))
    assert {"learning rate", "initial weights", "optimizer", "percentiles"} <= {choice.what for choice in CHOICES}


# --- trials at smoke scale ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Results:
    found = ioffe2015_mnist.run(Settings(tmp_path_factory.mktemp("smoke"), scale="smoke", jobs=1))
    assert isinstance(found, Results)
    return found


def test_smoke_has_every_trial_and_is_undecided_for_a_reason(smoke: Results) -> None:
    assert all(len(found) == 2 for found in smoke.arms.values())
    assert set(SHARED) | set(smoke.own()) == set(smoke.arms)
    for verdict in judge(smoke):
        assert verdict.outcome == "undecided"
        assert "long enough (compared after 100 updates)" in verdict.reason
        assert all(gate.passed for gate in verdict.gates if gate.name in ("finite", "paired"))


def test_going_on_trains_nothing_again(smoke: Results) -> None:
    folder = smoke.settings.out / "trials"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/trial.json")}
    again = ioffe2015_mnist.run(smoke.settings)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/trial.json")} == before
    assert [verdict.as_json() for verdict in judge(again)] == [verdict.as_json() for verdict in judge(smoke)]


def test_probes_change_nothing(smoke: Results, tmp_path: Path) -> None:
    from analyses._ioffe2015_trial import train_network
    from analyses.trials import Attempt, _one_thread

    for arm in SHARED:
        kept = smoke.arms[arm][0]
        with _one_thread():  # as in a trial: sums depend on how they are split
            plain = train_network({**kept.trial.settings, "probe": False}, Attempt(tmp_path))
        assert {key: kept.result[key] for key in plain} == plain
    assert {path.name for path in tmp_path.iterdir()} <= {"progress"}, "no probe, no run directory"


def test_recorded_quantiles_are_those_of_the_test_images(smoke: Results, tmp_path: Path) -> None:
    """The twin: the first record, from the initial weights, by hand."""
    from analyses._ioffe2015_trial import WIDTH, _images
    from analyses.training import population, sigmoid_mlp

    arm = SHARED[1]
    seen, unseen = _images(smoke.dataset, smoke.arms[arm][0].trial.settings)
    net = sigmoid_mlp(64, 10, width=WIDTH, depth=3, batch_norm=True, std=arm.std, seed=1)
    population(net, seen.inputs())
    net.eval()
    with torch.no_grad():
        inputs = net.get_submodule("hidden3.norm")(net[2].linear(net[:2](unseen.inputs()))).double().numpy()
    path = smoke.paths(arm)[0]
    assert path.steps.tolist() == list(range(0, 201, 20))
    expected = np.quantile(inputs, path.levels, axis=0).T
    assert path.quantiles[0] == pytest.approx(expected, abs=1e-4)


def test_every_layer_is_recorded_in_both_phases(smoke: Results) -> None:
    run = smoke.runs(SHARED[1])[0]
    assert run.closed
    assert run.problems == []
    assert bool(run.layers["observed"].all())
    for phase, steps in (("train", range(0, 200, 20)), ("eval", range(0, 201, 20))):
        frame = run.frame("mean", phase=phase, place="input")
        assert sorted(frame["step"].unique()) == list(steps)
        assert set(frame["layer"]) == set(run.layers["name"])
    drift = bnprobe.drift(run, place="input", phase="eval")
    assert set(drift["layer"]) == set(run.layers["name"])


def test_the_whole_grid_has_every_rate_and_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gpu scale, a few steps long; without a CUDA device it says that it will take long."""
    tiny = Scale(steps=20, compare_at=10, settle=0, every=10, seeds=1, pilots=1, grid=True, device="cuda")
    monkeypatch.setitem(ioffe2015_mnist._SHORT, "gpu", tiny)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="no CUDA device"):
        found = ioffe2015_mnist.run(Settings(tmp_path, scale="gpu", jobs=1))
    assert set(found.arms) >= {Arm(norm, rate, std) for norm in (False, True) for rate in RATES for std in _STDS}
    tables = ioffe2015_mnist.tables(found)
    for table, std in zip(tables[1:4], _STDS, strict=True):
        assert f"standard deviation {std:g};" in table.caption
    assert all(len(one) == 1 for one in found.arms.values())
    assert {verdict.outcome for verdict in judge(found)} == {"undecided"}


@pytest.fixture(scope="module")
def published(smoke: Results) -> Path:
    return publish("ioffe2015_mnist", ioffe2015_mnist, smoke.settings, smoke, judge(smoke))


def test_the_report_is_one_small_file_with_its_pictures(published: Path) -> None:
    page = published.read_text(encoding="utf-8")
    assert published.name == "report.html"
    assert published.stat().st_size < 5e6
    assert page.count("<svg") == 4
    assert not re.findall(r"""(?:src|href)=["']https?:""", page)
    for text in ("C1a", "C1b", "undecided", "As figure 1 of the paper", "hidden3.sigmoid", "initial weights"):
        assert text in page


def test_pictures_are_files_too(published: Path) -> None:
    names = {path.name for path in (published.parent / "figures").iterdir()}
    assert names == {
        f"{name}.{kind}" for name in ("figure-1", "drift", "travel", "own-rates") for kind in ("png", "svg")
    }


def test_verdicts_json_has_every_verdict_and_choice(published: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((published.parent / "verdicts.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert [verdict["claim"] for verdict in content["verdicts"]] == ["C1a", "C1b"]
    assert content["verdicts"][0]["paper_figure"] == CLAIMS[0].figure
    assert len(content["choices"]) == len(CHOICES)
    assert (content["data"], content["scale"]) == ("digits", "smoke")


def test_the_table_of_verdicts_says_what_came_out_and_why(smoke: Results) -> None:
    table = verdict_table(judge(smoke), 100)
    for text in ("C1a", "undecided", "same learning rate", "above +0.50 pp", "above ×1.50", "gate failed: long enough"):
        assert text in table
    assert "50,000 updates" in table, "the paper's scale stands beside ours"
    told = [line for line in table.splitlines() if re.match(r" {7}\w+:| {14}\w", line)]
    assert 80 < max(map(len, told)) <= 100
