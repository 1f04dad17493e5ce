"""Loaders, networks and label sets: what is drawn, how it prints, what it shrinks to."""

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as hypothesis_strategies
from torch import nn

from bnprobe.errors import ArgumentError
from bnprobe.testing import strategies as st
from bnprobe.testing.strategies import ORDERS, Batch, Loader, Network  # noqa: F401 - what is printed uses them


@given(st.loaders())
@settings(max_examples=60)
def test_a_loader_has_each_sample_once_and_prints_as_code(recipe):
    again = eval(repr(recipe))
    assert again == recipe
    first, second = list(recipe.loader()), list(again.loader())
    for (x, y), (other, labels) in zip(first, second, strict=True):
        assert torch.equal(x, other)
        assert torch.equal(y, labels)
    seen = torch.cat([x for x, _ in first]) if first else torch.zeros(0, 3)
    whole = recipe.samples // recipe.batch_size
    assert len(seen) == (whole * recipe.batch_size if recipe.drop_last else recipe.samples)
    assert {len(x) for x, _ in first[:whole]} <= {recipe.batch_size}
    rows = {tuple(row) for row in recipe.data.tolist()}
    assert {tuple(row) for row in seen.tolist()} <= rows
    assert len({tuple(row) for row in seen.tolist()}) == len(seen)


@pytest.mark.parametrize("order", ORDERS)
def test_orders(order):
    loader = Loader(order, samples=24, batch_size=4, classes=2).loader()
    first, second = ([y.tolist() for _, y in loader] for _ in range(2))
    pure = [len(set(batch)) == 1 for batch in first]
    assert all(pure) == (order in ("sorted", "alternating"))
    if order == "alternating":
        assert [batch[0] for batch in first] == [0, 1] * 3
    if order == "sorted":
        assert [batch[0] for batch in first] == [0] * 3 + [1] * 3
    if order == "buffered":  # the first batch comes from the first three batches of the sorted data
        assert pure[0]
        assert not all(pure)
    samples = [torch.cat([x for x, _ in loader]) for _ in range(2)]
    assert torch.equal(*samples) == (order in ("fixed", "sorted"))
    assert (first == second) or order in ("shuffled", "buffered")


@given(st.networks())
@settings(max_examples=25)
def test_a_network_runs_and_prints_as_code(recipe):
    again = eval(repr(recipe))
    x = recipe.batch(4).tensor()
    assert eval(repr(recipe.batch(4))) == recipe.batch(4)
    before = torch.get_rng_state()
    net, other = recipe.module(), again()
    assert torch.equal(before, torch.get_rng_state())
    y = net(x)
    assert torch.equal(y, other(x))
    assert y.shape == (4, recipe.outputs)
    norms = [one for one in net.modules() if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)]
    calls = [int(one.num_batches_tracked) for one in norms]
    if recipe.wiring == "shared":
        assert calls == [1, max(recipe.depth, 2)]
    else:
        assert calls == [1] * (1 + recipe.depth)


@given(st.label_sets((3, 9), (2, 3)), st.label_sets((6, 9), (3, 3), balanced=True))
def test_labels(labels, balanced):
    assert 3 <= len(labels) <= 9
    assert set(labels) in ({0, 1}, {0, 1, 2})
    counts = [balanced.count(label) for label in range(3)]
    assert max(counts) - min(counts) <= 1


def test_they_shrink_to_readable_examples():
    assert repr(find(st.loaders(), lambda one: True)) == "Loader('fixed', samples=4, batch_size=1)"
    assert repr(find(st.networks(), lambda one: one.wiring == "residual")) == (
        "Network(wiring='residual', depth=1, width=2, activation='identity')"
    )
    assert find(st.label_sets(), lambda one: True) == (0, 1)
    assert len(find(st.label_sets(), lambda one: one != tuple(sorted(one)))) <= 3
    incomplete = find(st.loaders(), lambda one: one.samples % one.batch_size > 0 and not one.drop_last)
    assert repr(incomplete) == "Loader('fixed', samples=4, batch_size=3)"


def test_words_that_there_are_not():
    with pytest.raises(ArgumentError, match="order must be one of fixed, shuffled, sorted, buffered, alternating; got"):
        Loader("random")
    with pytest.raises(ArgumentError, match="samples, batch_size and classes must be at least 1; got 4, 0 and 2"):
        Loader(samples=4, batch_size=0)
    with pytest.raises(ArgumentError, match="wiring must be one of plain, residual, shared; got 'dense'"):
        Network(wiring="dense")
    with pytest.raises(ArgumentError, match=r"classes must be between 1 and the number of samples; got \(5, 6\) of 4"):
        find(st.label_sets((2, 4), (5, 6)), lambda one: True)
    assert isinstance(st.networks(), hypothesis_strategies.SearchStrategy)
