import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from bnprobe.measures.jacobian.closed import closed_form
from tests.measures.jacobian.closed.oracle import check, dtypes, normal, seeds

axis = st.tuples(
    st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.integers(1, 6)
)  # kernel, stride, pad, length
AVERAGE = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
MAXIMUM = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


def split(axes, shorten=False):
    kernel, stride, padding, lengths = (list(one) for one in zip(*axes, strict=True))
    padding = [min(p, k // 2) for p, k in zip(padding, kernel, strict=True)]
    assume(all(length + 2 * p >= k for length, p, k in zip(lengths, padding, kernel, strict=True)))
    return kernel, stride, padding, [min(length, 3) if len(axes) == 3 else length for length in lengths]


@given(
    axes=st.lists(axis, min_size=1, max_size=2),
    ceil=st.booleans(),
    include=st.booleans(),
    divisor=st.sampled_from([None, None, 1, 5, -2]),
    dtype=dtypes,
    seed=seeds,
)
@settings(max_examples=120)
def test_average_pooling(axes, ceil, include, divisor, dtype, seed):
    kernel, stride, padding, lengths = split(axes)
    settings = {"divisor_override": divisor} if len(axes) > 1 else {}
    layer = AVERAGE[len(axes)](kernel, stride, padding, ceil, include, **settings)
    check(layer, normal((2, 2, *lengths), seed, dtype=dtype))


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("ceil", [True, False])
def test_average_pooling_in_three_dimensions(ceil, include):
    check(nn.AvgPool3d((2, 3, 2), (1, 2, 3), (1, 1, 0), ceil, include), torch.randn(1, 2, 3, 4, 3))


@given(axes=st.lists(st.tuples(st.integers(1, 6), st.sampled_from([None, 1, 2, 3, 5])), min_size=1, max_size=3))
@settings(max_examples=40)
def test_adaptive_average_pooling(axes):
    if len(axes) == 1:
        axes = [(axes[0][0], axes[0][1] or 1)]
    lengths, sizes = zip(*axes, strict=True)
    if len(axes) == 3:
        lengths = [min(3, length) for length in lengths]
    check(ADAPTIVE[len(axes)](sizes if len(axes) > 1 else sizes[0]), torch.randn(2, 1, *lengths))


@given(
    axes=st.lists(axis, min_size=1, max_size=2),
    ceil=st.booleans(),
    dilation=st.integers(1, 2),
    ties=st.booleans(),
    dtype=dtypes,
    seed=seeds,
)
@settings(max_examples=80)
def test_max_pooling(axes, ceil, dilation, ties, dtype, seed):
    kernel, stride, padding, lengths = split(axes)
    assume(all(n + 2 * p > dilation * (k - 1) for n, p, k in zip(lengths, padding, kernel, strict=True)))
    x = normal((2, 2, *lengths), seed, dtype=dtype)
    layer = MAXIMUM[len(axes)](kernel, stride, padding, dilation, ceil_mode=ceil)
    if not layer(x).isfinite().all():
        assert closed_form(layer, x) is None  # a window of padding only
        return
    check(layer, x.round() if ties else x)


@pytest.mark.parametrize("layer", [nn.AdaptiveMaxPool2d((3, 2)), nn.MaxPool3d(2, 1), nn.AdaptiveMaxPool3d(2)], ids=str)
def test_other_max_pooling(layer):
    check(layer, torch.randn(2, 2, 3, 5, *([3] if "3d" in type(layer).__name__ else [])))


def test_long_axes_need_windows_apart():
    x = torch.randn(1, 1, 3000)
    assert closed_form(nn.AvgPool1d(3, 1), x) is None
    assert closed_form(nn.AvgPool1d(3), x).values.shape == (1, 1000)


def test_positions_beside_the_values_are_another_layer():
    assert closed_form(nn.MaxPool1d(2, return_indices=True), torch.randn(2, 2, 4)) is None
