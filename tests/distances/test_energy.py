import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import energy_distance, norm

from bnprobe.distances import Energy, Summary

distance = Energy()
FEW = hnp.arrays(float, st.integers(1, 30), elements=st.integers(-8, 8).map(float))
LEVELS = st.lists(st.floats(0.01, 0.99), max_size=8, unique=True).map(lambda inner: [0.0, *sorted(inner), 1.0])


def test_within_resolution_of_scipy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = map(Summary.of, pair)
    assert abs(distance(p, q) - energy_distance(*pair)) <= distance.resolution(p, q) + 1e-12


@settings(max_examples=200, deadline=None)
@given(x=FEW, y=FEW, levels_x=LEVELS, levels_y=LEVELS)
def test_resolution_bounds_the_error_for_any_values_and_levels(
    x: np.ndarray, y: np.ndarray, levels_x: list[float], levels_y: list[float]
) -> None:
    p, q = Summary.of(x, levels_x), Summary.of(y, levels_y)
    assert abs(distance(p, q) - energy_distance(x, y)) <= distance.resolution(p, q) + 1e-9


def test_shifted_uniforms() -> None:
    # Uniform on [0, 1] and [1, 2]: the difference rises to 1 and falls again, squared it integrates to 2/3.
    p, q = Summary([0.0, 1.0], [0.0, 1.0]), Summary([0.0, 1.0], [1.0, 2.0])
    assert distance(p, q) == pytest.approx(np.sqrt(4 / 3), rel=1e-14)


def test_two_constants() -> None:
    p, q = Summary.of([1.0]), Summary.of([4.0])
    assert distance(p, q) == pytest.approx(np.sqrt(2 * 3), rel=1e-14)
    assert distance.resolution(p, q) == 0


def test_the_default_grid_resolves_smooth_distributions_to_half_a_per_cent() -> None:
    x = norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    for y in (x + 0.2, 1.2 * x, 3 * x + 1):
        assert distance(Summary.of(x), Summary.of(y)) == pytest.approx(energy_distance(x, y), rel=0.005)


def test_the_sampling_part_covers_95_per_cent() -> None:
    generator, n, trials = np.random.default_rng(0), 400, 400
    fine = np.linspace(0, 1, 2001)  # so fine that only sampling counts
    exact = Summary.of(generator.normal(size=(trials, n)), fine)
    whole = Summary.of(norm.ppf((np.arange(100_000) + 0.5) / 100_000), fine)
    sampled = Summary(fine, exact.quantiles, rank_error=np.sqrt(np.log(40) / (2 * n)))
    sampling = distance.resolution(sampled, whole) - distance.resolution(Summary(fine, exact.quantiles), whole)
    assert (distance(sampled, whole) <= sampling).mean() >= 0.94  # 0.95 within 1 standard error of 400 trials


def test_the_grid_part_is_attained_where_a_cells_mass_lies_at_its_end() -> None:
    values, constant = np.append(0.0, np.ones(9999)), np.ones(10)
    p, q = Summary.of(values, [0.0, 1.0]), Summary.of(constant, [0.0, 1.0])
    error = abs(distance(p, q) - energy_distance(values, constant))
    assert 0.98 * distance.resolution(p, q) <= error <= distance.resolution(p, q)


def test_few_values_are_known_to_a_rank_however_fine_the_levels() -> None:
    pair, fine = (np.array([0.0, 1.0]), np.array([0.5])), np.linspace(0, 1, 1001)
    p, q = (Summary.of(values, fine) for values in pair)
    error = abs(distance(p, q) - energy_distance(pair[0], pair[1]))
    assert 0.1 < error <= distance.resolution(p, q)
