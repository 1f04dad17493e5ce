"""Dense values: exact to their bound, small values included, in the memory that is given."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnprobe.errors import NotMeasuredError
from bnprobe.hooks.segments import whole
from bnprobe.measures.jacobian.dense import dense, dense_bytes, jacobian
from bnprobe.measures.jacobian.operator import SegmentOperator
from tests.measures.jacobian.oracle import in_double, singular_values


class Matrix(nn.Module):
    """A linear map with chosen singular values."""

    def __init__(self, values, m, n, dtype=torch.float32):
        super().__init__()
        r = len(values)
        left, right = (torch.linalg.qr(torch.randn(size, r, dtype=torch.float64))[0] for size in (m, n))
        self.weight = nn.Parameter((left * torch.as_tensor(values, dtype=torch.float64) @ right.T).to(dtype))

    def forward(self, x):
        return x @ self.weight.T


def operator_of(model, x, per_sample=True):
    operator = SegmentOperator(whole(model, x), lambda: None)
    operator.split(per_sample)
    return operator


@given(
    m=st.integers(1, 30), n=st.integers(1, 30), decades=st.floats(0, 14), double=st.booleans(),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
)  # fmt: skip
@settings(max_examples=60)
def test_values_are_exact_to_their_bound(m, n, decades, double, scale):
    dtype = torch.float64 if double else torch.float32
    model = Matrix(scale * np.logspace(0, -decades, min(m, n)), m, n, dtype)
    found = dense(operator_of(model, torch.randn(2, n, dtype=dtype)))
    expected = np.linalg.svd(model.weight.detach().double().numpy(), compute_uv=False)
    assert found.values.shape == (2, min(m, n))
    assert found.values.dtype == torch.float64
    own = 4 * np.finfo(np.float64).eps * min(m, n) ** 0.5 * expected.max()
    assert (np.abs(found.values.numpy() - expected) <= found.error.numpy() + own).all()


def test_small_values_survive_in_single_precision():
    model = Matrix(np.logspace(0, -6, 12), 12, 40)
    found = dense(operator_of(model, torch.randn(1, 40))).values[0].numpy()
    exact = np.linalg.svd(model.weight.detach().double().numpy(), compute_uv=False)
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    lost = torch.linalg.eigvalsh(model.weight @ model.weight.T).clamp_min(0).sqrt()[0].item()
    assert abs(lost / exact[-1] - 1) > 0.5  # which a Gram matrix in single precision does not have


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_the_matrix_from_either_side_in_any_memory(shape):
    m, n = shape
    model, x = nn.Sequential(nn.Linear(n, m), nn.Tanh()), torch.randn(5, n)
    operator = operator_of(model, x)
    matrix = jacobian(operator)
    expected = torch.stack([torch.autograd.functional.jacobian(model, one) for one in x])
    torch.testing.assert_close(matrix if m <= n else matrix.mT, expected)
    assert torch.equal(jacobian(operator, slice(1, 3), memory=1), matrix[1:3])


def test_groups_of_samples_are_the_same_as_all():
    model, x = nn.Sequential(nn.Linear(6, 4), nn.Tanh()), torch.randn(5, 6)
    operator = operator_of(model, x)
    full, grouped = dense(operator), dense(operator, memory=4 * dense_bytes(operator))
    torch.testing.assert_close(full.values, grouped.values, rtol=1e-12, atol=0)
    assert full.which == (4, 0)
    assert full.method == "dense"


def test_what_does_not_fit_is_said():
    operator = operator_of(nn.Linear(6, 4), torch.randn(2, 6))
    with pytest.raises(NotMeasuredError, match=r"4 x 6 needs .* GiB: give memory=\d+ or ask for some of the values"):
        dense(operator, memory=10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_are_not_finite_are_refused(dtype):
    operator = operator_of(
        nn.Sequential(nn.Linear(3, 3), nn.Tanh()).to(dtype), torch.full((2, 3), torch.nan, dtype=dtype)
    )
    with pytest.raises(NotMeasuredError, match="not finite"):
        dense(operator)


def test_large_matrices_take_the_blocked_road(monkeypatch):
    model = Matrix(np.linspace(1, 2, 50), 50, 70)
    monkeypatch.setattr("bnprobe.measures.jacobian.gram._BLOCKED", 20)
    found = dense(operator_of(model, torch.randn(1, 70)))
    np.testing.assert_allclose(found.values[0].numpy(), np.linspace(2, 1, 50), rtol=1e-6)


def test_a_coupled_batch_is_one_matrix():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh()), torch.randn(6, 3)
    found = dense(operator_of(model, x, per_sample=False))
    expected = singular_values(in_double(model), x, per_sample=False)
    np.testing.assert_allclose(found.values.numpy(), expected, atol=1e-5)
