"""Recorded landscapes are those of the weights of the step, under the name of the model as a whole."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import bnprobe
from bnprobe.errors import ArgumentError
from bnprobe.statistics import Landscape
from tests.cases import batches, mlp, train

BATCH = batches((5, 6), 1, seed=9)[0]


def test_values_are_those_of_the_step():
    model, data = mlp(), batches((16, 6), 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    twins = [copy.deepcopy(model)]
    with bnprobe.attach(model, Landscape(None, BATCH, (0.1, 0.5), every=3), layers="3", optimizer=optimizer) as probe:
        train(model, optimizer, data, lambda: twins.append(copy.deepcopy(model)))
    run = probe.run
    assert run.layers["name"].tolist() == ["3", ""]
    assert run.layers.set_index("name").loc["", "observed"]
    for step in (0, 3):
        twins[step](data[step][0])  # the buffers that the forward of the step leaves
        found = bnprobe.landscape(twins[step], None, BATCH, (0.1, 0.5))
        rows = run.frame(layer="", place="loss").set_index(["step", "statistic"]).loc[step]
        expected = {
            "loss": (found.loss, found.loss_error),
            "loss_range": (np.ptp(found.losses), 2 * found.loss_error),
            "gradient_norm": (found.gradient_norm, found.gradient_error),
            "gradient_change": (found.gradient_changes.max(), found.gradient_error),
            "effective_smoothness": (found.effective_smoothness, found.effective_smoothness_error),
        }
        assert set(rows.index) == set(expected)
        for name, (value, error) in expected.items():
            assert rows.loc[name, "value"] == pytest.approx(value, rel=1e-9, abs=1e-12), name
            assert rows.loc[name, "error"] == pytest.approx(error, rel=1e-6), name
        assert set(rows["count"]) == {sum(one.numel() for one in model.parameters())}
        for name, values, error in (
            ("loss", found.losses, found.loss_error),
            ("gradient_change", found.gradient_changes, found.gradient_error),
            ("effective_smoothness", found.ratios, found.gradient_error / found.distances),
        ):
            np.testing.assert_allclose(run.channels("", name, place="loss").loc[step], values, rtol=1e-9)
            off = run.channels("", name, place="loss", error=True).loc[step]
            np.testing.assert_allclose(off, np.broadcast_to(error, 2), rtol=1e-6)
    assert set(run.frame(place="loss")["step"]) == {0, 3}


def test_what_it_says_of_itself_and_the_default_lengths():
    one, other = (Landscape(nn.functional.mse_loss, torch.randn(3, 6)) for _ in range(2))
    assert repr(one) == repr(other)
    assert repr(one).startswith("Landscape(loss=mse_loss, lengths=(0.05, ")
    assert repr(one).endswith("0.4), every=100)")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((None, BATCH[0]), "needs loss"),
        ((None, BATCH, (0.0,)), "lengths must be positive numbers"),
        ((None, BATCH, None, 0), "interval must be an int of at least 1; got 0"),
    ],
)
def test_arguments_are_checked_at_the_door(arguments, text):
    with pytest.raises(ArgumentError, match=text):
        Landscape(*arguments)
