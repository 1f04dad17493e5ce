"""Gradient growth is measured as it is, and follows the law of random nets with batch norm."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, batches
from torch import nn

from bnprobe.errors import ArgumentError, NotMeasuredError, SelectionError
from bnprobe.measures.growth import gradient_growth
from bnprobe.measures.jacobian.laws import gradient_growth_of_linear, gradient_growth_of_relu


def deep(depth, width, act=nn.ReLU, seed=0):
    """Blocks of batch norm, nonlinearity and Gaussian weights of variance 1 / width."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(width, width, generator=generator) / math.sqrt(width))
        blocks += [nn.BatchNorm1d(width, eps=1e-10), act(), linear]
    return nn.Sequential(*blocks)


def test_orthogonal_layers_keep_the_norm_and_scaled_ones_scale_it():
    layers = [nn.Linear(20, 20, bias=False) for _ in range(10)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain=2.0)
    found = gradient_growth(nn.Sequential(*layers), torch.randn(4, 20))
    assert found.layers == tuple(str(index) for index in range(10))
    assert found.rate == pytest.approx(4, rel=1e-4)
    assert found.rate_error < 1e-4
    np.testing.assert_allclose(found.squared_norms[:-1] / found.squared_norms[1:], 4, rtol=1e-4)
    assert found.used.tolist() == [False] * 3 + [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    ("act", "law"),
    [(nn.ReLU, gradient_growth_of_relu), (nn.Identity, gradient_growth_of_linear)],
    ids=["relu", "linear"],
)
def test_growth_of_deep_nets_with_batch_norm_follows_the_law(act, law):
    batch = 8
    rates = []
    for seed in range(4):
        x = torch.randn(batch, 400, generator=torch.Generator().manual_seed(100 + seed))
        rates.append(gradient_growth(deep(14, 400, act, seed), x, repeats=2).rate)
    error = np.std(rates, ddof=1) / math.sqrt(len(rates))
    assert np.mean(rates) == pytest.approx(law(batch), abs=max(4 * error, 0.03 * law(batch)))


def test_norms_are_those_of_autograd():
    model, (x, y) = CASES["residual"][0](), batches(CASES["residual"][1], 1)[0]
    found = gradient_growth(model, (x, y), lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), skip=0)
    assert found.layers == ("conv1", "shared", "head")
    gradient, hooks = {}, []
    for name in ("conv1", "head"):

        def watch(_, args, output, name=name):
            output.register_hook(lambda found: gradient.update({name: found}))

        hooks.append(getattr(model, name).register_forward_hook(watch))
    F.cross_entropy(model(x), y).backward()
    for hook in hooks:
        hook.remove()
    expected = [float(gradient[name].double().square().sum()) for name in ("conv1", "head")]
    np.testing.assert_allclose(found.squared_norms[[0, 2]], expected, rtol=1e-5)


def test_in_place_activations_come_after_what_is_measured():
    linear = nn.Linear(5, 5)
    x = torch.randn(3, 5)
    plain = gradient_growth(nn.Sequential(linear, nn.ReLU()), x, skip=0)
    in_place = gradient_growth(nn.Sequential(linear, nn.ReLU(inplace=True)), x, skip=0)
    np.testing.assert_array_equal(plain.squared_norms, in_place.squared_norms)


def test_frozen_models_and_chosen_layers():
    model = deep(8, 10).requires_grad_(False)
    found = gradient_growth(model, torch.randn(6, 10), layers=nn.BatchNorm1d, skip=0)
    assert found.layers == tuple(str(3 * index) for index in range(8))
    assert (found.squared_norms > 0).all()


@pytest.mark.parametrize("case", CASES)
def test_the_model_stays_as_it_was(case):
    make, shape = CASES[case]
    model, x = make(), torch.randn(shape)
    model(x).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [one.grad.clone() for one in model.parameters()]
    stream = torch.get_rng_state()
    first = gradient_growth(model, x)
    second = gradient_growth(model, x)
    np.testing.assert_array_equal(first.squared_norms, second.squared_norms)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients, model.parameters(), strict=True))
    assert not any(module._forward_hooks for module in model.modules())
    assert x.grad is None


def test_short_nets_have_norms_and_no_slope():
    found = gradient_growth(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), torch.randn(2, 3))
    assert (found.squared_norms > 0).all()
    assert math.isnan(found.rate)


def test_gradients_beyond_single_precision_are_measured():
    layers = [nn.Linear(4, 4, bias=False) for _ in range(9)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain=1e4)
    found = gradient_growth(nn.Sequential(*layers), torch.randn(2, 4) * 1e-30, skip=0)
    assert found.rate == pytest.approx(1e8, rel=1e-3)


def test_refusals():
    model, x = deep(2, 4), torch.randn(3, 4)
    with pytest.raises(
        ArgumentError, match="skip must be at least 0 and repeats at least 1, with a loss 1; got 0 and 0"
    ):
        gradient_growth(model, x, skip=0, repeats=0)
    with pytest.raises(SelectionError, match="matches no layer"):
        gradient_growth(model, x, layers="nowhere")
    with pytest.raises(
        NotMeasuredError, match=r"the loss must be one number with a gradient; got torch.float32 of shape \(3, 4\)"
    ):
        gradient_growth(model, x, lambda net, batch: net(batch))
    with pytest.raises(NotMeasuredError, match="no gradient reaches any chosen layer"):
        gradient_growth(model, x, lambda net, batch: (net(batch) * 0).sum())
