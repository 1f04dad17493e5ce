"""Layers whose Jacobian is known from the gradient of the sum of the outputs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnprobe.measures.jacobian.closed import closed_form
from bnprobe.measures.jacobian.closed.pointwise import KINKED, SMOOTH
from tests.measures.jacobian.closed.oracle import check, dtypes, normal, seeds

ARGUMENTS = {nn.Threshold: (0.1, 20.0)}
UNUSUAL = [
    nn.ELU(2.5), nn.CELU(0.3), nn.GELU("tanh"), nn.Softplus(3.0, 5.0), nn.LeakyReLU(-0.2), nn.Hardtanh(-0.1, 3.0),
    nn.Softshrink(0.3), nn.Hardshrink(0.2), nn.PReLU(3), nn.ReLU(inplace=True), nn.SiLU(inplace=True),
    nn.LeakyReLU(0.3, inplace=True), nn.ELU(inplace=True),
]  # fmt: skip
POINTWISE = [kind(*ARGUMENTS.get(kind, ())).eval() for kind in sorted(KINKED | SMOOTH, key=str)] + UNUSUAL


@pytest.mark.parametrize("layer", POINTWISE, ids=str)
@given(scale=st.sampled_from([0.1, 1.0, 10.0]), zeros=st.booleans(), dtype=dtypes, seed=seeds)
@settings(max_examples=12)
def test_pointwise(layer, scale, zeros, dtype, seed):
    x = normal((2, 3, 2), seed, scale, dtype=dtype)
    if zeros:
        x[0, 0] = 0
    before = x.clone()
    check(layer.to(dtype), x, oracle_scale=1.0)  # differences of terms of size 1
    assert torch.equal(x, before)


def test_a_random_slope_has_no_closed_form():
    assert closed_form(nn.RReLU(), torch.randn(2, 3)) is None


SELECTIONS = [
    (nn.Identity(), (2, 3)),
    (nn.Flatten(), (2, 3, 2)),
    (nn.Flatten(2), (2, 3, 2, 2)),
    (nn.Unflatten(1, (2, 3)), (2, 6)),
    (nn.PixelShuffle(2), (2, 4, 3, 2)),
    (nn.PixelUnshuffle(2), (2, 1, 4, 2)),
    (nn.ChannelShuffle(2), (2, 4, 2)),
    (nn.ZeroPad2d((1, 2, 0, 1)), (2, 2, 2, 3)),
    (nn.ZeroPad2d((-1, 1, 0, -1)), (2, 2, 3, 3)),
    (nn.ConstantPad1d(2, 3.5), (2, 2, 3)),
    (nn.ReflectionPad2d(2), (2, 1, 3, 4)),
    (nn.ReplicationPad3d(1), (2, 1, 2, 2, 2)),
    (nn.CircularPad1d(2), (2, 2, 3)),
    (nn.Upsample(scale_factor=2), (2, 2, 3)),
    (nn.Upsample(scale_factor=(1.5, 2.5), mode="nearest"), (2, 1, 3, 3)),
    (nn.Upsample(size=(2, 5), mode="nearest-exact"), (2, 1, 3, 4)),
    (nn.UpsamplingNearest2d(size=5), (2, 1, 3, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), SELECTIONS, ids=lambda one: str(one))
def test_selections(layer, shape):
    check(layer, torch.randn(shape))


@pytest.mark.parametrize(
    "layer",
    [nn.Upsample(scale_factor=2, mode="linear"), nn.Flatten(0), nn.Flatten(0, 1), nn.Unflatten(0, (1, 2))],
    ids=str,
)
def test_no_selections(layer):
    assert closed_form(layer, torch.randn(2, 2, 3)) is None


def test_many_copies_are_counted_in_half_precision():
    found = closed_form(nn.ReplicationPad1d(5000), torch.randn(1, 1, 1).half())
    np.testing.assert_allclose(found.values, [[10001**0.5]], rtol=1e-15)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dropout(0.3), (4, 6)),
        (nn.Dropout(0.5, inplace=True), (4, 6)),
        (nn.Dropout(0.0), (2, 3)),
        (nn.Dropout(1.0), (2, 3)),
        (nn.Dropout1d(0.4), (3, 5, 2)),
        (nn.Dropout2d(0.4), (3, 5, 2, 2)),
        (nn.Dropout3d(0.4), (3, 5, 1, 2, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_has_the_mask_of_the_held_random_state(layer, shape, dtype):
    x = torch.randn(shape, dtype=dtype)
    state = torch.get_rng_state()
    found = closed_form(layer, x)
    assert torch.equal(torch.get_rng_state(), state)
    y = layer(torch.ones_like(x))
    expected = y.double().reshape(len(x), -1).sort(1, descending=True).values
    rounding = torch.finfo(dtype).eps * expected  # of the layer's own division
    assert ((found.values - expected).abs() <= found.error + rounding).all()


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.AlphaDropout(), nn.FeatureAlphaDropout()], ids=str)
def test_dropout_in_evaluation_is_the_identity(layer):
    found = check(layer.eval(), torch.randn(2, 3, 2))
    assert (found.values == 1).all()
    assert (found.error == 0).all()


def test_alpha_dropout_has_no_closed_form_in_training():
    assert closed_form(nn.AlphaDropout(), torch.randn(2, 3)) is None
