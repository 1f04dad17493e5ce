"""What is read from singular values is what the formulas say, and missing where values are missing."""

import numpy as np
import pytest
import torch
from torch import nn

import bnprobe
from bnprobe.errors import ArgumentError
from bnprobe.measures.jacobian import Spectrum


def of(values, error=0.0, which=None, shape=None, **more):
    values = np.atleast_2d(np.asarray(values, np.float64))
    k = values.shape[1]
    error = np.broadcast_to(np.asarray(error, np.float64), values.shape)
    return Spectrum(values, error, "dense", shape or (k, k), False, which or (k, 0), **more)


def test_numbers_of_known_values():
    found = of([[4.0, 2.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    np.testing.assert_allclose(found.condition_number, [4.0, np.inf])
    np.testing.assert_allclose(found.mean_square, [22 / 4, 0.5])
    np.testing.assert_allclose(found.spread, [np.var([16, 4, 1, 1]) / 5.5**2, 1.0])
    np.testing.assert_allclose(found.share_near_one, [0.5, 0.5])
    np.testing.assert_allclose(found.rank, [4, 2])
    share = np.array([0.5, 0.25, 0.125, 0.125])
    np.testing.assert_allclose(found.effective_rank, [np.exp(-(share * np.log(share)).sum()), 2.0])


def test_all_zero_values_have_no_rank():
    found = of([[0.0, 0.0]])
    np.testing.assert_array_equal(found.effective_rank, [0.0])
    np.testing.assert_array_equal(found.rank, [0.0])
    assert np.isnan(found.condition_number[0])


def test_a_value_within_its_error_does_not_count():
    np.testing.assert_array_equal(of([[1.0, 1e-3, 1e-4]], error=5e-4).rank, [2.0])


def test_the_error_of_the_mean_square():
    found = of([[2.0, 1.0]], error=[[0.1, 0.2]])
    np.testing.assert_allclose(found.mean_square_error, [(2 * 2 * 0.1 + 0.01 + 2 * 0.2 + 0.04) / 2])


def test_what_partial_spectra_do_not_know_is_missing():
    largest = of([[3.0, 2.0]], which=(2, 0), shape=(5, 9))
    both = of([[3.0, 0.5]], which=(1, 1), shape=(5, 9))
    for name in ("rank", "share_near_one", "effective_rank", "spread", "mean_square", "mean_square_error"):
        assert np.isnan(getattr(largest, name)).all()
    assert np.isnan(largest.condition_number).all()
    np.testing.assert_allclose(both.condition_number, [6.0])
    with pytest.raises(ArgumentError, match="needs all 5 values; here are 2: use k=None"):
        largest.log_density()


def test_the_mean_square_of_a_partial_spectrum_is_estimated_with_its_error():
    model, x = nn.Sequential(nn.Linear(600, 500), nn.Tanh()), torch.randn(2, 600)
    exact = bnprobe.spectrum(model, x, method="dense").mean_square
    found = bnprobe.spectrum(model, x, k=3, method="Lanczos")
    assert (np.abs(found.mean_square - exact) <= 5 * found.mean_square_error).all()
    assert (found.mean_square_error < 0.1 * exact).all()


def test_the_density_of_logarithms():
    rng = np.random.default_rng(0)
    values = -np.sort(-np.exp(rng.normal(size=(2, 4000))))
    found = of(values, error=1e-6).log_density()
    exact = np.exp(-(found.grid**2) / 2) / np.sqrt(2 * np.pi)
    assert np.abs(found.density - exact).max() < 0.05
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1.0, atol=1e-3)
    assert found.error.shape == found.density.shape


def test_the_densitys_error_holds():
    rng = np.random.default_rng(1)
    values = -np.sort(-rng.uniform(0.5, 2, size=(1, 50)))
    moved = values + rng.uniform(-1, 1, size=values.shape) * 0.01
    first = of(values, error=0.01).log_density(np.linspace(-1, 1, 50), 0.2)
    second = of(-np.sort(-moved)).log_density(first.grid, 0.2)
    assert (np.abs(first.density - second.density) <= 1.05 * first.error).all()


def test_zeros_have_no_logarithm():
    found = of([[1.0, 0.0]]).log_density()
    np.testing.assert_allclose(np.trapezoid(found.density[0], found.grid), 0.5, atol=0.01)


def test_the_law_of_linear_gaussian_networks():
    """Spread L for L square Gaussian layers, mean square 1 (J. Pennington et al. 2017)."""
    torch.manual_seed(0)
    for depth in (1, 3):
        model = nn.Sequential(*(nn.Linear(200, 200, bias=False) for _ in range(depth)))
        for layer in model:
            nn.init.normal_(layer.weight, std=200**-0.5)
        found = bnprobe.spectrum(model, torch.randn(1, 200))
        assert abs(found.spread[0] / depth - 1) < 0.15
        assert abs(found.mean_square[0] - 1) < 0.15
