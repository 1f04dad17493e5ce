"""The loss along its gradient: closed forms of quadratics, a naive twin, and no trace left."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bnprobe
from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.measures.landscape import DEFAULT_LENGTHS
from tests.cases import CASES, batches


class Point(nn.Module):
    """Weights, in two pieces."""

    def __init__(self, start):
        super().__init__()
        half = len(start) // 2
        self.first, self.last = nn.Parameter(start[:half].clone()), nn.Parameter(start[half:].clone())

    def forward(self):
        return torch.cat([self.first, self.last])


def quadratic(model, batch):
    matrix, vector = batch
    w = model()
    return w @ matrix @ w / 2 + vector @ w


def symmetric(size, seed, spectrum=None):
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    values = torch.randn(size, generator=generator, dtype=torch.float64) if spectrum is None else spectrum
    return q @ torch.diag(values) @ q.T, torch.randn(size, generator=generator, dtype=torch.float64)


@given(st.integers(2, 12), st.integers(0, 999), st.lists(st.floats(1e-3, 10), min_size=1, max_size=5))
def test_a_quadratic_has_a_closed_form(size, seed, lengths):
    matrix, vector = symmetric(size, seed)
    model = Point(torch.randn(size, dtype=torch.float64))
    w = model().detach()
    found = bnprobe.landscape(model, quadratic, (matrix, vector), lengths)
    g = matrix @ w + vector
    step = torch.tensor(lengths, dtype=torch.float64)[:, None]
    there = w - step * g
    np.testing.assert_allclose(
        found.losses, ((there @ matrix) * there).sum(1) / 2 + there @ vector, rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(found.gradient_changes, (step * (matrix @ g)).norm(dim=1), rtol=1e-9)
    np.testing.assert_allclose(found.distances, (step * g).norm(dim=1), rtol=1e-12)
    assert found.loss == pytest.approx(float(w @ matrix @ w / 2 + vector @ w), abs=1e-9)
    assert found.gradient_norm == pytest.approx(float(g.norm()))
    assert found.loss_range == (found.losses.min(), found.losses.max())
    assert found.predictiveness == (found.gradient_changes.min(), found.gradient_changes.max())
    ratio = float((matrix @ g).norm() / g.norm())
    assert found.effective_smoothness == pytest.approx(ratio, rel=1e-9)
    assert ratio <= float(torch.linalg.matrix_norm(matrix, 2)) * (1 + 1e-12)
    assert found.frame().columns.tolist() == ["length", "distance", "loss", "gradient_change", "ratio"]
    assert found.frame()["length"].tolist() == lengths


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_as_from_copies_of_the_model_moved_by_hand(case, training):
    model, (x, y) = CASES[case][0]().double().train(training), batches(CASES[case][1], 1)[0]

    def loss(net, pair):
        torch.manual_seed(5)
        return F.cross_entropy(net(pair[0]), pair[1])

    def at(length):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for one, direction in zip(twin.parameters(), start, strict=True):
                one.sub_(length * direction)
        value = loss(twin, pair)
        return value.item(), torch.autograd.grad(value, list(twin.parameters()))

    pair = (x.double(), y)
    twin = copy.deepcopy(model)
    start = torch.autograd.grad(loss(twin, pair), list(twin.parameters()))
    found = bnprobe.landscape(model, loss, pair)
    assert tuple(found.lengths) == DEFAULT_LENGTHS
    assert (found.lengths[0], found.lengths[-1]) == (0.05, 0.4)
    for place, length in enumerate(found.lengths):
        value, gradient = at(length)
        gap = sum(float((a - b).square().sum()) for a, b in zip(start, gradient, strict=True)) ** 0.5
        assert found.losses[place] == pytest.approx(value, rel=1e-12)
        assert found.gradient_changes[place] == pytest.approx(gap, rel=1e-9)


def test_single_precision_is_off_by_no_more_than_it_says():
    for case, (make, shape) in CASES.items():
        model, (x, y) = make(), batches(shape, 1)[0]
        found = bnprobe.landscape(model, None, (x, y))
        exact = bnprobe.landscape(copy.deepcopy(model).double(), None, (x.double(), y))
        assert (abs(found.losses - exact.losses) <= 4 * found.loss_error).all(), case
        assert (abs(found.gradient_changes - exact.gradient_changes) <= 4 * found.gradient_error).all(), case
        gap = abs(found.effective_smoothness - exact.effective_smoothness)
        assert gap <= 4 * found.effective_smoothness_error
        assert 0 < exact.loss_error < 1e-12
        assert found.effective_smoothness_error < 0.01 * found.effective_smoothness


@pytest.mark.parametrize("case", CASES)
def test_nothing_changes_also_where_the_loss_raises(case):
    model, (x, y) = CASES[case][0](), batches(CASES[case][1], 1)[0]
    F.cross_entropy(model(x), y).backward()
    before = [one.detach().clone() for one in (*model.state_dict().values(), *(p.grad for p in model.parameters()))]
    stream, calls = torch.get_rng_state(), []

    def loss(net, pair):
        calls.append(1)
        if len(calls) == 18:
            raise ZeroDivisionError
        return F.cross_entropy(net(pair[0] + torch.rand(1)), pair[1])

    bnprobe.landscape(model, loss, (x, y))
    assert len(calls) == 2 + 8 + (case == "cnn")  # once more where there is a group norm on a CPU
    with pytest.raises(ZeroDivisionError):
        bnprobe.landscape(model, loss, (x, y))
    after = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), stream)


def test_a_loss_that_diverges_shows_it():
    model = Point(torch.tensor([0.0, 0.0]))
    found = bnprobe.landscape(model, lambda net, _: net().exp().sum() - net().sum() * 1e6, None, [1e-6, 1.0])
    assert np.isfinite(found.losses[0])
    assert found.losses[1] == np.inf
    assert found.loss_range[1] == np.inf
    assert not np.isfinite(found.effective_smoothness)


def test_without_a_gradient_there_is_no_ratio():
    found = bnprobe.landscape(Point(torch.zeros(4)), lambda net, _: net().square().sum(), None, [1.0])
    assert found.gradient_norm == 0
    assert np.isnan(found.effective_smoothness)
    assert np.isnan(found.effective_smoothness_error)


@pytest.mark.parametrize("lengths", [[], [0.1, -1.0], [np.nan], ["a"], 0.0])
def test_lengths_are_checked(lengths):
    with pytest.raises(ArgumentError, match="lengths must be positive numbers, at least one; got"):
        bnprobe.landscape(Point(torch.ones(2)), lambda net, _: net().sum(), None, lengths)


def test_refusals():
    with pytest.raises(ArgumentError, match="needs loss"):
        bnprobe.landscape(nn.Linear(2, 2), None, torch.ones(2))
    x = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(NotMeasuredError, match="the loss depends on no parameter that trains"):
        bnprobe.landscape(nn.Linear(2, 2), lambda net, batch: batch.sum(), x)
