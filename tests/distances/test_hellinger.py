import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from bnprobe.distances import Hellinger, Summary

distance = Hellinger()


def gaussian(mean: float, variance: float) -> Summary:
    return Summary(mean=mean, variance=variance)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.5, 1.0), (0.0, 3.0), (-2.0, 0.5)])
def test_is_the_integral(mean: float, deviation: float) -> None:
    square = quad(lambda x: (np.sqrt(norm.pdf(x)) - np.sqrt(norm.pdf(x, mean, deviation))) ** 2 / 2, -40, 40)[0]
    value = distance(gaussian(0, 1), gaussian(mean, deviation**2))
    assert value == pytest.approx(np.sqrt(square), rel=1e-6, abs=1e-9)


def test_close_gaussians_lose_no_digits() -> None:
    # For a small shift d in standard deviations it is d / sqrt(8).
    assert distance(gaussian(0, 1), gaussian(1e-9, 1)) == pytest.approx(1e-9 / np.sqrt(8), rel=1e-6)
    assert distance(gaussian(0, 1), gaussian(0, (1 + 1e-9) ** 2)) == pytest.approx(1e-9 / 2, rel=1e-6)


def test_a_constant_is_at_distance_1_from_all_but_itself() -> None:
    constant = gaussian(1, 0)
    assert distance(constant, constant) == 0
    for other in (gaussian(2, 0), gaussian(1, 1), gaussian(1, 1e-300)):
        assert distance(constant, other) == distance(other, constant) == 1


def test_extreme_scales_neither_overflow_nor_vanish() -> None:
    for size in (1e-300, 1e300):
        assert distance(gaussian(0, size), gaussian(0, 4 * size)) == pytest.approx(
            distance(gaussian(0, 1), gaussian(0, 4))
        )


def test_resolution_is_at_most_1() -> None:
    loose = Summary(mean=0.0, variance=1.0, mean_error=100.0)
    assert distance.resolution(loose, loose) == pytest.approx(1, rel=1e-9)
