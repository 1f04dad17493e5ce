"""Tolerances can be broken: they are small against what they are about, and grow with the condition number only."""

import pytest
import torch
from torch import nn

from bnprobe.testing import Subject
from bnprobe.testing.properties.buffers import running_bounds
from bnprobe.testing.strategies import Batch

LAYERS = {
    "batch_norm": nn.BatchNorm1d,
    "layer_norm": nn.LayerNorm,
    "rms_norm": nn.RMSNorm,
    "group_norm": lambda c: nn.GroupNorm(2, c),
}


def specimen(like, kind="gaussian", dtype="float32"):
    axis = 1 if like in ("batch_norm", "group_norm") else 2
    shape = (6, 4, 5) if axis == 1 else (6, 5, 4)
    return Subject(LAYERS[like], like).specimen(Batch(shape, kind, 1, dtype, axis=axis))


def share(bound, value):
    return float(bound.median() / value.abs().max())


@pytest.mark.parametrize("like", LAYERS)
def test_small_in_single_precision(like):
    one = specimen(like)
    g, v = one.cotangent(1), one.cotangent(2)
    assert share(one.tolerance.output, one.law.y) < 1e-4
    assert share(one.tolerance.input_gradient(g), one.law.gradients(g).x) < 1e-3
    assert share(one.tolerance.gamma_gradient(g), one.law.gradients(g).gamma) < 1e-3
    for bound, value in zip(one.tolerance.second(g, v), one.law.second(g, v), strict=True):
        assert share(bound, value) < 5e-3


@pytest.mark.parametrize("like", LAYERS)
def test_not_smaller_than_what_single_precision_gives(like):
    """Against the same layer in double precision: rounding is within them, and they are within 10,000 times of it."""
    one = specimen(like)
    g, v = one.cotangent(1).requires_grad_(), one.cotangent(2)
    y = one.module(one.x)
    (first,) = torch.autograd.grad(y, one.x, g, create_graph=True)
    second = torch.autograd.grad(first, [one.x, g, one.parts.gamma], v)
    law, tolerance = one.law, one.tolerance
    pairs = [(y, law.y, tolerance.output), (first, law.gradients(g).x, tolerance.input_gradient(g))]
    pairs += [*zip(second, law.second(g, v), tolerance.second(g, v), strict=True)]
    for got, want, bound in pairs:
        off = ((got.detach().double() - want).abs() / bound).max()
        assert 1e-4 < off < 1


def test_a_large_mean_costs_in_proportion_to_its_size():
    plain, offset = (specimen("batch_norm", kind) for kind in ("gaussian", "offset"))
    ratio = float(offset.tolerance.statistics.median() / plain.tolerance.statistics.median())
    assert 300 < ratio < 30_000  # kappa 2 * 2896 against a few
    assert float(offset.tolerance.output.max()) < 0.2  # one pass is off by kappa^2 u, about 2


def test_running_statistics_tell_a_biased_variance_at_300_values():
    one = specimen("batch_norm")
    batches = [Batch((60, 4, 5), "gaussian", seed).tensor() for seed in range(4)]
    of_mean, of_variance, why = running_bounds(one, batches, one.state)
    assert float(of_mean.max()) < 1e-3
    variance = torch.cat(batches).movedim(1, 0).reshape(4, -1).double().var(1)
    assert bool((of_variance < (1 - 0.9**4) * variance / 300).all())
    assert why.startswith("(m + 8 + 4 t) u with m = 300, t = 4, u = 6e-08")


def test_running_deviations_too():
    def renorm(channels):
        layer = nn.BatchNorm1d(channels)
        layer.register_buffer("running_std", torch.ones(channels))
        return layer

    one = Subject(renorm, "batch_norm").specimen(Batch((6, 4), seed=1))
    assert one.settings.running == "deviation"
    assert float(running_bounds(one, [one.x], one.state)[1].max()) < 1e-3
