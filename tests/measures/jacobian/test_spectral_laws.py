"""Laws against published values, against each other, and against simulated networks."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import ortho_group

from bnprobe.errors import ArgumentError
from bnprobe.measures.jacobian import laws


def step(z):
    return float(z > 0)


def tanh_slope(z):
    return 1 - math.tanh(z) ** 2


@given(st.integers(1, 500), st.integers(1, 500), st.floats(1e-6, 1e3))
def test_cumulative_is_the_integral_of_the_density(outputs, inputs, variance):
    law = laws.MarchenkoPastur(outputs, inputs, variance)
    low, high = law.support
    if high - low < 1e-3 * high:
        return
    for share in (0.2, 0.5, 1.0):
        s = low + share * (high - low)
        area, _ = quad(lambda t: float(law.density(t)), low, s, limit=200)
        assert law.cumulative(s) == pytest.approx(area, abs=1e-6)
    np.testing.assert_allclose(law.cumulative([low * (1 - 1e-9), high * 2]), [0, 1], atol=1e-6)
    np.testing.assert_array_equal(law.density([-1.0, low * 0.5 - 1e-9, high * 1.01]), 0)


def test_quarter_circle_has_its_known_moments():
    """E s = 8 / (3 pi); shares in [0.9, 1.1], below 0.1 and below 0.5."""
    law = laws.quarter_circle()
    assert law.support == (0, 2)
    mean, _ = quad(lambda s: s * float(law.density(s)), 0, 2)
    assert mean == pytest.approx(8 / (3 * math.pi), abs=1e-6)
    np.testing.assert_allclose(law.density([0, 1, 2]), [1 / math.pi * 2 / 1, math.sqrt(3) / math.pi, 0], atol=1e-12)
    assert float(law.cumulative(1.1) - law.cumulative(0.9)) == pytest.approx(0.1102, abs=5e-5)
    np.testing.assert_allclose(law.cumulative([0.1, 0.5]), [0.0636, 0.315], atol=5e-4)


@pytest.mark.parametrize("shape", [(400, 400), (600, 200), (150, 600)])
def test_values_of_random_matrices_follow_marchenko_and_pastur(shape):
    values = np.sort(np.linalg.svd(np.random.default_rng(0).normal(0, 0.3, shape), compute_uv=False))
    expected = laws.MarchenkoPastur(*shape, 0.09).cumulative(values)
    assert np.abs(expected - (np.arange(len(values)) + 0.5) / len(values)).max() < 3 / len(values) + 0.01


def simulated_spread(depth, slopes, orthogonal, nets=10, width=300):
    """Spread and mean square of the Jacobians of nets with independent slopes of the nonlinearity."""
    generator = np.random.default_rng(depth)
    found = []
    for _ in range(nets):
        jacobian = np.eye(width)
        for _layer in range(depth):
            if orthogonal:
                weight = ortho_group.rvs(width, random_state=generator)
            else:
                weight = generator.normal(0, width**-0.5, (width, width))
            jacobian = slopes(generator.normal(size=width))[:, None] * (weight @ jacobian)
        squares = np.linalg.svd(jacobian, compute_uv=False) ** 2
        found.append(squares.var() / squares.mean() ** 2)
    return np.mean(found), np.std(found, ddof=1) / math.sqrt(nets)


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(
    ("derivative", "slopes"),
    [
        (None, np.ones_like),
        (step, lambda z: (z > 0).astype(float)),
        (tanh_slope, lambda z: 1 - np.tanh(z) ** 2),
    ],
    ids=["linear", "relu", "tanh"],
)
def test_spread_of_simulated_networks(derivative, slopes, depth, orthogonal):
    law = laws.spread(depth, derivative, orthogonal=orthogonal)
    mean, error = simulated_spread(depth, slopes, orthogonal)
    # The law is that of infinite width; at width n each layer changes it by about 3 / n of itself.
    assert mean == pytest.approx(law, abs=4 * error + 3 * depth * law / 300 + 1e-9)


def test_spread_has_its_known_values():
    assert laws.spread(6) == 6
    assert laws.spread(6, orthogonal=True) == 0
    assert laws.spread(6, step) == pytest.approx(12)
    assert laws.spread(6, step, orthogonal=True) == pytest.approx(6)
    assert laws.spread(1, tanh_slope, scale=1e-3, orthogonal=True) == pytest.approx(0, abs=1e-5)


def test_largest_of_a_product_of_gaussian_matrices():
    assert [round(laws.largest_of_gaussian_product(depth), 3) for depth in (1, 3, 6)] == [2.0, 3.079, 4.201]


def test_gradient_growth_of_the_literature():
    batches = (4, 5, 8, 16, 32, 64, 128, 256, 512, 1000)
    relu = (3.0841, 2.2737, 1.7882, 1.5900, 1.5220, 1.4931, 1.4797, 1.4732, 1.4701, 1.4685)
    linear = (2.0, 1.5, 1.2, 1.0769, 1.0345, 1.0164, 1.0080, 1.0040, 1.0020, 1.0010)
    np.testing.assert_allclose([laws.gradient_growth_of_relu(one) for one in batches], relu, atol=5.1e-5)
    np.testing.assert_allclose([laws.gradient_growth_of_linear(one) for one in batches], linear, atol=5.1e-5)
    assert laws.gradient_growth_of_relu(10**7) == pytest.approx(math.pi / (math.pi - 1), abs=1e-5)


@pytest.mark.parametrize(
    ("function", "derivative", "rate"),
    [
        (lambda z: max(z, 0.0), step, 1.4669),
        (lambda z: z, lambda z: 1.0, 1.0),
        (math.tanh, tanh_slope, 1.1778),
        (math.erf, lambda z: 2 / math.sqrt(math.pi) * math.exp(-(z**2)), 1.2257),
        (abs, lambda z: math.copysign(1.0, z), 2.7519),
    ],
    ids=["relu", "linear", "tanh", "erf", "abs"],
)
def test_gradient_growth_of_wide_batches(function, derivative, rate):
    assert laws.gradient_growth_of_wide_batches(function, derivative) == pytest.approx(rate, abs=5.1e-5)


def test_refusals():
    with pytest.raises(ArgumentError, match="batch must be at least 4, as the rate is infinite at 3; got 3"):
        laws.gradient_growth_of_relu(3)
    with pytest.raises(ArgumentError, match=r"outputs, inputs and variance must be positive; got 0, 3, 1\.0"):
        laws.MarchenkoPastur(0, 3, 1.0)
    with pytest.raises(ArgumentError, match="scale must be positive; got -1"):
        laws.quarter_circle(-1)
