"""Travel of medians: by hand, its laws, and its error band."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from analyses.travel import LEVELS, UnitPaths, band, over_units, wanted_levels
from bnprobe.errors import ArgumentError

N = 400
E = band(N)


def normal_paths(medians: np.ndarray, sd: float | np.ndarray = 1.0, images: int = N) -> UnitPaths:
    """Units whose values are exactly normal with the given medians ``[T, C]``."""
    levels = wanted_levels(images)
    z = stats.norm.ppf(np.asarray(levels))
    sd = np.broadcast_to(np.asarray(sd, float), medians.shape)
    values = medians[:, :, None] + sd[:, :, None] * z
    return UnitPaths(np.arange(len(medians)) * 10, levels, values, images)


IQR = 2 * stats.norm.ppf(0.75)


def test_travel_by_hand() -> None:
    paths = normal_paths(np.array([[0.0, 5.0], [1.0, 5.0], [-1.0, 5.0]]), 2.0)
    assert paths.travel() == pytest.approx([3 / (2 * IQR), 0.0])


def test_the_path_is_measured_in_one_range_or_in_those_of_the_moment() -> None:
    paths = normal_paths(np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [1.0], [3.0]]))
    assert paths.travel() == pytest.approx([2 / IQR])
    assert paths.travel_by_record() == pytest.approx([(1 / 1 + 1 / 2) / IQR])


def test_a_time_without_spread_does_not_rule_the_travel() -> None:
    sd = np.array([[1e-6], [1e-6], [1.0], [1.0], [1.0]])
    paths = normal_paths(np.array([[0.0], [0.1], [0.1], [0.1], [0.1]]), sd)
    assert paths.travel() == pytest.approx([0.1 / IQR])
    assert paths.travel_by_record()[0] > 1e4


medians = arrays(np.float64, (6, 3), elements=st.floats(-50, 50))


@given(medians, st.floats(0.1, 10), st.floats(-10, 10))
def test_travel_does_not_depend_on_unit_and_origin_of_the_values(m: np.ndarray, scale: float, shift: float) -> None:
    plain = normal_paths(m)
    moved = UnitPaths(plain.steps, plain.levels, plain.quantiles * scale + shift, N)
    for name in ("travel", "travel_by_record", "floor"):
        assert getattr(moved, name)() == pytest.approx(getattr(plain, name)(), rel=1e-6, abs=1e-9)


@given(medians)
def test_travel_adds_up_and_is_at_least_the_distance_from_start_to_end(m: np.ndarray) -> None:
    paths = normal_paths(m)
    assert (paths.travel() >= np.abs(m[-1] - m[0]) / IQR - 1e-9).all()
    first = UnitPaths(paths.steps[:4], paths.levels, paths.quantiles[:4], N)
    assert first.travel() + paths.since(30).travel() == pytest.approx(paths.travel(), abs=1e-9)


@given(medians)
def test_travel_beyond_the_band_is_never_longer(m: np.ndarray) -> None:
    paths = normal_paths(m)
    assert (paths.travel_beyond_band() <= paths.travel() + 1e-9).all()


def test_trembling_within_the_band_is_no_travel_and_a_slow_walk_is() -> None:
    reach = stats.norm.ppf(0.5 + E)
    tremble = np.where(np.arange(50) % 2, 0.9 * reach, 0.0)
    walk = 0.3 * reach * np.arange(50)
    paths = normal_paths(np.stack([tremble, walk], axis=1))
    beyond, plain = paths.travel_beyond_band(), paths.travel()
    assert beyond[0] == 0 < plain[0]
    assert beyond[1] == pytest.approx(plain[1], rel=0.1)


def test_a_unit_without_spread_has_no_travel() -> None:
    paths = normal_paths(np.zeros((3, 2)))
    paths.quantiles[1:, 0] = 0.0
    for name in ("travel", "travel_by_record", "travel_beyond_band", "floor"):
        assert math.isnan(getattr(paths, name)()[0]), name
        assert math.isfinite(getattr(paths, name)()[1]), name
    assert paths.typical() == 1


def test_over_units_needs_most_of_them() -> None:
    assert over_units(np.array([1.0, 2.0, 9.0, np.nan])) == 2.0
    assert math.isnan(over_units(np.array([1.0, 2.0, np.nan, np.nan])))


def test_the_typical_unit_travels_the_median_distance() -> None:
    assert normal_paths(np.array([[0.0] * 5, [1.0, 9.0, 3.0, 7.0, 5.0]])).typical() == 4


def test_the_band_is_the_one_that_records_carry() -> None:
    from bnprobe.statistics.quantiles import dkw_bound

    assert [band(n) for n in (1, 450, 10_000)] == [dkw_bound(n) for n in (1, 450, 10_000)]
    assert band(10_000) == pytest.approx(0.01358, abs=1e-5)
    with pytest.raises(ArgumentError, match="images must be at least 1; got 0"):
        band(0)


def test_the_band_of_a_percentile_holds_the_true_one_in_95_of_100_samples() -> None:
    generator = np.random.default_rng(0)
    levels = wanted_levels(N)
    held = 0
    for _ in range(300):
        values = np.quantile(generator.normal(size=N), levels)
        paths = UnitPaths(np.array([0]), levels, values[None, None], N)
        ends = [paths.with_band(level, 0) for level in LEVELS]
        held += all(
            low[0] <= stats.norm.ppf(level) <= high[0] for level, (_, low, high) in zip(LEVELS, ends, strict=True)
        )
    assert held >= stats.binom.ppf(1e-4, 300, 0.95)


@pytest.mark.parametrize("images", [3, 100, 450, 10_000])
def test_wanted_levels_rise_and_hold_what_is_read(images: int) -> None:
    levels = wanted_levels(images)
    assert all(a < b for a, b in itertools.pairwise(levels))
    assert {0.15, 0.25, 0.5, 0.75, 0.85} <= set(levels)
    assert 0 <= levels[0] <= levels[-1] <= 1
