"""Densities by quadrature against those of all values."""

import math

import pytest
import torch

from bnprobe.errors import ArgumentError
from bnprobe.measures.jacobian.density import density, lanczos_density
from bnprobe.measures.jacobian.laws import quarter_circle
from tests.measures.jacobian.matrices import Matrices, spectra, with_values


def area(found):
    return torch.trapezoid(found.density, found.grid, dim=1)


@pytest.mark.parametrize("kind", ["uniform", "pairs", "few", "algebraic"])
@pytest.mark.parametrize("shape", [(75, 60), (60, 90)])
def test_quadrature_is_within_its_standard_error(kind, shape):
    matrices = with_values(spectra(kind, 60, 3, 0), shape, 0)
    found = lanczos_density(Matrices(matrices), probes=40, steps=60)
    exact = density(torch.linalg.svdvals(matrices), found.grid)
    distance = (found.density - exact.density).abs()
    # Where only few probes see anything, as far out in the kernel, their scatter says little.
    seen = exact.density > 0.05
    assert (distance <= 5 * found.error)[seen].all()
    assert (distance <= 2 * found.error)[seen].double().mean() > 0.8
    assert (found.error[seen] > 0).all()


def test_few_steps_are_enough_for_a_smooth_density():
    matrix = torch.randn(1, 400, 400, generator=torch.Generator().manual_seed(0)) / 20
    found = lanczos_density(Matrices(matrix), probes=20, steps=40, width=0.2)
    s = found.grid.exp()
    law = torch.from_numpy(quarter_circle().density(s.numpy())) * s  # of logarithms
    middle = (s > 0.2) & (s < 1.2)
    assert (found.density[0] - law)[middle].abs().max() < 0.1


@pytest.mark.parametrize("kind", ["low_rank", "zero"])
def test_zeros_are_below_the_grid(kind):
    matrices = with_values(spectra(kind, 50, 2, 1), (50, 60), 1)
    share = {"low_rank": 0.9, "zero": 1.0}[kind]
    exact = density(torch.linalg.svdvals(matrices).masked_fill(torch.linalg.svdvals(matrices) < 1e-12, 0.0))
    torch.testing.assert_close(exact.below, torch.full((2,), share, dtype=torch.float64))
    torch.testing.assert_close(area(exact), 1 - exact.below, atol=0.01, rtol=0)
    found = lanczos_density(Matrices(matrices), probes=64)
    torch.testing.assert_close(found.below, exact.below, atol=0.03, rtol=0)
    torch.testing.assert_close(area(found), 1 - found.below, atol=0.01, rtol=0)


def test_density_of_one_value_is_the_kernel():
    found = density(torch.tensor([[math.e]]), width=0.5)
    assert found.grid[found.density[0].argmax()] == pytest.approx(1, abs=0.1)
    assert float(found.density.max()) == pytest.approx(1 / (0.5 * math.sqrt(2 * math.pi)), rel=0.02)
    assert not found.error.any()


def test_float32_sees_small_values():
    values = torch.logspace(0, -4, 100, dtype=torch.float64)[None]
    matrix = with_values(values, (100, 100), 0, torch.float32)
    found = lanczos_density(Matrices(matrix), probes=30, steps=100, width=0.3)
    exact = density(values, found.grid, width=0.3)
    assert (found.density - exact.density).abs().max() < 0.06


def test_the_random_probes_are_their_own():
    matrix = with_values(spectra("uniform", 40, 1, 0), (40, 40), 0)
    before = torch.get_rng_state()
    assert torch.equal(lanczos_density(Matrices(matrix)).density, lanczos_density(Matrices(matrix)).density)
    assert torch.equal(torch.get_rng_state(), before)


def test_refusals():
    matrix = Matrices(torch.eye(4)[None])
    with pytest.raises(ArgumentError, match="probes must be at least 2 and steps at least 1; got 1 and 64"):
        lanczos_density(matrix, probes=1)
    with pytest.raises(ArgumentError, match="width must be positive; got 0"):
        density(torch.ones(1, 3), width=0)
    with pytest.raises(ArgumentError, match=r"values must be \[N, k\] with at least one value; got \(3,\)"):
        density(torch.ones(3))
