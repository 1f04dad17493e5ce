"""The deep linear network: the rule that judges, by hand-made runs; the trials, at smoke scale."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bnprobe
from analyses import santurkar2018_deep_linear
from analyses._santurkar2018_trial import deep_linear
from analyses.analysis import Settings
from analyses.publish import publish
from analyses.santurkar2018_deep_linear import CLAIMS, DEPTH, RATE, Results, Scale, judge, recorded
from analyses.trials import Finished, Trial
from bnprobe.errors import ArgumentError

SEEDS = 5


def finished(norm: bool, seed: int, **changes: Any) -> Finished:
    last = 0.2 if norm else 1.0 + 0.01 * seed
    result = {"losses": [10.0, 5.0, last], "weights": f"of seed {seed}", "finite": True, **(changes if norm else {})}
    return Finished(Trial(f"norm{norm}-seed{seed}", {}), Path("nowhere"), result)


def results(monkeypatch: pytest.MonkeyPatch, cosine: float = 0.5, error: float = 1e-9, **changes: Any) -> Results:
    """Five seeds; cosines 0.98 without batch norm, ``cosine`` with it, give or take."""

    def values(found: Finished, statistic: str, column: str = "value") -> np.ndarray:
        assert statistic == "gradient_cosine"
        norm, seed = found.trial.label.startswith("normTrue"), int(found.trial.label[-1])
        whole = np.full((3, DEPTH - 1), (cosine if norm else 0.98) + 0.001 * (seed % 3))
        return whole if column == "value" else np.full_like(whole, error)

    monkeypatch.setattr(santurkar2018_deep_linear, "recorded", values)
    arms = [[finished(norm, seed, **changes) for seed in range(SEEDS)] for norm in (False, True)]
    return Results(Settings(Path("nowhere")), Scale(20, 10, SEEDS), *arms)


@pytest.mark.parametrize(
    ("cosine", "losses", "outcome"),
    [
        (0.5, {}, "reproduced"),
        (0.9, {}, "not reproduced"),
        (0.5, {"losses": [10.0, 5.0, 0.9]}, "not reproduced"),
        (0.78, {}, "undecided"),
    ],
)
def test_the_claim_needs_both_a_larger_shift_and_a_lower_loss(
    monkeypatch: pytest.MonkeyPatch, cosine: float, losses: dict[str, Any], outcome: str
) -> None:
    def spread(found: Finished, statistic: str, column: str = "value") -> np.ndarray:
        seed, norm = int(found.trial.label[-1]), found.trial.label.startswith("normTrue")
        away = 0.03 * (seed % 3 - 1) if norm else 0.0
        return np.full((3, DEPTH - 1), (cosine if norm else 0.98) + away) if column == "value" else np.zeros((1, 1))

    made = results(monkeypatch, **losses)
    monkeypatch.setattr(santurkar2018_deep_linear, "recorded", spread)
    (verdict,) = judge(made)
    assert verdict.outcome == outcome
    assert verdict.findings[0].decision.value == pytest.approx(0.98 - cosine, abs=0.02)
    assert "cosine" in verdict.findings[0].measured


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"finite": False}, "finite (not finite: "),
        ({"weights": "other"}, "paired (unlike: seeds [0, 1,"),
        ({"losses": [10.0, 9.8, 9.5]}, "trained (at most 95.0 % of the first loss is left)"),
        ({"error": 0.01}, "exact (0.01)"),
    ],
)
def test_gates(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], says: str) -> None:
    (verdict,) = judge(results(monkeypatch, **changes))
    assert verdict.outcome == "undecided"
    assert says in verdict.reason


def test_both_arms_begin_alike_and_the_last_layer_has_no_batch_norm() -> None:
    without, normed = (deep_linear(25, 10, batch_norm=norm, init="glorot", seed=3) for norm in (False, True))
    linear = [[one.weight for one in net if isinstance(one, nn.Linear)] for net in (without, normed)]
    assert all(torch.equal(a, b) for a, b in zip(*linear, strict=True))
    assert [type(one).__name__ for one in normed] == ["Linear", "BatchNorm1d"] * 24 + ["Linear"]
    assert torch.stack(linear[0]).var().item() == pytest.approx(0.1, rel=0.1)
    (square,) = deep_linear(1, 10, batch_norm=False, init="orthogonal", seed=0).parameters()
    torch.testing.assert_close(square @ square.T, torch.eye(10, dtype=torch.float64))


def test_an_unknown_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="scale must be one of smoke, laptop, gpu; got 'huge'"):
        santurkar2018_deep_linear.run(Settings(tmp_path, scale="huge"))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return santurkar2018_deep_linear.run(Settings(tmp_path_factory.mktemp("smoke"), scale="smoke", jobs=1))


def test_smoke_is_undecided_for_want_of_seeds(smoke: Results) -> None:
    (verdict,) = judge(smoke)
    assert verdict.outcome == "undecided"
    passed = {gate.name: gate.passed for gate in verdict.gates}
    assert [passed[name] for name in ("finite", "paired", "exact")] == [True] * 3


def test_what_the_probe_recorded_is_what_the_definition_says(smoke: Results) -> None:
    """At the first step, from copies of the network."""
    for found in (smoke.without[0], smoke.normed[0]):
        settings = found.trial.settings
        generator = torch.Generator().manual_seed(1_000_003)
        x = torch.randn(settings["samples"], 10, dtype=torch.float64, generator=generator)
        y = x @ torch.randn(10, 10, dtype=torch.float64, generator=generator).T
        before = deep_linear(25, 10, batch_norm=settings["batch_norm"], init="glorot", seed=0)
        (before(x) - y).square().sum().backward()  # type: ignore[no-untyped-call]
        changed = deep_linear(25, 10, batch_norm=settings["batch_norm"], init="glorot", seed=0)
        with torch.no_grad():
            for (name, moved), (_, known) in zip(changed.named_parameters(), before.named_parameters(), strict=True):
                if name not in ("linear25.weight",):
                    moved -= RATE * known.grad
        (changed(x) - y).square().sum().backward()  # type: ignore[no-untyped-call]
        one, other = (net.linear25.weight.grad.flatten() for net in (before, changed))
        cosine = float(nn.functional.cosine_similarity(one, other, dim=0))
        assert recorded(found, "gradient_cosine")[0, -1] == pytest.approx(cosine, abs=1e-9)
        run = bnprobe.load(found.folder / "run")
        assert run.channels("", "loss", place="loss").shape == (3, 6)
        assert found.result["losses"][0] == pytest.approx(
            float((before(x) - y).detach().square().sum() / len(x)), rel=1e-9
        )


def test_the_page(smoke: Results) -> None:
    page = publish(
        "santurkar2018_deep_linear", santurkar2018_deep_linear, smoke.settings, smoke, judge(smoke)
    ).read_text()
    assert CLAIMS[0].statement[:60] in page
    assert "orthogonal weights" in page
    assert math.log(2) == CLAIMS[0].quantities[1].smallest_effect
