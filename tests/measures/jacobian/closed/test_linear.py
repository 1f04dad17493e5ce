import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from bnprobe.measures.jacobian.closed import closed_form
from bnprobe.measures.jacobian.closed.union import svdvals
from tests.measures.jacobian.closed.oracle import check, dtypes, filled, normal, seeds


@given(
    samples=st.integers(1, 3),
    positions=st.lists(st.integers(1, 3), max_size=2),
    features=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    bias=st.booleans(),
    dtype=dtypes,
    seed=seeds,
)
@settings(max_examples=40)
def test_linear_is_its_weight_at_every_position(samples, positions, features, bias, dtype, seed):
    layer = filled(nn.Linear(*features, bias=bias, dtype=dtype), seed)
    check(layer, normal((samples, *positions, features[0]), seed, dtype=dtype))


def matrices():
    generator = torch.Generator().manual_seed(0)
    for shape in ((150, 150), (200, 700), (400, 140)):
        random = torch.randn(shape, generator=generator)
        yield "random", random
        yield "positive", random.abs()
        yield "constant", torch.full(shape, 0.1)
        yield "graded", random * torch.logspace(0, -8, shape[1])
        yield "rank one", random[:, :1] @ random[:1]
        yield (
            "blocks",
            torch.randn(2, 4, generator=generator)
            .repeat_interleave(shape[0] // 2, 0)
            .repeat_interleave(shape[1] // 4, 1),
        )
        yield "identity and constant", torch.eye(*shape) + 0.1
        yield "zero", torch.zeros(shape)


@pytest.mark.parametrize(
    ("kind", "matrix"), [pytest.param(*one, id=f"{one[0]} {tuple(one[1].shape)}") for one in matrices()]
)
def test_large_matrices_stay_in_their_bound(kind, matrix):
    (values,), (error,) = svdvals(matrix[None])
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    wrong = np.abs(values.numpy() - expected)
    assert (wrong <= error.numpy()).all()
    if kind == "random":
        assert (
            np.median(error.numpy() / np.maximum(wrong, 1e-300)) <= 250
        )  # a typical error is one rounding, the largest 20
        assert error.max() < 1e-9 * values.max()  # an SVD in single precision would be off by 1e-6


def test_a_parametrized_weight_is_used_as_it_is():
    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    with torch.no_grad():
        layer.parametrizations.weight.original0 *= 3
    plain = nn.Linear(4, 3)
    plain.weight = nn.Parameter(layer.weight.detach())
    x = torch.randn(2, 4)
    torch.testing.assert_close(closed_form(layer, x).values, closed_form(plain, x).values, rtol=0, atol=0)


def test_a_weight_that_changes_when_it_is_read_has_no_closed_form():
    layer = parametrizations.spectral_norm(nn.Linear(4, 3))
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    assert closed_form(layer, torch.randn(2, 4)) is None
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


def test_half_precision_weights_are_taken_wider():
    layer = nn.Linear(6, 4).half()
    found = closed_form(layer, torch.randn(2, 6).half())
    expected = np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False)
    np.testing.assert_allclose(found.values[0].numpy(), expected, rtol=1e-12)
