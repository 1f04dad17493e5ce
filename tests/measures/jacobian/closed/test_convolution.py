import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnprobe.measures.jacobian.closed import closed_form
from tests.measures.jacobian.closed.oracle import check, dtypes, filled, normal, seeds

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
channels = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))  # groups, inputs and outputs of each


def per_axis(low, high):
    return st.lists(st.integers(low, high), min_size=3, max_size=3)


@given(
    axes=st.sampled_from([1, 1, 2, 2, 3]),
    channels=channels,
    kernel=per_axis(1, 3),
    gap=per_axis(0, 1),
    windows=per_axis(1, 2),
    left=per_axis(0, 1),
    dilation=st.integers(1, 2),
    dtype=dtypes,
    seed=seeds,
)
@settings(max_examples=60)
def test_windows_without_overlap(axes, channels, kernel, gap, windows, left, dilation, dtype, seed):
    groups, inputs, outputs = channels
    reach = [dilation * (k - 1) + 1 for k in kernel[:axes]]
    stride = [extent + extra for extent, extra in zip(reach, gap, strict=False)]
    lengths = [
        (count - 1) * step + extent + rest
        for count, step, extent, rest in zip(windows, stride, reach, left, strict=False)
    ]
    settings = {"kernel_size": kernel[:axes], "stride": stride, "dilation": dilation, "groups": groups, "dtype": dtype}
    layer = filled(CONVOLUTIONS[axes](groups * inputs, groups * outputs, **settings), seed)
    check(layer, normal((2, groups * inputs, *lengths), seed, dtype=dtype))
    layer = filled(TRANSPOSED[axes](groups * inputs, groups * outputs, **settings), seed)
    check(layer, normal((2, groups * inputs, *windows[:axes]), seed, dtype=dtype))


@given(
    axes=st.sampled_from([1, 1, 2, 2, 3]),
    channels=channels,
    kernel=per_axis(1, 3),
    dilation=st.integers(1, 2),
    extra=per_axis(0, 3),
    dtype=dtypes,
    seed=seeds,
)
@settings(max_examples=60)
def test_circular_padding(axes, channels, kernel, dilation, extra, dtype, seed):
    groups, inputs, outputs = channels
    lengths = [max(2, dilation * (k - 1)) + more for k, more in zip(kernel[:axes], extra, strict=False)]
    if axes == 3:
        lengths = [
            min(4, length) if dilation * (k - 1) <= 4 else length for k, length in zip(kernel, lengths, strict=True)
        ]
    layer = CONVOLUTIONS[axes](
        groups * inputs, groups * outputs, kernel[:axes], padding="same", padding_mode="circular",
        dilation=dilation, groups=groups, dtype=dtype,
    )  # fmt: skip
    filled(layer, seed)
    size = layer.weight.abs().sum().item()  # at some frequencies the taps cancel
    check(layer, normal((1, groups * inputs, *lengths), seed, dtype=dtype), oracle_scale=size)


def test_a_kernel_as_large_as_its_input_is_a_matrix():
    check(nn.Conv2d(2, 3, (3, 4)), torch.randn(2, 2, 3, 4))


def test_what_a_transposed_convolution_adds_at_the_end_is_empty():
    check(nn.ConvTranspose2d(2, 5, 2, stride=3, output_padding=1), torch.randn(2, 2, 2, 2))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 2, 3),
        nn.Conv1d(2, 2, 3, padding=1),
        nn.Conv1d(2, 2, 1, padding=1),
        nn.Conv1d(2, 2, 2, stride=2, dilation=2),
        nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(2, 2, 3, padding=2, padding_mode="circular"),
        nn.Conv1d(2, 2, 3, stride=2, padding=1, padding_mode="circular"),
        nn.ConvTranspose1d(2, 2, 3, stride=2),
        nn.ConvTranspose1d(2, 2, 2, stride=2, padding=1),
    ],
    ids=str,
)
def test_other_convolutions_have_no_closed_form(layer):
    assert closed_form(layer, torch.randn(2, 2, 8)) is None
    assert closed_form(layer, torch.randn(2, 8)) is None  # one sample without an axis for samples
