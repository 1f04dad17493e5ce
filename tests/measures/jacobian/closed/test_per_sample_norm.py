import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from bnprobe.measures.jacobian.closed import closed_form
from bnprobe.measures.jacobian.closed.damped import damped
from tests.measures.jacobian.closed.oracle import EPS, check, dtypes, epsilons, filled, normal, oracle_scale, seeds

gammas = st.sampled_from(["one", "none", "one size", "random", "zeros", "ties", "graded"])


def with_gammas(layer, kind, seed):
    if layer.weight is None or kind in ("one", "none"):
        return layer
    filled(layer, seed, zero=kind == "zeros")
    with torch.no_grad():
        if kind == "one size":
            layer.weight.copy_(0.7 * layer.weight.sign())
        elif kind == "ties":
            layer.weight.copy_(layer.weight.round())
        elif kind == "graded":
            layer.weight *= torch.logspace(0, -6, layer.weight.numel()).view_as(layer.weight)
    return layer


@given(
    samples=st.integers(1, 3),
    positions=st.lists(st.integers(1, 2), max_size=2),
    features=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    kind=st.sampled_from([nn.LayerNorm, nn.RMSNorm]),
    gamma=gammas,
    eps=epsilons,
    constant=st.booleans(),
    dtype=dtypes,
    seed=seeds,
)
@settings(max_examples=200)
def test_layer_and_rms_norm(samples, positions, features, kind, gamma, eps, constant, dtype, seed):
    layer = kind(features, eps=eps, elementwise_affine=gamma != "none", dtype=dtype)
    layer = with_gammas(layer, gamma, seed)
    x = normal((samples, *positions, *features), seed, scale=2, dtype=dtype)
    if constant:
        x[0] = 0 if kind is nn.RMSNorm else 0.1
    check(layer, x, oracle_scale=oracle_scale(layer, x, samples * int(np.prod(positions))))


@given(
    samples=st.integers(2, 3),
    layout=st.sampled_from([(1, 3), (2, 2), (2, 4), (3, 3), (1, 4)]),
    positions=st.lists(st.integers(1, 3), max_size=2),
    gamma=gammas,
    eps=epsilons,
    constant=st.booleans(),
    dtype=dtypes,
    seed=seeds,
)
@settings(max_examples=100)
def test_group_norm(samples, layout, positions, gamma, eps, constant, dtype, seed):
    groups, channels = layout
    layer = with_gammas(nn.GroupNorm(groups, channels, eps, gamma != "none", dtype=dtype), gamma, seed)
    x = normal((samples, channels, *positions), seed, scale=2, dtype=dtype)
    if constant:
        x[:, 0] = 0.1
    check(layer, x, oracle_scale=oracle_scale(layer, x, samples * groups))


@given(
    samples=st.integers(1, 2),
    channels=st.integers(1, 3),
    layout=st.sampled_from([(nn.InstanceNorm1d, (3,)), (nn.InstanceNorm2d, (2, 3)), (nn.InstanceNorm3d, (1, 2, 2))]),
    affine=st.booleans(),
    track=st.booleans(),
    training=st.booleans(),
    eps=epsilons,
    dtype=dtypes,
    seed=seeds,
)
@settings(max_examples=60)
def test_instance_norm(samples, channels, layout, affine, track, training, eps, dtype, seed):
    kind, rest = layout
    layer = kind(channels, eps=eps, affine=affine, track_running_stats=track, dtype=dtype)
    layer = filled(layer, seed, zero=seed % 2 == 0).train(training)
    x = normal((samples, channels, *rest), seed, scale=2, dtype=dtype)
    check(layer, x, oracle_scale=oracle_scale(layer, x, samples * channels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rms_norms_own_eps_is_that_of_its_precision(dtype):
    x = torch.full((1, 4), 1e-4, dtype=dtype)
    found = closed_form(nn.RMSNorm(4, dtype=dtype), x)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    square = x.double().square().mean().item() + eps
    np.testing.assert_allclose(found.values[0], [square**-0.5] * 3 + [eps * square**-1.5], rtol=1e-12)


def test_interlacing_of_a_large_layer_norm():
    """|gamma|_(k) >= sigma s_k >= |gamma|_(k + 2), and one exact zero (Cauchy)."""
    layer, x = filled(nn.LayerNorm(300), 3), torch.randn(2, 300)
    found = closed_form(layer, x)
    sigma = (x.double().var(1, correction=0) + layer.eps).sqrt()
    sizes = layer.weight.detach().double().abs().sort(descending=True).values
    scaled = found.values * sigma[:, None]
    assert (scaled <= sizes * (1 + 1e-12)).all()
    assert (scaled[:, :-2] >= sizes[2:] * (1 - 1e-12)).all()
    assert (found.values[:, -1] == 0).all()
    expected = torch.linalg.svdvals(
        torch.stack([torch.func.jacrev(layer.double())(one) for one in x.double()]),
    )
    assert ((found.values - expected).abs() <= found.error + 300**0.5 * EPS * expected[:, :1]).all()


@given(
    d=st.integers(1, 8),
    tau=st.sampled_from([0.0, 1e-12, 1e-5, 0.3, 1.0]),
    levels=st.lists(st.sampled_from([0.0, 1e-9, 0.5, 0.5 + 1e-13, 1.0, 2.0]), min_size=8, max_size=8),
    sparse=st.booleans(),
    seed=seeds,
)
@example(d=7, tau=0.0, levels=[0.0, 0.5, 0.0, 0.0, 1e-9, 0.5, 0.5 + 1e-13, 0.0], sparse=True, seed=0)
@settings(max_examples=150)
def test_a_damped_direction(d, tau, levels, sparse, seed):
    """Ties, zeros, near ties and directions without a share in some of the poles."""
    matrix = torch.diag(torch.tensor(levels[:d], dtype=torch.float64))
    direction = normal((d,), seed, dtype=torch.float64)
    if sparse and d > 1:
        direction[: d // 2] = 0
    direction = direction / direction.norm()
    values, error = damped(matrix[None], direction[None, None], torch.tensor([[tau]], dtype=torch.float64))
    dense = matrix @ (torch.eye(d, dtype=torch.float64) - (1 - tau) * torch.outer(direction, direction))
    expected = np.linalg.svd(dense.numpy(), compute_uv=False)
    assert (np.abs(values[0, 0].numpy() - expected) <= error[0, 0].numpy() + 8 * EPS * max(levels)).all()
    assert error.max() <= 100 * EPS * max(levels)
