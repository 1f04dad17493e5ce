import re

import numpy as np
import pytest

from bnprobe.distances import Energy, Hellinger, Summary, Wasserstein
from bnprobe.errors import ArgumentError
from bnprobe.records import DEFAULT_LEVELS


def test_of_is_numpy() -> None:
    values = np.random.default_rng(0).normal(size=(3, 50))
    summary = Summary.of(values)
    assert summary.levels.tolist() == list(DEFAULT_LEVELS)
    np.testing.assert_array_equal(summary.quantiles[1], np.quantile(values[1], DEFAULT_LEVELS))
    np.testing.assert_array_equal(summary.mean, values.mean(1))
    np.testing.assert_array_equal(summary.variance, values.var(1))
    assert summary.count == 50
    assert summary.given == {"quantiles", "mean", "variance"}
    assert summary.rank_error == summary.mean_error == summary.variance_error == 0


def test_nan_among_the_values_is_not_measured() -> None:
    assert np.isnan(Wasserstein()(Summary.of([0.0, np.nan]), Summary.of([0.0])))


def test_scaled_is_the_summary_of_scaled_values() -> None:
    values = np.random.default_rng(0).normal(size=(2, 50))
    summary = Summary(*_fields(Summary.of(values)), mean_error=0.1, variance_error=0.2)
    scaled, expected = summary.scaled([2.0, 3.0]), Summary.of(values * [[2.0], [3.0]])
    for name in ("levels", "quantiles", "mean", "variance"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(expected, name), rtol=1e-12)
    np.testing.assert_allclose(scaled.mean_error, [0.2, 0.3])
    np.testing.assert_allclose(scaled.variance_error, [0.8, 1.8])


def test_scaled_keeps_what_is_given() -> None:
    assert Summary(mean=1.0).scaled(2.0).given == {"mean"}


@pytest.mark.parametrize(
    ("levels", "came"),
    [
        ([0.15, 0.5, 0.85], "3 levels from 0.15 to 0.85"),
        ([0.0, 0.5], "2 levels from 0 to 0.5"),
        ([0.0, 0.5, 0.5, 1.0], "4 levels from 0 to 1"),
        ([0.0], "1 levels from 0 to 0"),
        ([], "none"),
    ],
)
def test_levels_must_rise_from_0_to_1(levels: list[float], came: str) -> None:
    text = f"levels must rise from 0 to 1, else the tails are unknown; got {came}"
    with pytest.raises(ArgumentError, match=f"^{re.escape(text)}$"):
        Summary(levels, np.zeros(len(levels)))


def test_levels_must_fit_the_quantiles() -> None:
    text = "quantiles must have 2 levels in the last dimension; got (4, 3)"
    with pytest.raises(ArgumentError, match=re.escape(text)):
        Summary([0.0, 1.0], np.zeros((4, 3)))


def test_quantiles_must_not_fall() -> None:
    with pytest.raises(ArgumentError, match=r"quantiles must not fall from one level to the next; some fall by 0\.5"):
        Summary([0.0, 0.5, 1.0], [[0.0, 1.0, 2.0], [0.0, 1.0, 0.5]])


def test_quantiles_that_fall_by_rounding_are_levelled() -> None:
    rounded = Summary([0.0, 0.5, 1.0], [0.0, 1.0, 1.0 - 1e-7])
    level = Summary([0.0, 0.5, 1.0], [0.0, 1.0, 1.0])
    assert Energy()(rounded, level) == 0


def test_no_values_is_an_error() -> None:
    with pytest.raises(ArgumentError, match=r"values must hold at least one value a summary; got shape \(3, 0\)"):
        Summary.of(np.zeros((3, 0)))
    with pytest.raises(ArgumentError, match=r"got shape \(\)"):
        Summary.of(1.0)


def test_negative_variance_is_an_error() -> None:
    with pytest.raises(ArgumentError, match=r"q\.variance must not be negative; got -1\.0"):
        Hellinger()(Summary(mean=0.0, variance=1.0), Summary(mean=[0.0, 0.0], variance=[-1.0, np.nan]))


def _fields(summary: Summary) -> tuple[np.ndarray, ...]:
    return summary.levels, summary.quantiles, summary.mean, summary.variance, summary.count
