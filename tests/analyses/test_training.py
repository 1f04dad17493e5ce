"""Two arms that can be compared, and evaluation that leaves training alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from analyses.data import Dataset
from analyses.training import (
    Curve,
    Evaluator,
    Images,
    Recipe,
    data_order,
    population,
    sigmoid_mlp,
    some_rows,
    train,
    weights_digest,
)


def network(batch_norm: bool, seed: int = 0, std: float = 0.3) -> nn.Sequential:
    return sigmoid_mlp(6, 3, width=8, depth=2, batch_norm=batch_norm, std=std, seed=seed)


def images(n: int = 90, seed: int = 0) -> Images:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, n)
    x = (generator.random((n, 6)) + 2 * np.eye(6)[labels] > 1).astype(np.uint8)
    return Images(torch.from_numpy(x), torch.from_numpy(labels), 1.0)


# --- pairing --------------------------------------------------------------------------------------------------------


def test_both_arms_begin_with_the_same_weights_and_seeds_differ() -> None:
    assert weights_digest(network(True)) == weights_digest(network(False))
    assert weights_digest(network(True, seed=1)) != weights_digest(network(True, seed=0))


def test_layers_are_the_papers_and_are_named() -> None:
    with_norm = sigmoid_mlp(784, 10, width=100, depth=3, batch_norm=True, std=0.1, seed=0)
    without = sigmoid_mlp(784, 10, width=100, depth=3, batch_norm=False, std=0.1, seed=0)
    leaves = [name for name, layer in with_norm.named_modules() if not list(layer.children())]
    assert leaves == [f"hidden{k}.{part}" for k in (1, 2, 3) for part in ("linear", "norm", "sigmoid")] + ["classifier"]
    assert with_norm.get_submodule("hidden1.linear").bias is None
    assert torch.equal(without.get_submodule("hidden1.linear").bias, torch.zeros(100))
    weights = torch.cat([p.flatten() for n, p in without.named_parameters() if n.endswith("weight")])
    assert weights.std().item() == pytest.approx(0.1, rel=0.01)


def test_the_order_is_a_fresh_shuffle_of_all_images_each_pass() -> None:
    order = data_order(30, 12, 10, seed=3)
    assert order.shape == (12, 10)
    passes = order.view(4, 30)
    assert all(sorted(one.tolist()) == list(range(30)) for one in passes)
    assert not torch.equal(passes[0], passes[1])
    assert torch.equal(order, data_order(30, 12, 10, seed=3))
    assert not torch.equal(order, data_order(30, 12, 10, seed=4))
    assert torch.equal(order[:5], data_order(30, 5, 10, seed=3)), "a shorter run is the beginning of a longer one"


def test_nothing_touches_the_global_random_stream() -> None:
    before = torch.get_rng_state()
    run(True)
    assert torch.equal(before, torch.get_rng_state())


# --- inputs ---------------------------------------------------------------------------------------------------------


def test_images_are_binary_above_half_or_scaled_to_one() -> None:
    pixels = np.array([0, 127, 128, 255], np.uint8).reshape(1, 1, 2, 2)
    data = Dataset("d", pixels, np.array([0]), pixels, np.array([0]), ("a",), "made up")
    binary = Images.from_dataset(data, "train", binary=True)
    grey = Images.from_dataset(data, "test", binary=False)
    assert binary.inputs().tolist() == [[0, 0, 1, 1]]
    assert torch.allclose(grey.inputs(), torch.tensor([[0, 127 / 255, 128 / 255, 1]]))
    assert torch.equal(grey.batch(torch.tensor([0]))[0], grey.inputs())


# --- population statistics ------------------------------------------------------------------------------------------


def test_population_statistics_are_those_of_all_inputs_layer_by_layer() -> None:
    """The naive twin: each layer by hand in float64, normalized with the full-batch statistics of the layer before."""
    net, x = network(True), images().inputs()
    found = population(copy.deepcopy(net), x)
    h = x.double()
    for k in (1, 2):
        h = h @ net.get_submodule(f"hidden{k}.linear").weight.double().T
        mean, var = h.mean(0), h.var(0)
        assert torch.allclose(found[f"hidden{k}.norm.running_mean"].double(), mean, atol=1e-6)
        assert torch.allclose(found[f"hidden{k}.norm.running_var"].double(), var, rtol=1e-5)
        h = torch.sigmoid((h - mean) / (h.var(0, unbiased=False) + 1e-5).sqrt())


def test_some_rows_are_always_the_same_and_follow_no_pattern() -> None:
    rows = some_rows(60_000, 10_000)
    assert torch.equal(rows, some_rows(60_000, 10_000))
    assert len(rows.unique()) == 10_000
    assert torch.equal(rows, rows.sort().values)
    for period in (2, 3, 6, 7):
        shares = torch.bincount(rows % period, minlength=period) / 10_000
        assert (shares - 1 / period).abs().max() < 0.02, period
    assert some_rows(5, 10).tolist() == list(range(5))


def test_without_batch_norm_there_is_nothing_to_estimate() -> None:
    assert population(network(False), images().inputs()) == {}


# --- looking changes nothing ----------------------------------------------------------------------------------------


def run(batch_norm: bool, every: int = 4, rate: float = 0.5, steps: int = 20) -> tuple[nn.Sequential, Curve]:
    net, data = network(batch_norm), images()
    evaluator = Evaluator(net, data, images(40, seed=1))
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    return net, train(net, optimizer, data, Recipe(steps, 10, every, seed=0), evaluator)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_how_often_one_looks_does_not_change_the_training(batch_norm: bool) -> None:
    often, seldom = run(batch_norm, every=1)[0], run(batch_norm, every=20)[0]
    for name, value in often.state_dict().items():
        assert torch.equal(value, seldom.state_dict()[name]), name


def test_the_loop_is_plain_gradient_descent() -> None:
    net, _ = run(False, steps=3)
    twin, data = network(False), images()
    for rows in data_order(90, 3, 10, seed=0):
        x, y = data.batch(rows)
        loss = nn.functional.cross_entropy(twin(x), y)
        for p, g in zip(twin.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True):
            p.data -= 0.5 * g
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_curve_has_first_last_and_every_nth_step() -> None:
    curve = run(True, every=6)[1]
    assert curve.steps == [0, 6, 12, 18, 20]
    assert {len(column) for column in vars(curve).values()} == {5}


def test_accuracy_is_the_share_of_right_answers_in_evaluation_mode() -> None:
    net, curve = run(True)
    data, test = images(), images(40, seed=1)
    moving = copy.deepcopy(net).eval()
    assert curve.moving_accuracy[-1] == pytest.approx((moving(test.inputs()).argmax(1) == test.y).float().mean().item())
    pooled = copy.deepcopy(net)
    pooled.load_state_dict(population(copy.deepcopy(net), data.inputs()), strict=False)
    pooled.eval()
    assert curve.accuracy[-1] == pytest.approx((pooled(test.inputs()).argmax(1) == test.y).float().mean().item())
    assert curve.test_loss[-1] == pytest.approx(nn.functional.cross_entropy(pooled(test.inputs()), test.y).item())


def test_the_network_learns() -> None:
    curve = run(True, every=50, rate=1.0, steps=200)[1]
    assert curve.accuracy[-1] > 0.9 > curve.accuracy[0]


def test_a_diverged_network_says_so() -> None:
    net, data = network(False), images()
    with torch.no_grad():
        net.get_submodule("classifier").weight.fill_(torch.nan)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    curve = train(net, optimizer, data, Recipe(4, 10, 2, 0), Evaluator(net, data, data))
    assert np.isnan(curve.train_loss).all()
