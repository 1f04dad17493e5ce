"""Densities against kernels at all values, and their errors against what they are really off."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import bnprobe
from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.measures.jacobian.density import Nodes, density
from bnprobe.measures.jacobian.laws import quarter_circle
from bnprobe.measures.jacobian.quadrature import quadrature
from tests.measures.jacobian.matrices import Matrices, spectra, with_values


def naive(values, grid, width):
    """The mean of normal densities at the logarithms of ``[N, k]`` values: ``[N, G]``."""
    apart = (grid[None, :, None] - np.log(values)[:, None]) / width
    return (np.exp(-(apart**2) / 2) / (math.sqrt(2 * math.pi) * width)).mean(2)


def values_of(matrices):
    return torch.linalg.svdvals(matrices).numpy()


def area(found):
    return np.trapezoid(found.density, found.grid, axis=1)


def test_known_values():
    values = np.exp(np.random.default_rng(0).normal(size=(2, 700)))  # more than are added up together
    found = density(Nodes.of_all(values, np.zeros_like(values)), width=0.3)
    np.testing.assert_allclose(found.density, naive(values, found.grid, 0.3), rtol=1e-12, atol=1e-300)
    assert not found.error.any()
    assert not found.below.any()


def test_default_grid_and_width():
    """Scott's rule; three widths beyond the values, six decades down, and at least two points a width."""
    values = np.exp(np.random.default_rng(0).normal(size=(1, 4000)))
    found = density(Nodes.of_all(values, np.zeros_like(values)))
    assert found.width == pytest.approx(np.log(values).std() * 4000**-0.2)
    assert found.grid[0] == pytest.approx(np.log(values.min()) - 3 * found.width)
    narrow = density(Nodes.of_all(np.array([[1.0, 1e-5, 1e-9]]), np.zeros((1, 3))), width=0.01)
    assert math.exp(narrow.grid[0] + 0.03) == pytest.approx(1e-5)
    assert np.diff(narrow.grid).max() <= 0.005 + 1e-12
    np.testing.assert_allclose(narrow.below, [1 / 3])


@pytest.mark.parametrize("low", [0.5, 0.0])
def test_values_anywhere_within_their_errors(low):
    """No density of values within their errors is further off than the stated error; a value at 0 may be anywhere."""
    rng = np.random.default_rng(1)
    values, off = rng.uniform(low, 2, (1, 40)), rng.uniform(0, 0.1, (1, 40))
    values[0, :2] = (low, 0.01)
    told = density(Nodes.of_all(values, off), np.linspace(-4, 1, 60), 0.2)
    worst = 0.0
    for _ in range(100):
        other = np.clip(values + off * rng.choice([-1, 0.3, 1], values.shape), 1e-300, None)
        apart = np.abs(naive(other, told.grid, 0.2) - naive(np.clip(values, 1e-300, None), told.grid, 0.2))
        assert (apart <= told.error + 1e-12).all()
        worst = max(worst, float((apart / told.error).max()))
    assert worst > 0.3  # and not much too large


@pytest.mark.parametrize("kind", ["uniform", "pairs", "few", "algebraic"])
@pytest.mark.parametrize("shape", [(75, 60), (60, 90)])
def test_quadrature_of_all_steps_is_within_its_standard_error(kind, shape):
    matrices = with_values(spectra(kind, 60, 3, 0), shape, 0)
    found = density(quadrature(Matrices(matrices), probes=40, steps=60), width=0.1)
    exact = naive(values_of(matrices), found.grid, 0.1)
    distance = np.abs(found.density - exact)
    # Where only few probes see anything, as far out in the kernel, their scatter says little.
    seen = exact > 0.05
    assert (distance <= 5 * found.error)[seen].all()
    assert (distance <= 2 * found.error)[seen].mean() > 0.8
    assert (found.error[seen] > 0).all()


@pytest.mark.parametrize("steps", [3, 16, 40])
@pytest.mark.parametrize("kind", ["uniform", "algebraic", "pairs", "outlier", "cluster"])
def test_few_steps_say_what_they_miss(kind, steps):
    """From the same random vectors as all steps: what differs is what few do not resolve."""
    matrices = Matrices(with_values(spectra(kind, 100, 2, 0), (100, 110), 0))
    few, every = (quadrature(matrices, probes=3, steps=some) for some in (steps, 100))
    for i in range(3):  # each for itself, as means hide much
        each = [
            replace(one, **{part: getattr(one, part)[:, [i, i]] for part in ("values", "weights", "error", "gauss")})
            for one in (few, every)
        ]
        found = density(each[0], np.linspace(-6, 7, 300), width=0.2)
        distance = np.abs(found.density - density(each[1], found.grid, 0.2).density)
        assert (distance <= found.error + 1e-9).all()
        together = [density(one.of_batch(), found.grid, 0.2) for one in each]
        assert (np.abs(together[0].density - together[1].density) <= together[0].error + 1e-9).all()
        assert steps > 20 or found.error.max() < 40 * distance.max()  # where it matters it is not much too large


def test_few_steps_are_enough_for_a_smooth_density():
    matrix = torch.randn(1, 400, 400, generator=torch.Generator().manual_seed(0)) / 20
    found = density(quadrature(Matrices(matrix), probes=20, steps=40), width=0.2)
    s = np.exp(found.grid)
    law = quarter_circle().density(s) * s  # of logarithms
    middle = (s > 0.2) & (s < 1.2)
    assert np.abs(found.density[0] - law)[middle].max() < 0.1


@pytest.mark.parametrize("kind", ["low_rank", "zero"])
def test_zeros_are_below_the_grid(kind):
    matrices = with_values(spectra(kind, 50, 2, 1), (50, 60), 1)
    share = {"low_rank": 0.9, "zero": 1.0}[kind]
    found = density(quadrature(Matrices(matrices), probes=64))
    np.testing.assert_allclose(found.below, share, atol=0.03)
    np.testing.assert_allclose(area(found), 1 - found.below, atol=0.01)


def test_float32_sees_small_values():
    values = torch.logspace(0, -4, 100, dtype=torch.float64)[None]
    matrix = with_values(values, (100, 100), 0, torch.float32)
    found = density(quadrature(Matrices(matrix), probes=30, steps=100), width=0.3)
    assert np.abs(found.density - naive(values.numpy(), found.grid, 0.3)).max() < 0.06


def test_the_random_probes_are_their_own_and_their_groups_do_not_matter():
    matrix = Matrices(with_values(spectra("uniform", 40, 1, 0), (40, 40), 0))
    before = torch.get_rng_state()
    first = quadrature(matrix)
    again = quadrature(matrix, memory=3 * 40 * 80 * 8)  # three probes at a time
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_allclose(density(first, width=0.2).density, density(again, width=0.2).density, atol=1e-9)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(90, 80), nn.Tanh(), nn.Linear(80, 70)), torch.randn(3, 90)


@pytest.mark.parametrize("method", ["Lanczos", "dense"])
def test_density_of_a_spectrum_of_few_values(method):
    model, x = network()
    whole = bnprobe.spectrum(model, x)
    found = bnprobe.spectrum(model, x, k=2, method=method, density=True)
    assert found.values.shape == (3, 2)
    told = found.log_density(np.linspace(-4, 1, 50), 0.2)
    exact = whole.log_density(told.grid, 0.2)
    distance = np.abs(told.density - exact.density)
    if method == "dense":  # all values were there
        np.testing.assert_allclose(distance, 0, atol=1e-12)
    else:
        assert (distance <= 4 * told.error + 0.01).all()
        assert told.error.max() < 0.3
        assert not np.allclose(distance, 0, atol=1e-6)
    np.testing.assert_allclose(np.trapezoid(told.density, told.grid), 1 - told.below, atol=0.15)


def test_density_of_the_batch_is_the_mean_of_its_samples():
    model, x = network()
    options = {"k": 1, "method": "Lanczos", "density": True}
    each, batch = (bnprobe.spectrum(model, x, per=per, **options) for per in (None, "batch"))
    first, second = (one.log_density(np.linspace(-3, 1, 40), 0.2) for one in (each, batch))
    np.testing.assert_allclose(second.density[0], first.density.mean(0), rtol=1e-9)
    assert second.error.max() < first.error.max()


def test_one_spectrum_for_all_samples_of_a_convolution():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(3, 3, 6, 6)
    found = bnprobe.spectrum(layer, x, k=1, method="Lanczos", density=True).log_density()
    assert found.density.shape == (3, len(found.grid))
    assert (found.density == found.density[:1]).all()


def test_refusals():
    matrix = Matrices(torch.eye(4)[None])
    with pytest.raises(ArgumentError, match="probes must be at least 2 and steps at least 1; got 1 and 64"):
        quadrature(matrix, probes=1)
    with pytest.raises(NotMeasuredError, match=r"a density needs .* GiB for its vectors: give memory=128"):
        quadrature(matrix, memory=100)
    with pytest.raises(NotMeasuredError, match="entries that are not finite"):
        quadrature(Matrices(torch.full((1, 4, 4), math.nan)))
    nodes = Nodes.of_all(np.ones((1, 3)), np.zeros((1, 3)))
    with pytest.raises(ArgumentError, match="width must be a positive number; got 0"):
        density(nodes, width=0)
    with pytest.raises(ArgumentError, match=r"grid must be ascending numbers \[G\], values of ln s; got shape \(2,\)"):
        density(nodes, [1.0, 0.0])
    model, x = network()
    with pytest.raises(ArgumentError, match="here are 2: use k=None, or density=True for an estimate"):
        bnprobe.spectrum(model, x, k=2, method="dense").log_density()
