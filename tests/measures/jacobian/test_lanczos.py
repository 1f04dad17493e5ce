"""Values of Lanczos lie within their bounds, whatever the spectrum."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, svds

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.measures.jacobian.lanczos import lanczos
from tests.measures.jacobian.matrices import Matrices, spectra, with_values

KINDS = (
    "uniform",
    "equal",
    "few",
    "copies",
    "pairs",
    "low_rank",
    "decaying",
    "algebraic",
    "zero",
    "outlier",
    "cluster",
    "tiny",
    "huge",
)
DTYPES = (torch.float32, torch.float64)


def true_values(matrices, largest, smallest=0):
    values = torch.linalg.svdvals(matrices.double())
    return torch.cat([values[:, :largest], values[:, values.shape[1] - smallest :]], 1)


@settings(max_examples=200)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(DTYPES),
    st.integers(1, 150),
    st.sampled_from([0, 1, 40]),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 5, 10, 12]),
    st.sampled_from([0, 0, 1, 3]),
    st.integers(0, 10_000),
)
@example("pairs", torch.float64, 11, 1, True, 3, 5, 0, 11)  # where LAPACK is off by 34 roundings
def test_every_value_lies_within_its_bound(kind, dtype, size, more, wide, samples, largest, smallest, seed):
    shape = (size, size + more) if wide else (size + more, size)
    matrices = with_values(spectra(kind, size, samples, seed), shape, seed, dtype)
    found = lanczos(Matrices(matrices), largest, smallest)
    expected = true_values(matrices, *found.which)
    assert found.shape == shape
    assert not found.coupled
    assert found.values.shape == expected.shape == (samples, sum(found.which))
    assert ((found.values - expected).abs() <= found.error).all()


def test_bounds_are_near_the_true_errors():
    """Within 100 times, in the median, of those that the algebra leaves and rounding does not hide."""
    ratios = []
    for kind in KINDS:
        for seed in range(4):
            for dtype in DTYPES:
                matrices = with_values(spectra(kind, 120, 1, seed), (130, 120), seed, dtype)
                found = lanczos(Matrices(matrices), 5)
                true = (found.values - true_values(matrices, 5)).abs()
                ratios += (found.error / true.clamp(min=1e-300)).flatten().tolist()
    assert np.median(ratios) < 100


@pytest.mark.parametrize("dtype", DTYPES)
def test_converged_means_a_millionth_of_the_largest(dtype):
    matrices = with_values(spectra("uniform", 300, 4, 0), (350, 300), 0, dtype)
    found = lanczos(Matrices(matrices), 10)
    assert found.method == "Lanczos"
    assert (found.error <= 3e-6 * found.values[:, :1]).all()


def test_agrees_with_arpack():
    matrix = with_values(spectra("uniform", 400, 1, 3), (500, 400), 3)
    operator = LinearOperator((500, 400), matvec=matrix[0].numpy().__matmul__, rmatvec=matrix[0].T.numpy().__matmul__)
    expected = np.sort(svds(operator, 6, return_singular_vectors=False))[::-1]
    found = lanczos(Matrices(matrix), 6, tolerance=1e-10)
    np.testing.assert_allclose(found.values[0].numpy(), expected, atol=1e-9)
    assert (found.error < 2e-10).all()


@pytest.mark.parametrize("copies", [2, 6, 9, 14])
def test_copies_of_a_value_are_all_found(copies):
    values = torch.linspace(1, 0.01, 300, dtype=torch.float64)[None].clone()
    values[:, :copies] = 2.0
    found = lanczos(Matrices(with_values(values, (300, 310), copies)), 10)
    torch.testing.assert_close(found.values, values[:, :10], atol=1e-6, rtol=0)


def test_samples_do_not_touch_each_other():
    matrices = with_values(spectra("uniform", 200, 3, 1), (200, 200), 1)
    matrices[1] *= 1e-8
    matrices[2] = 0
    found = lanczos(Matrices(matrices), 4)
    expected = true_values(matrices, 4)
    assert ((found.values - expected).abs() <= found.error).all()
    assert (found.error <= 2e-6 * expected[:, :1]).all()


def test_too_few_steps_show_in_the_error():
    matrices = with_values(spectra("uniform", 500, 1, 2), (500, 500), 2)
    found = lanczos(Matrices(matrices), 3, 3, steps=3)
    error = (found.values - true_values(matrices, 3, 3)).abs()
    assert (error <= found.error).all()
    assert (found.error > 1e-3).all()
    assert (found.values[:, 3:] - found.error[:, 3:] <= 0).all()  # the smallest may be anything down to 0


def test_smallest_values_with_a_gap_are_found():
    values = torch.linspace(2, 1, 300, dtype=torch.float64)[None].clone()
    values[:, -2:] = torch.tensor([0.2, 0.1])
    found = lanczos(Matrices(with_values(values, (320, 300), 0)), 0, 2)
    assert found.method == "Lanczos"
    assert found.which == (0, 2)
    torch.testing.assert_close(found.values, values[:, -2:], atol=1e-5, rtol=0)
    assert (found.error < 1e-5).all()


def test_little_memory_restarts_and_finds_the_same():
    matrices = with_values(spectra("uniform", 500, 1, 5), (500, 500), 5)
    found = lanczos(Matrices(matrices), 5, memory=1, steps=1000)
    assert ((found.values - true_values(matrices, 5)).abs() <= found.error).all()
    assert (found.error < 3e-6).all()


def test_all_values_are_those_of_the_whole_matrix():
    matrices = with_values(spectra("uniform", 70, 2, 0), (70, 90), 0)
    found = lanczos(Matrices(matrices), 60, 60)
    assert (found.method, found.which) == ("dense", (70, 0))
    torch.testing.assert_close(found.values, torch.linalg.svdvals(matrices))


def test_the_random_start_is_its_own():
    matrices = with_values(spectra("uniform", 200, 1, 0), (200, 200), 0)
    before = torch.get_rng_state()
    first, second = (lanczos(Matrices(matrices), 3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.values, second.values)
    other = lanczos(Matrices(matrices), 3, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(first.values, other.values)
    torch.testing.assert_close(first.values, other.values, atol=1e-5, rtol=0)


def test_no_samples_are_no_values():
    found = lanczos(Matrices(torch.zeros(0, 100, 90)), 3)
    assert found.values.shape == found.error.shape == (0, 3)


@pytest.mark.parametrize("wanted", [(0, 0), (-1, 2), (2, -1)])
def test_refuses_to_find_nothing(wanted):
    with pytest.raises(ArgumentError, match="largest and smallest must be numbers of values, at least one in all"):
        lanczos(Matrices(torch.zeros(1, 9, 9)), *wanted)


@pytest.mark.parametrize("size", [9, 200])
def test_says_that_entries_are_not_finite(size):
    with pytest.raises(NotMeasuredError, match="entries that are not finite"):
        lanczos(Matrices(torch.full((1, size, size), torch.nan)), 2)
