"""The statistics of verdicts, against closed forms and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analyses.inference import (
    Interval,
    Sample,
    bootstrap_interval,
    holm_levels,
    judge,
    judge_together,
    p_value,
    t_interval,
    wilson_interval,
)
from bnprobe.errors import ArgumentError

finite = st.floats(-100, 100, allow_nan=False)
samples = st.lists(finite, min_size=2, max_size=12).filter(lambda v: np.std(v) > 1e-6)
probabilities = st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=8)


def binomial_limits(rate: float, n: int) -> tuple[float, float]:
    """Where a simulated rate lies with all but one chance in ten thousand."""
    low, high = stats.binom.interval(1 - 1e-4, n, rate)
    return low / n, high / n


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "half_width"), [(5, 1.2417), (8, 0.8360), (10, 0.7154)])
def test_t_interval_has_the_textbook_half_width(n: int, half_width: float) -> None:
    values = np.random.default_rng(n).normal(size=n)
    found = t_interval(values.tolist())
    assert (found.high - found.low) / 2 / values.std(ddof=1) == pytest.approx(half_width, abs=1e-4)
    assert (found.high + found.low) / 2 == pytest.approx(values.mean())


@given(samples, finite, st.floats(0.1, 10))
def test_t_interval_moves_and_scales_with_its_values(values: list[float], shift: float, scale: float) -> None:
    plain, moved = t_interval(values), t_interval([scale * v + shift for v in values])
    assert moved.low == pytest.approx(scale * plain.low + shift, abs=1e-6)
    assert moved.high == pytest.approx(scale * plain.high + shift, abs=1e-6)


def test_t_interval_covers_at_its_stated_rate() -> None:
    generator = np.random.default_rng(0)
    runs = 1000
    for confidence in (0.95, 1 - 0.05 / 3):
        intervals = [t_interval(generator.normal(2, 3, 5).tolist(), confidence) for _ in range(runs)]
        low, high = binomial_limits(confidence, runs)
        assert low <= np.mean([i.low <= 2 <= i.high for i in intervals]) <= high


def test_bootstrap_interval_is_near_the_t_interval_for_normal_values_and_repeats_itself() -> None:
    values = np.random.default_rng(1).normal(size=40).tolist()
    t, bootstrap = t_interval(values), bootstrap_interval(values)
    width = t.high - t.low
    assert abs(bootstrap.low - t.low) < 0.15 * width
    assert abs(bootstrap.high - t.high) < 0.15 * width
    assert bootstrap_interval(values) == bootstrap
    assert bootstrap_interval(values, seed=1) != bootstrap


def test_bootstrap_interval_refuses_fewer_than_ten_values() -> None:
    with pytest.raises(ArgumentError, match="at least 10 numbers, one a seed; got 9"):
        bootstrap_interval([float(i) for i in range(9)])


@pytest.mark.parametrize(
    ("values", "confidence", "says"),
    [
        ([1.0], 0.95, "at least 2 numbers, one a seed; got 1"),
        ([1.0, math.nan], 0.95, "must be finite"),
        ([1.0, 2.0], 1.0, "confidence must lie between 0 and 1; got 1.0"),
    ],
)
def test_t_interval_refuses_what_it_cannot_use(values: list[float], confidence: float, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        t_interval(values, confidence)


def test_wilson_interval_matches_its_formula() -> None:
    k, n, z = 7, 20, stats.norm.ppf(0.975)
    centre = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    found = wilson_interval(k, n)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))


@pytest.mark.parametrize(("successes", "inside"), [(0, 0.0), (10, 1.0)])
def test_wilson_interval_has_a_width_where_the_rate_is_extreme(successes: int, inside: float) -> None:
    found = wilson_interval(successes, 10)
    assert found.high - found.low > 0.2
    assert found.low <= inside <= found.high


def test_wilson_interval_refuses_more_successes_than_trials() -> None:
    with pytest.raises(ArgumentError, match="got 3 of 2"):
        wilson_interval(3, 2)


def test_interval_side() -> None:
    interval = Interval(1.0, 2.0, 0.95, "t")
    assert [interval.side(x) for x in (0.5, 1.0, 1.5, 2.0, 2.5)] == [1, 0, 0, 0, -1]


# --- Holm ------------------------------------------------------------------------------------------------------------


def test_holm_levels_by_hand() -> None:
    assert holm_levels([0.03, 0.001, 0.04], 0.05) == pytest.approx([0.025, 0.05 / 3, 0.025])
    assert holm_levels([0.04, 0.001, 0.02], 0.05) == pytest.approx([0.05, 0.05 / 3, 0.025])
    assert holm_levels([0.02, 0.02, 0.02], 0.05) == pytest.approx([0.05 / 3] * 3)
    assert holm_levels([], 0.05) == []


@given(probabilities)
def test_holm_rejects_what_its_adjusted_p_values_reject(p_values: list[float]) -> None:
    """The twin: adjusted p-values max over earlier ranks of (m - rank) p, compared with alpha."""
    alpha = 0.05
    filled = [2.0 if math.isnan(p) else p for p in p_values]
    order = np.argsort(filled, kind="stable")
    adjusted = np.maximum.accumulate([(len(filled) - k) * filled[i] for k, i in enumerate(order)])
    twin = {int(i): bool(a <= alpha) for i, a in zip(order, adjusted, strict=True)}
    levels = holm_levels(p_values, alpha)
    near = any(abs(a - alpha) < 1e-12 for a in adjusted)  # a tie in exact arithmetic may fall either way in floats
    assert near or [p <= level for p, level in zip(p_values, levels, strict=True)] == [
        twin[i] for i in range(len(p_values))
    ]


@given(probabilities)
def test_holm_is_never_stricter_than_bonferroni(p_values: list[float]) -> None:
    assert all(0.05 / len(p_values) - 1e-15 <= level <= 0.05 for level in holm_levels(p_values, 0.05))


# --- decisions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "direction", "outcome"),
    [
        ([2.0, 2.1, 1.9, 2.0, 2.2], "above", "reproduced"),
        ([0.0, 0.1, -0.1, 0.0, 0.2], "above", "not reproduced"),
        ([2.0, -2.0, 1.0, 0.0, 1.5], "above", "undecided"),
        ([-2.0, -2.1, -1.9], "below", "reproduced"),
        ([2.0, 2.1, 1.9], "below", "not reproduced"),
    ],
)
def test_judge_by_hand(values: list[float], direction: str, outcome: str) -> None:
    assert judge(values, 0.5, direction).outcome == outcome  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "0 seed"),
        ([5.0], "1 seed: the spread between seeds is unknown"),
        ([5.0, math.nan, math.inf], "2 of 3 seeds have no finite value"),
        ([5.0, 5.0, 5.0], "all 3 seeds gave the same value"),
    ],
)
def test_judge_is_undecided_with_the_reason_where_there_is_no_interval(values: list[float], says: str) -> None:
    decision = judge(values, 0.5)
    assert decision.outcome == "undecided"
    assert decision.interval is None
    assert says in decision.reason


def test_one_seed_keeps_its_value() -> None:
    assert judge([5.0], 0.5).value == 5.0


@given(samples, finite)
def test_the_decision_agrees_with_the_p_value(values: list[float], threshold: float) -> None:
    p = p_value(Sample(tuple(values), threshold))
    decision = judge(values[:9], threshold) if len(values) > 9 else judge(values, threshold)
    if len(values) <= 9 and abs(p - 0.05) > 1e-9:
        assert (decision.outcome != "undecided") == (p < 0.05)


@given(samples, finite)
def test_turning_everything_round_keeps_the_decision(values: list[float], threshold: float) -> None:
    assert judge(values, threshold, "above").outcome == judge([-v for v in values], -threshold, "below").outcome


@settings(max_examples=30)
@given(st.lists(samples, min_size=2, max_size=4))
def test_together_is_never_more_decided_than_alone(groups: list[list[float]]) -> None:
    together = judge_together([Sample(tuple(g), 0.5) for g in groups])
    for group, decision in zip(groups, together, strict=True):
        assert decision.outcome in ("undecided", judge(group, 0.5).outcome)


def test_ten_seeds_bring_the_bootstrap_and_both_must_agree() -> None:
    steady = judge([2 + 0.1 * (i % 3) for i in range(10)], 0.5)
    assert steady.outcome == "reproduced"
    assert steady.bootstrap is not None
    # one wild value: the t interval (half-width 0.72 sd) holds 0.5 or not; the bootstrap is skewed to the wild side
    skewed = [0.6] * 9 + [6.0]
    both = [i.side(0.5) for i in (t_interval(skewed), bootstrap_interval(skewed))]
    assert both[0] != both[1], "the example should split the two intervals"
    assert judge(skewed, 0.5).outcome == "undecided"


def test_the_chance_of_a_false_verdict_is_alpha_where_the_truth_is_the_threshold() -> None:
    generator = np.random.default_rng(2)
    runs = 1000
    outcomes = [judge(generator.normal(0.5, 1, 5).tolist(), 0.5).outcome for _ in range(runs)]
    low, high = binomial_limits(0.025, runs)
    assert low <= outcomes.count("reproduced") / runs <= high
    assert low <= outcomes.count("not reproduced") / runs <= high


@pytest.mark.parametrize("strong", [0, 1])
def test_several_verdicts_share_one_chance_of_any_false_one(strong: int) -> None:
    """Three quantities at their threshold, or one of them with a large true effect: any false verdict <= alpha."""
    generator = np.random.default_rng(3 + strong)
    runs, wrong, alone = 400, 0, 0
    for _ in range(runs):
        draws = generator.normal(0.5, 1, (3, 5))
        draws[:strong] += 20
        decisions = judge_together([Sample(tuple(row), 0.5) for row in draws.tolist()])[strong:]
        wrong += any(d.outcome != "undecided" for d in decisions)
        alone += any(d.p_value < 0.05 for d in decisions)
    assert wrong / runs <= binomial_limits(0.05, runs)[1]
    assert alone > 1.2 * wrong, "without the correction the chance would be larger"


def test_an_effect_well_beyond_the_threshold_is_found() -> None:
    generator = np.random.default_rng(4)
    found = [judge(generator.normal(3.0, 1, 5).tolist(), 0.5).outcome for _ in range(200)]
    assert found.count("reproduced") / 200 > 0.9
    assert found.count("not reproduced") == 0


def test_sample_refuses_a_direction_it_does_not_know() -> None:
    with pytest.raises(ArgumentError, match="direction must be 'above' or 'below'; got 'up'"):
        Sample((1.0,), 0.5, "up")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"an effect below 1.0 cannot be refuted from 0.5 on"):
        Sample((1.0,), 1.0, "below", 0.5)
    with pytest.raises(ArgumentError, match="smallest_effect must be a finite number"):
        Sample((1.0,), math.nan)


@pytest.mark.parametrize("flip", [1, -1])
@pytest.mark.parametrize(
    ("mean", "outcome"),
    [(5.0, "reproduced"), (2.0, "undecided"), (1.5, "undecided"), (1.0, "undecided"), (-3.0, "not reproduced")],
)
def test_between_two_thresholds_nothing_is_decided(mean: float, outcome: str, flip: int) -> None:
    values = tuple(flip * (mean + 0.05 * one) for one in (-2.0, -1.0, 0.0, 1.0, 2.0))
    sample = Sample(values, flip * 2.0, "above" if flip > 0 else "below", flip * 1.0)
    (decision,) = judge_together([sample])
    assert decision.outcome == outcome
    assert (decision.p_value <= 0.05) == (outcome != "undecided")
    if mean == 1.5:
        assert decision.p_value == 1
        assert "reaches between the smallest effect that counts and what refutes" in decision.reason
