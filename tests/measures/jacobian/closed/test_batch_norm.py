import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnprobe.measures.jacobian.closed import closed_form
from tests.measures.jacobian.closed.oracle import check, dtypes, epsilons, filled, normal, oracle_scale, seeds

layouts = st.sampled_from(
    [
        (nn.BatchNorm1d, ()),
        (nn.BatchNorm1d, (1,)),
        (nn.BatchNorm1d, (3,)),
        (nn.BatchNorm2d, (2, 2)),
        (nn.BatchNorm2d, (1, 1)),
        (nn.BatchNorm3d, (2, 1, 2)),
    ]
)
settings_of_a_layer = st.fixed_dictionaries(
    {
        "eps": epsilons,
        "momentum": st.sampled_from([0.1, None]),
        "affine": st.booleans(),
        "track_running_stats": st.booleans(),
    }
)


@given(
    samples=st.integers(1, 5),
    channels=st.integers(1, 3),
    layout=layouts,
    options=settings_of_a_layer,
    training=st.booleans(),
    zero=st.booleans(),
    constant=st.booleans(),
    dtype=dtypes,
    offset=st.sampled_from([0.0, 30.0]),
    seed=seeds,
)
@settings(max_examples=100)
def test_batch_norm(samples, channels, layout, options, training, zero, constant, dtype, offset, seed):
    kind, rest = layout
    layer = filled(kind(channels, dtype=dtype, **options), seed, zero).train(training)
    x = normal((samples, channels, *rest), seed, scale=2, offset=offset, dtype=dtype)
    if constant:
        x[:, 0] = offset + 0.1
    coupled = training or not layer.track_running_stats
    if coupled and x.numel() == channels:
        assert closed_form(layer, x) is None
        return
    check(layer, x, coupled, oracle_scale(layer, x.transpose(0, 1), channels) if coupled else 0)


def extended(layer, x):
    """O(m) formula of each channel in extended precision: large value, small value."""
    values = x.transpose(0, 1).reshape(x.shape[1], -1).numpy().astype(np.longdouble)
    values = values - values[:, :1]  # exact, and a large offset costs no digits of the mean
    variance = ((values - values.mean(1, keepdims=True)) ** 2).mean(1)
    square = variance + np.longdouble(layer.eps)
    large = np.abs(layer.weight.detach().numpy().astype(np.longdouble)) / np.sqrt(square)
    return large, large * (np.longdouble(layer.eps) / square)


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="this platform has no extended precision")
@given(
    m=st.integers(3, 200),
    eps=epsilons,
    offset=st.sampled_from([0.0, 1.0, 1e4, 1e8]),
    scale=st.sampled_from([1e-6, 1e-2, 1.0, 1e3]),
    dtype=dtypes,
    seed=seeds,
)
@settings(max_examples=200)
def test_bounds_hold_to_the_last_digit_and_are_not_much_wider(m, eps, offset, scale, dtype, seed):
    layer = filled(nn.BatchNorm1d(4, eps=eps, dtype=dtype), seed)
    x = normal((m, 4), seed, scale, offset, dtype)
    x[:, 1] = x[0, 1]
    found = closed_form(layer, x)
    large, small = extended(layer, x)
    expected = np.sort(np.concatenate([np.repeat(large, m - 2), small, np.zeros(4)]))[::-1]
    wrong = np.abs(found.values[0].numpy() - expected)
    assert (wrong <= found.error[0].numpy()).all()
    rounding = np.finfo(np.float64).eps / 4 * expected
    assert np.median(found.error[0].numpy()[:-4] / np.maximum(wrong, rounding)[:-4]) <= 100


def test_two_values_of_a_channel_pass_almost_nothing():
    layer, x = nn.BatchNorm1d(1, eps=0.1), torch.tensor([[1.0], [3.0]])
    found = closed_form(layer, x)
    np.testing.assert_allclose(found.values[0], [0.1 / 1.1**1.5, 0], rtol=1e-14)


def test_a_constant_channel_explodes():
    found = closed_form(nn.BatchNorm1d(1), torch.full((5, 1), 0.3))
    np.testing.assert_allclose(found.values[0], [1e-5**-0.5] * 4 + [0], rtol=1e-12)


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 4)])
def test_frozen_statistics_uncouple_the_samples(shape):
    layer, x = filled(nn.BatchNorm1d(3), 1), torch.randn(shape)
    found = closed_form(layer, x, per="sample")
    frozen = nn.BatchNorm1d(3).eval().double()
    frozen.load_state_dict(layer.state_dict())
    channels = x.double().transpose(0, 1).reshape(3, -1)
    frozen.running_mean, frozen.running_var = channels.mean(1), channels.var(1, correction=0)
    expected = closed_form(frozen, x.double())
    assert not found.coupled
    assert found.shape == (x[0].numel(), x[0].numel())
    torch.testing.assert_close(found.values, expected.values, rtol=1e-12, atol=0)


def test_frozen_statistics_of_two_values():
    found = closed_form(nn.BatchNorm1d(2), torch.randn(2, 2), per="sample")
    assert found.values.shape == (2, 2)


def test_a_batch_norm_of_another_number_of_channels_is_not_guessed():
    assert closed_form(nn.BatchNorm1d(4), torch.randn(6, 3)) is None
    assert closed_form(nn.BatchNorm2d(3), torch.randn(6, 3)) is None
