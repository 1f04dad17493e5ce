import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm, wasserstein_distance

from bnprobe.distances import Summary, Wasserstein

distance = Wasserstein()
FEW = hnp.arrays(float, st.integers(1, 30), elements=st.integers(-8, 8).map(float))
LEVELS = st.lists(st.floats(0.01, 0.99), max_size=8, unique=True).map(lambda inner: [0.0, *sorted(inner), 1.0])


def test_within_resolution_of_scipy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = map(Summary.of, pair)
    assert abs(distance(p, q) - wasserstein_distance(*pair)) <= distance.resolution(p, q) + 1e-12


@settings(max_examples=200, deadline=None)
@given(x=FEW, y=FEW, levels_x=LEVELS, levels_y=LEVELS)
def test_resolution_bounds_the_error_for_any_values_and_levels(
    x: np.ndarray, y: np.ndarray, levels_x: list[float], levels_y: list[float]
) -> None:
    p, q = Summary.of(x, levels_x), Summary.of(y, levels_y)
    assert abs(distance(p, q) - wasserstein_distance(x, y)) <= distance.resolution(p, q) + 1e-9


@given(shift=st.floats(-1e6, 1e6))
def test_moving_a_distribution_costs_the_way(shift: float) -> None:
    values = np.maximum(np.random.default_rng(0).normal(size=300), 0)
    assert distance(Summary.of(values), Summary.of(values + shift)) == pytest.approx(abs(shift), abs=1e-9)


def test_crossing_quantile_functions() -> None:
    # Uniform on [-1, 1] and on [-2, 2]: the difference is |u - 1/2| * 2, which integrates to 1/2.
    p, q = Summary([0.0, 1.0], [-1.0, 1.0]), Summary([0.0, 1.0], [-2.0, 2.0])
    assert distance(p, q) == pytest.approx(0.5, rel=1e-15)


def test_other_levels_describe_the_same_distribution() -> None:
    p, q = Summary([0.0, 1.0], [0.0, 1.0]), Summary([0.0, 0.3, 1.0], [0.0, 0.3, 1.0])
    assert distance(p, q) == pytest.approx(0, abs=1e-15)


def test_the_default_grid_resolves_smooth_distributions_to_one_per_cent() -> None:
    ranks = (np.arange(200_000) + 0.5) / 200_000
    cases = {
        "shifted": (norm.ppf(ranks), norm.ppf(ranks) + 0.2),
        "widened": (norm.ppf(ranks), 1.2 * norm.ppf(ranks)),
        "exponential": (-np.log1p(-ranks), -1.3 * np.log1p(-ranks)),
        "sigmoid": (1 / (1 + np.exp(-3 * norm.ppf(ranks))), 1 / (1 + np.exp(-3 * norm.ppf(ranks) - 0.5))),
    }
    for name, (x, y) in cases.items():
        assert distance(Summary.of(x), Summary.of(y)) == pytest.approx(wasserstein_distance(x, y), rel=0.01), name


@pytest.mark.parametrize("shape", ["smooth", "two atoms"])
def test_the_sampling_part_covers_95_per_cent(shape: str) -> None:
    generator, n, trials = np.random.default_rng(0), 400, 400
    values = generator.normal(size=(trials, n))
    population = norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    if shape == "two atoms":
        values, population = np.sign(values), np.sign(population)
    fine = np.linspace(0, 1, 2001)  # so fine that only sampling counts
    exact, rank_error = Summary.of(values, fine), np.sqrt(np.log(40) / (2 * n))
    sampled = Summary(fine, exact.quantiles, rank_error=rank_error)
    whole = Summary.of(population, fine)
    sampling = distance.resolution(sampled, whole) - distance.resolution(Summary(fine, exact.quantiles), whole)
    assert (distance(sampled, whole) <= sampling).mean() >= 0.94  # 0.95 within 1 standard error of 400 trials


def test_the_grid_part_is_attained_where_a_cells_mass_lies_at_its_end() -> None:
    values, constant = np.append(0.0, np.ones(9999)), np.ones(10)
    p, q = Summary.of(values, [0.0, 1.0]), Summary.of(constant, [0.0, 1.0])
    error = abs(distance(p, q) - wasserstein_distance(values, constant))
    assert 0.98 * distance.resolution(p, q) <= error <= distance.resolution(p, q)


def test_few_values_are_known_to_a_rank_however_fine_the_levels() -> None:
    pair, fine = (np.array([0.0, 1.0]), np.array([0.5])), np.linspace(0, 1, 1001)
    p, q = (Summary.of(values, fine) for values in pair)
    error = abs(distance(p, q) - wasserstein_distance(pair[0], pair[1]))
    assert 0.1 < error <= distance.resolution(p, q)
