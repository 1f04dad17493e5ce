"""Sound layers obey every law of their kind."""

import pytest
from handmade import Handmade, HandmadeGroupNorm, HandmadeLayerNorm, HandmadeRMSNorm, OwnBackwardNorm
from torch import nn

from bnprobe.testing import check_norm_layer, checks_of
from bnprobe.testing.layers import BatchRenorm, GhostBatchNorm


def bare(channels):
    return nn.BatchNorm2d(channels, affine=False, track_running_stats=False)


HALF = {"half_precision": "without parameters torch's CPU kernel keeps mean and variance in the input's dtype"}
STRIDE = {"stride_of_one_sample": "torch 2.13's CPU kernel reads the gradient in another order than the input"}
COMPILED = {"compiled": "torch 2.13 recomputes r in the backward, from running statistics updated since"}
SOUND = {
    "BatchNorm1d": (nn.BatchNorm1d, "batch_norm", {}),
    "BatchNorm2d": (nn.BatchNorm2d, "batch_norm", STRIDE),
    "BatchNorm3d": (nn.BatchNorm3d, "batch_norm", STRIDE),
    "BatchNorm2d, bare": (
        lambda c: nn.BatchNorm2d(c, affine=False, track_running_stats=False),
        "batch_norm",
        HALF | STRIDE,
    ),
    "BatchNorm1d, average": (lambda c: nn.BatchNorm1d(c, momentum=None, eps=1e-2), "batch_norm", {}),
    "LayerNorm": (nn.LayerNorm, "layer_norm", {}),
    "LayerNorm, bare": (lambda c: nn.LayerNorm(c, elementwise_affine=False), "layer_norm", {}),
    "GroupNorm": (lambda c: nn.GroupNorm(2, c), "group_norm", {}),
    "GroupNorm, each channel": (lambda c: nn.GroupNorm(c, c, affine=False), "group_norm", {}),
    "InstanceNorm1d": (lambda c: nn.InstanceNorm1d(c, affine=True, track_running_stats=True), "instance_norm", {}),
    "InstanceNorm2d": (nn.InstanceNorm2d, "instance_norm", HALF),
    "RMSNorm": (nn.RMSNorm, "rms_norm", {}),
    "RMSNorm, eps": (lambda c: nn.RMSNorm(c, eps=1e-6), "rms_norm", {}),
    "BatchRenorm": (BatchRenorm, "batch_renorm", COMPILED),
    "GhostBatchNorm": (lambda c: GhostBatchNorm(c, 2), "ghost_batch_norm", {}),
    "handmade": (Handmade, "batch_norm", {}),
    "handmade, own backward": (OwnBackwardNorm, "batch_norm", {}),
    "handmade layer norm": (HandmadeLayerNorm, "layer_norm", {}),
    "handmade RMS norm": (HandmadeRMSNorm, "rms_norm", {}),
    "handmade group norm": (HandmadeGroupNorm, "group_norm", {}),
}


# The compiler takes seconds a layer: it meets one of each way of computing.
WITH_COMPILER = ("BatchNorm2d", "BatchRenorm", "GhostBatchNorm", "handmade, own backward")


@pytest.mark.parametrize("name", SOUND)
def test_sound(name):
    make, like, expected = SOUND[name]
    names = [one.name for one in checks_of(like) if one.name != "compiled" or name in WITH_COMPILER]
    conformance = check_norm_layer(make, like, expected_failures=expected, only=names, profile="bnprobe-fast")
    assert set(conformance.expected) == set(expected)
    assert len(conformance.passed) > 15
