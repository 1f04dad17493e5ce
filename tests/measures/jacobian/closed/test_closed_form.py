"""What holds for every closed form: when there is none, and that nothing is changed."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from bnprobe.measures.jacobian.closed import _BATCH_NORMS, _FORMS, closed_form

CASES = {
    nn.Linear: (lambda: nn.Linear(4, 3), (2, 4)),
    nn.BatchNorm1d: (lambda: nn.BatchNorm1d(3), (4, 3)),
    nn.BatchNorm2d: (lambda: nn.BatchNorm2d(3), (2, 3, 2, 2)),
    nn.BatchNorm3d: (lambda: nn.BatchNorm3d(3), (2, 3, 2, 1, 2)),
    nn.LayerNorm: (lambda: nn.LayerNorm(4), (2, 4)),
    nn.RMSNorm: (lambda: nn.RMSNorm(4), (2, 4)),
    nn.GroupNorm: (lambda: nn.GroupNorm(2, 4), (2, 4, 3)),
    nn.InstanceNorm1d: (lambda: nn.InstanceNorm1d(4, track_running_stats=True), (2, 4, 3)),
    nn.InstanceNorm2d: (lambda: nn.InstanceNorm2d(4, track_running_stats=True), (2, 4, 3, 2)),
    nn.InstanceNorm3d: (lambda: nn.InstanceNorm3d(4, track_running_stats=True), (2, 4, 3, 2, 1)),
    nn.Threshold: (lambda: nn.Threshold(0.1, 2), (2, 4)),
    nn.RReLU: (lambda: nn.RReLU().eval(), (2, 4)),
    nn.AlphaDropout: (lambda: nn.AlphaDropout().eval(), (2, 4)),
    nn.FeatureAlphaDropout: (lambda: nn.FeatureAlphaDropout().eval(), (2, 4)),
    nn.Unflatten: (lambda: nn.Unflatten(1, (2, 2)), (2, 4)),
    nn.PixelShuffle: (lambda: nn.PixelShuffle(2), (2, 4, 2, 2)),
    nn.PixelUnshuffle: (lambda: nn.PixelUnshuffle(2), (2, 1, 2, 2)),
    nn.ChannelShuffle: (lambda: nn.ChannelShuffle(2), (2, 4, 2)),
    nn.Upsample: (lambda: nn.Upsample(scale_factor=2), (2, 2, 3)),
    nn.UpsamplingNearest2d: (lambda: nn.UpsamplingNearest2d(scale_factor=2), (2, 2, 3, 3)),
}


def make(kind):
    """A layer of the class and an input."""
    if kind in CASES:
        layer, shape = CASES[kind]
        return layer(), torch.randn(shape)
    name = kind.__name__
    axes = int(name[-2]) if name[-2:] in ("1d", "2d", "3d") else 0
    shape = (2, 2, *[4] * axes) if axes else (2, 4)
    if name.startswith("Conv"):
        return kind(2, 2, 2, stride=2), torch.randn(shape)
    if name.startswith("ConstantPad"):
        return kind(1, 2.0), torch.randn(shape)
    if "Pool" in name or "Pad" in name:
        return kind(1), torch.randn(shape)
    return kind(), torch.randn(shape)


EVERY = sorted({*_FORMS, *_BATCH_NORMS}, key=str)
every = pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)


def state(layer, x):
    return {
        "tensors": [x, *layer.parameters(), *layer.buffers()],
        "grads": [one.grad for one in layer.parameters()],
        "wants": [one.requires_grad for one in [x, *layer.parameters()]],
        "attributes": {name: value for name, value in vars(layer).items() if not name.startswith("_")},
        "hooks": [len(value) for name, value in sorted(vars(layer).items()) if name.endswith("_hooks")],
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002 - the legacy stream is what users seed
        "torch": torch.get_rng_state(),
    }


def assert_same(a, b):
    for name in a:
        if name in ("tensors", "torch"):
            pairs = zip(a[name], b[name], strict=True) if name == "tensors" else [(a[name], b[name])]
            assert all(torch.equal(one, other) for one, other in pairs), name
        else:
            assert a[name] == b[name], name


@every
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_nothing_is_touched(kind, training, mode):
    layer, x = make(kind)
    layer.train(training and kind not in (nn.RReLU, nn.AlphaDropout, nn.FeatureAlphaDropout))
    twin, x_twin = copy.deepcopy(layer), x.clone()
    before = state(twin, x_twin)
    with mode():
        found = closed_form(layer, x)
    assert found is not None
    assert not found.values.requires_grad
    assert not found.values.is_inference()
    assert_same(before, state(layer, x))


@every
def test_an_input_made_in_inference_mode_is_good_enough(kind):
    layer, x = make(kind)
    with torch.inference_mode():
        found = closed_form(layer.eval(), x.clone())
    torch.testing.assert_close(found.values, closed_form(layer, x).values, rtol=0, atol=0)


@every
def test_a_subclass_with_its_own_forward_has_no_closed_form(kind):
    layer, x = make(kind)
    layer.__class__ = type("Own", (kind,), {"forward": lambda self, x: 2 * kind.forward(self, x)})
    assert closed_form(layer, x) is None


@every
@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_a_layer_with_foreign_hooks_has_no_closed_form(kind, register):
    layer, x = make(kind)
    handle = getattr(layer, register)(lambda *args: None)
    assert closed_form(layer, x) is None
    handle.remove()
    assert closed_form(layer, x) is not None


def test_a_global_foreign_hook_counts_too():
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        assert closed_form(nn.ReLU(), torch.randn(2, 3)) is None
    finally:
        handle.remove()


def test_bnprobes_own_hooks_only_listen():
    def listens(*args):
        return None

    listens.__module__ = "bnprobe.hooks.taps"
    layer = nn.ReLU()
    layer.register_forward_hook(listens)
    assert closed_form(layer, torch.randn(2, 3)) is not None


def test_a_forward_put_on_the_object_counts():
    layer = nn.ReLU()
    layer.forward = lambda x: 2 * x
    assert closed_form(layer, torch.randn(2, 3)) is None


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 4, dtype=torch.complex64),
        torch.ones(2, 4, dtype=torch.long),
        torch.empty(0, 4),
        torch.tensor([[float("nan"), 1, 2, 3]]),
        torch.tensor([[float("inf"), 1, 2, 3]]),
        torch.randn(4),
        torch.empty(2, 4, device="meta"),
        torch.randn(2, 4).to_sparse(),
    ],
    ids=["complex", "integer", "empty", "nan", "infinite", "no samples", "meta", "sparse"],
)
@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.ReLU()], ids=str)
def test_unusual_inputs_have_no_closed_form(layer, x):
    assert closed_form(layer, x) is None


def test_a_weight_that_is_not_finite_has_no_closed_form():
    layer = nn.Linear(4, 3)
    layer.weight.data[0, 0] = float("nan")
    assert closed_form(layer, torch.randn(2, 4)) is None


def test_division_by_zero_has_no_closed_form():
    assert closed_form(nn.LayerNorm(4, eps=0.0), torch.ones(2, 4)) is None


@pytest.mark.parametrize("layer", [nn.Softmax(1), nn.Sequential(nn.ReLU()), nn.Embedding(3, 4), nn.LSTM(4, 4)], ids=str)
def test_other_layers_have_no_closed_form(layer):
    assert closed_form(layer, torch.randn(2, 4)) is None


def test_autocast_does_not_lower_the_weights():
    layer, x = nn.Linear(300, 200), torch.randn(2, 300)
    with torch.autocast("cpu", torch.bfloat16):
        found = closed_form(layer, x)
    torch.testing.assert_close(found.values, closed_form(layer, x).values, rtol=0, atol=0)


def test_frozen_statistics_change_nothing_but_batch_norm():
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    torch.testing.assert_close(closed_form(layer, x, per="sample").values, closed_form(layer, x).values)
