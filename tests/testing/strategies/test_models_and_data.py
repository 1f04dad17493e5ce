"""Recipes of layers, networks, labels and loaders."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import find, given, settings
from torch import nn

from bnprobe.errors import ArgumentError
from bnprobe.testing.strategies import (
    NETWORKS,
    Labels,
    Loader,
    Network,
    NormLayer,
    label_sets,
    loaders,
    networks,
    norm_layers,
)

NAMES = {"Labels": Labels, "Loader": Loader, "Network": Network, "NormLayer": NormLayer}
quick = settings(max_examples=40)


@quick
@given(norm_layers())
def test_layers_have_their_settings_and_print_as_code(recipe):
    module = recipe.module()
    assert type(module).__name__ == recipe.kind
    for name, value in recipe.settings.items():
        found = getattr(module, name)
        assert found == value
    again = eval(repr(recipe), NAMES).module()
    for one, other in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@quick
@given(networks())
def test_networks_run_and_are_the_same_each_time(recipe):
    state = torch.get_rng_state()
    one, other = recipe.model(), eval(repr(recipe), NAMES).model()
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(recipe.input_shape(4))
    assert one(x).shape == (4, 3)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in one.modules())


def test_every_network_is_drawn():
    for kind in NETWORKS:
        assert find(networks(), lambda recipe, kind=kind: recipe.kind == kind) == Network(kind, 2, 1, 0)


@quick
@given(label_sets())
def test_labels(recipe):
    y = recipe.tensor()
    assert y.shape == (recipe.samples,)
    assert 0 <= y.min() <= y.max() < recipe.classes
    counts = torch.bincount(y, minlength=recipe.classes)
    if recipe.kind == "balanced":
        assert counts.max() - counts.min() <= 1
    if recipe.kind == "one_class":
        assert (counts > 0).sum() == 1
    assert torch.equal(eval(repr(recipe), NAMES).tensor(), y)


@quick
@given(loaders())
def test_an_epoch_has_each_sample_once(loader):
    x, y = loader.data()
    parts = list(loader)
    assert len(parts) == len(loader)
    seen = torch.cat([part for part, _ in parts]) if parts else x[:0]
    assert len(seen) == (len(x) // loader.batch * loader.batch if loader.drop_last else len(x))
    assert len({tuple(row.tolist()) for row in seen}) == len(seen)
    pairs = {tuple(row.tolist()): int(label) for row, label in zip(x, y, strict=True)}
    for part, labels in parts:
        assert [pairs[tuple(row.tolist())] for row in part] == labels.tolist()


def labels_of(order, seed=0):
    return [labels.tolist() for _, labels in Loader(Labels(32, 2, seed=1), 4, order, seed=seed)]


def test_orders_are_what_they_are_called():
    assert list(chain(*labels_of("class_sorted"))) == [0] * 16 + [1] * 16
    assert all(len(set(labels)) == 1 for labels in labels_of("domain_alternating"))
    assert [labels[0] for labels in labels_of("domain_alternating")] == [0, 1] * 4
    assert sum(len(set(labels)) == 2 for labels in labels_of("shuffled")) >= 5
    buffered = list(chain(*labels_of("buffered")))
    assert buffered != sorted(buffered)
    assert buffered[:8] == [0] * 8  # the buffer holds 8, and has not met the other class


def test_epochs_differ_where_the_order_is_drawn():
    loader = Loader(Labels(32, 2), 4)
    first, second = ([labels.tolist() for _, labels in loader] for _ in range(2))
    assert first != second
    again = Loader(Labels(32, 2), 4)
    assert [labels.tolist() for _, labels in again] == first
    fixed = Loader(Labels(32, 2), 4, "class_sorted")
    assert [part.tolist() for part, _ in fixed] == [part.tolist() for part, _ in fixed]


def test_classes_are_two_deviations_apart():
    x, y = Loader(Labels(4000, 2), 4).data()
    np.testing.assert_allclose([x[y == k].mean() for k in (0, 1)], [0, 2], atol=0.05)


def test_what_is_refused():
    with pytest.raises(ArgumentError, match=r"kind must be one of BatchNorm1d, .*; got 'Norm'"):
        NormLayer("Norm", 2)
    with pytest.raises(ArgumentError, match=r"kind must be one of linear, .*; got 'deep'"):
        Network("deep")
    with pytest.raises(ArgumentError, match=r"kind must be one of balanced, .*; got 'fair'"):
        Labels(3, kind="fair")
    with pytest.raises(ArgumentError, match=r"order must be one of shuffled, .* and batch at least 1; got 'sorted', 4"):
        Loader(Labels(8), order="sorted")
    with pytest.raises(ArgumentError, match=r"batch at least 1; got 'shuffled', 0"):
        Loader(Labels(8), 0)
