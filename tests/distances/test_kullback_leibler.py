import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from bnprobe.distances import KullbackLeibler, Summary

forward, reverse = KullbackLeibler(), KullbackLeibler(reverse=True)


def gaussian(mean: float, variance: float) -> Summary:
    return Summary(mean=mean, variance=variance)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.5, 1.0), (0.0, 3.0), (-2.0, 0.5)])
def test_is_the_integral(mean: float, deviation: float) -> None:
    p, q = norm(), norm(mean, deviation)
    integral = quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -20, 20)[0]
    assert forward(gaussian(0, 1), gaussian(mean, deviation**2)) == pytest.approx(integral, rel=1e-8, abs=1e-12)
    assert reverse(gaussian(mean, deviation**2), gaussian(0, 1)) == pytest.approx(integral, rel=1e-8, abs=1e-12)


def test_close_variances_lose_no_digits() -> None:
    # (r - 1 - ln r) / 2 with r = 1 + d is d^2 / 4 - d^3 / 6 + ...
    assert forward(gaussian(0, 3 * (1 + 1e-7)), gaussian(0, 3)) == pytest.approx(1e-14 / 4, rel=1e-6, abs=0)


@pytest.mark.parametrize("distance", [forward, reverse], ids=repr)
def test_a_constant_is_infinitely_far_from_all_but_itself(distance: KullbackLeibler) -> None:
    constant = gaussian(1, 0)
    assert distance(constant, constant) == 0
    for other in (gaussian(2, 0), gaussian(1, 1), gaussian(1, 1e-300)):
        assert distance(constant, other) == distance(other, constant) == np.inf


def test_a_ratio_beyond_floats_is_infinite() -> None:
    assert forward(gaussian(0, 1e200), gaussian(0, 1e-200)) == np.inf
    assert forward(gaussian(0, 1e-200), gaussian(0, 1e200)) == pytest.approx((400 * np.log(10) - 1) / 2)


def test_an_error_that_reaches_a_constant_is_infinite() -> None:
    q = Summary(mean=0.0, variance=1.0, variance_error=1.0)
    assert forward.resolution(gaussian(0, 1), q) == np.inf
    assert np.isfinite(forward(gaussian(0, 1), q))


def test_names() -> None:
    assert (forward.name, reverse.name) == ("kullback_leibler", "reverse_kullback_leibler")
