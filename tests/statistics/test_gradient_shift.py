"""Recorded gradient shifts are those of the weights, and of the optimizer's state, of the step."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import bnprobe
from bnprobe.errors import ArgumentError
from bnprobe.statistics import GradientShift
from tests.cases import batches, mlp, train

BATCH = batches((5, 6), 1, seed=9)[0]


def recorded(measurement, model, steps=5, **arguments):
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    twins = [copy.deepcopy((model, optimizer))]
    data = batches((16, 6), steps)
    with bnprobe.attach(model, measurement, optimizer=optimizer, **arguments) as probe:
        train(model, optimizer, data, lambda: twins.append(copy.deepcopy((model, optimizer))))
    for (x, _), (twin, _) in zip(data, twins, strict=False):  # the buffers that the forward of the step leaves
        twin(x)
    return probe.run, twins


def test_values_are_those_of_the_step():
    run, twins = recorded(GradientShift(None, BATCH, every=2), mlp())
    names = {"gradient_shift": "l2", "gradient_cosine": "cosine", "gradient_norm": "norm"}
    for statistic, name in names.items():
        frame = run.frame(statistic=statistic, place="grad_weight")
        assert sorted(set(frame["step"])) == [0, 2, 4]
        assert set(frame["layer"]) == {"0", "1", "3", "4", "6"}
        for step, rows in frame.groupby("step"):
            found = bnprobe.gradient_shift(twins[step][0], None, BATCH, twins[step][1])
            assert tuple(rows["layer"]) == found.layers
            np.testing.assert_allclose(rows["value"], getattr(found, name), rtol=1e-12)
            np.testing.assert_allclose(
                rows["error"], found.cosine_error if name == "cosine" else found.error, rtol=1e-9
            )
            assert rows["count"].tolist() == found.parameters.tolist()
            assert set(rows["source"]) == {"computed"}
    layers = run.layers.set_index("name")
    assert layers.loc["0", "observed"]
    assert (layers["why"] == "").all()  # a nonlinearity has no parameters, and nobody asked for it
    run, _ = recorded(GradientShift(None, BATCH, layers=["2", "3"]), mlp(), steps=1)
    assert run.layers["why"][2] == "GradientShift: it has no parameters of its own that train"


def test_some_layers_are_measured_and_all_are_updated():
    run, twins = recorded(GradientShift(None, BATCH, layers="6"), mlp(), steps=1)
    found = bnprobe.gradient_shift(*twins[0][:1], None, BATCH, twins[0][1])
    value = run.frame(statistic="gradient_shift")
    assert value["layer"].tolist() == ["6"]
    assert value["value"].item() == pytest.approx(found.l2[-1], rel=1e-12)


def test_without_an_optimizer_nothing_is_measured_and_that_is_said():
    model = mlp()
    with bnprobe.attach(model, GradientShift(None, BATCH)) as probe:
        model(torch.randn(4, 6)).sum().backward()
        with pytest.warns(RuntimeWarning, match=r"gradient shift needs the optimizer: attach\(model, ..., optimizer="):
            probe.step()
    assert probe.run.frame().empty
    assert "needs the optimizer" in probe.run.layers["why"][0]


def test_the_batch_is_copied():
    x, y = BATCH[0].clone(), BATCH[1]
    measurement = GradientShift(None, (x, y))
    x.zero_()
    assert torch.equal(measurement.batch[0], BATCH[0])


def test_what_it_says_of_itself_is_the_same_on_every_rank():
    one, other = (GradientShift(nn.functional.mse_loss, torch.randn(3, 6), every=7, layers="a*") for _ in range(2))
    assert repr(one) == repr(other) == "GradientShift(loss=mse_loss, every=7, layers='a*')"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((None, BATCH[0]), "needs loss"),
        ((None, BATCH, 0), "interval must be an int of at least 1; got 0"),
        ((None, BATCH, "often"), "every must be a positive int or a callable"),
    ],
)
def test_arguments_are_checked_at_the_door(arguments, text):
    with pytest.raises(ArgumentError, match=text):
        GradientShift(*arguments)
