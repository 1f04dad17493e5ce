"""Numbers of the laws: closed forms against the literature's tables, against integrals and simulations."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from bnprobe.errors import ArgumentError
from bnprobe.testing.pitfalls import noise_of_batches, optimum_of_partition, two_domain_moments, variance_behind_dropout

# m: mean of sigma / s, deviation of s / sigma, kurtosis of normalized values, evaluation's deviation over training's.
TABLE = {
    2: (math.inf, 0.4263, 1, 1.4142),
    3: (2.1708, 0.3782, 1.5, 1.2247),
    4: (1.5958, 0.3367, 1.8, 1.1547),
    8: (1.2036, 0.2452, 2.333, 1.0690),
    16: (1.0883, 0.1753, 2.647, 1.0328),
    32: (1.0414, 0.1245, 2.818, 1.0160),
    64: (1.0201, 0.0882, 2.908, 1.0079),
    128: (1.0099, 0.0624, 2.953, 1.0039),
    256: (1.0049, 0.0442, 2.977, 1.0020),
}


@pytest.mark.parametrize("m", TABLE)
def test_the_table_of_small_batches(m):
    noise = noise_of_batches(m)
    found = (noise.slope, noise.deviation, noise.kurtosis, noise.evaluation)
    assert found == pytest.approx(TABLE[m], abs=6e-4 if m == 2 else 6e-5, rel=2e-4)
    assert noise.mean == m**-0.5


@pytest.mark.parametrize("m", [3, 5, 12])
def test_noise_by_integration(m):
    """Of s, whose square is chi-squared over m."""
    law, noise = stats.chi2(m - 1), noise_of_batches(m)
    slope = integrate.quad(lambda q: law.pdf(q) * (m / q) ** 0.5, 0, np.inf)[0]
    mean = integrate.quad(lambda q: law.pdf(q) * (q / m) ** 0.5, 0, np.inf)[0]
    assert noise.slope == pytest.approx(slope, rel=1e-6)
    assert noise.deviation == pytest.approx(((m - 1) / m - mean**2) ** 0.5, rel=1e-6)
    assert noise.kurtosis == pytest.approx((m - 1) ** 2 * stats.beta(0.5, (m - 2) / 2).moment(2), rel=1e-9)


@pytest.mark.parametrize(("keep", "ratio"), [(0.9, 0.8598), (0.8, 0.7317), (0.7, 0.6140), (0.5, 0.4054)])
def test_variance_behind_dropout_of_a_rectified_unit(keep, ratio):
    mean = 1 / math.sqrt(2 * math.pi)
    variance = 0.5 - mean**2
    assert variance / variance_behind_dropout(keep, mean, variance) == pytest.approx(ratio, abs=5e-5)
    assert variance_behind_dropout(keep, 0.0, 1.0) == pytest.approx(1 / keep)


def test_two_domains_in_numbers():
    found = two_domain_moments(1.0, (1.0, 0.25))
    assert found["running"] == (0.0, 0.625)
    assert found["pooled"] == (0.0, 0.875)
    assert found["first"] == pytest.approx((-0.5 / 0.625**0.5, 1.6))
    assert found["second"] == pytest.approx((0.5 / 0.625**0.5, 0.4))


def test_the_optimum_of_a_partition_is_that_of_least_squares():
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 6, 5, 3, generator=random, dtype=torch.float64)
    got = optimum_of_partition(x, y, 0.1)
    normalized = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 0.1).sqrt()
    for c in range(3):
        design = normalized[..., c].reshape(-1, 1)
        want = torch.linalg.lstsq(design, y[..., c].reshape(-1, 1)).solution
        assert float(got[c]) == pytest.approx(float(want))


def test_numbers_out_of_range():
    with pytest.raises(ArgumentError, match="samples must be at least 2; got 1"):
        noise_of_batches(1)
    with pytest.raises(ArgumentError, match=r"keep must be in \(0, 1\]; got 0"):
        variance_behind_dropout(0, 0.0, 1.0)
