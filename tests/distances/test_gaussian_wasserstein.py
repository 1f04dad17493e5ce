import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from bnprobe.distances import GaussianWasserstein, Summary

distance = GaussianWasserstein()


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.5, 1.0), (0.0, 3.0), (-2.0, 0.1)])
def test_is_the_distance_between_quantile_functions(mean: float, deviation: float) -> None:
    square = quad(lambda u: (norm.ppf(u) - norm.ppf(u, mean, deviation)) ** 2, 0, 1)[0]
    value = distance(Summary(mean=0.0, variance=1.0), Summary(mean=mean, variance=deviation**2))
    assert value == pytest.approx(np.sqrt(square), rel=1e-6, abs=1e-12)


def test_constants_are_compared_by_their_place() -> None:
    p, q = Summary.of(np.full(5, 1.0)), Summary.of(np.full(5, 3.5))
    assert distance(p, q) == 2.5
    assert distance.resolution(p, q) == 0


def test_exact_moments_leave_no_error() -> None:
    values = np.random.default_rng(0).normal(size=(2, 50))
    assert distance.resolution(Summary.of(values[0]), Summary.of(values[1])) == 0


def test_the_moments_errors_are_carried_over() -> None:
    p = Summary(mean=0.0, variance=1.0, mean_error=0.1)
    q = Summary(mean=5.0, variance=1.0, mean_error=0.2)
    assert distance.resolution(p, q) == pytest.approx(1.96 * 0.3, rel=1e-4)


def test_sampled_moments_are_within_resolution_19_times_out_of_20() -> None:
    n, trials = 500, 1000
    values = np.random.default_rng(0).normal(1, 2, size=(trials, n))
    variance = values.var(1)
    sampled = Summary(
        mean=values.mean(1),
        variance=variance,
        mean_error=np.sqrt(variance / n),
        variance_error=variance * np.sqrt(2 / n),
    )
    other = Summary(mean=0.0, variance=1.0)
    exact = distance(Summary(mean=1.0, variance=4.0), other)
    assert (np.abs(distance(sampled, other) - exact) <= distance.resolution(sampled, other)).mean() >= 0.95
