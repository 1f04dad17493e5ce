import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import ks_2samp, norm

from bnprobe.distances import KolmogorovSmirnov, Summary

# scipy's p-value, of no use here, divides by zero for the smallest samples.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
distance = KolmogorovSmirnov()
FEW = hnp.arrays(float, st.integers(1, 30), elements=st.integers(-8, 8).map(float))
LEVELS = st.lists(st.floats(0.01, 0.99), max_size=8, unique=True).map(lambda inner: [0.0, *sorted(inner), 1.0])


def oracle(x: np.ndarray, y: np.ndarray) -> float:
    return float(ks_2samp(x, y, method="asymp").statistic)


def test_within_resolution_of_scipy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = map(Summary.of, pair)
    assert abs(distance(p, q) - oracle(*pair)) <= distance.resolution(p, q) + 1e-12


@settings(max_examples=200, deadline=None)
@given(x=FEW, y=FEW, levels_x=LEVELS, levels_y=LEVELS)
def test_resolution_bounds_the_error_for_any_values_and_levels(
    x: np.ndarray, y: np.ndarray, levels_x: list[float], levels_y: list[float]
) -> None:
    p, q = Summary.of(x, levels_x), Summary.of(y, levels_y)
    assert abs(distance(p, q) - oracle(x, y)) <= distance.resolution(p, q) + 1e-9


def test_the_default_grid_resolves_two_cells() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    assert distance.resolution(Summary.of(values), Summary.of(values)) == pytest.approx(2 / 60 + 2e-5, rel=1e-9)


def test_shifted_gaussians() -> None:
    values = norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    expected = 2 * norm.cdf(0.25) - 1
    assert distance(Summary.of(values), Summary.of(values + 0.5)) == pytest.approx(expected, abs=1e-3)


def test_atoms_are_compared_whole() -> None:
    # A ReLU's zeros: 60 % against 20 %, exactly on levels. Half way through the atoms the difference would look larger.
    levels = np.linspace(0, 1, 6)
    p, q = Summary(levels, [0, 0, 0, 0, 1, 2]), Summary(levels, [0, 0, 1, 2, 3, 4])
    assert distance(p, q) == pytest.approx(max(0.6 - 0.2, 0.8 - 0.4, 1.0 - 0.6), abs=1e-15)
    assert distance(p, Summary(levels, [0, 0, 0, 0, 1, 2])) == 0


def test_constants_are_known_exactly() -> None:
    p, q = Summary.of(np.full(10, 1.0)), Summary.of(np.full(10, 1.0 + 1e-9))
    assert distance(p, q) == 1
    assert distance.resolution(p, q) == 0


def test_the_sampling_part_is_the_bound_of_both_samples() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    exact = Summary.of(values)
    sampled = Summary(exact.levels, exact.quantiles, count=exact.count, rank_error=0.03)
    assert distance.resolution(sampled, sampled) - distance.resolution(exact, exact) == pytest.approx(0.06)


def test_resolution_is_at_most_1() -> None:
    coarse = Summary([0.0, 1.0], [0.0, 1.0])
    assert distance.resolution(coarse, coarse) == 1


def test_the_grid_part_is_attained_where_a_cells_mass_lies_at_its_end() -> None:
    values, constant = np.append(0.0, np.ones(9999)), np.ones(10)
    p, q = Summary.of(values, [0.0, 1.0]), Summary.of(constant, [0.0, 1.0])
    error = abs(distance(p, q) - oracle(values, constant))
    assert 0.98 * distance.resolution(p, q) <= error <= distance.resolution(p, q)


def test_few_values_are_known_to_a_rank_however_fine_the_levels() -> None:
    pair, fine = (np.array([0.0, 1.0]), np.array([0.1])), np.linspace(0, 1, 1001)
    p, q = (Summary.of(values, fine) for values in pair)
    error = abs(distance(p, q) - oracle(pair[0], pair[1]))
    assert 0.1 < error <= distance.resolution(p, q)
