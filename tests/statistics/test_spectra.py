"""Recorded spectra are those that bnprobe.spectrum measures of the weights that the step's forward used."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import bnprobe
from bnprobe.errors import ArgumentError, SelectionError
from bnprobe.hooks.sites import find_sites
from bnprobe.measures.jacobian import Spectrum
from bnprobe.statistics import Occasion, Spectra
from bnprobe.statistics.spectra import _READ
from tests.cases import CASES, batches, mlp, train
from tests.laws.test_no_observer_effect import assert_bitwise, run

BATCH = torch.randn(5, 6, generator=torch.Generator().manual_seed(9))


def recorded(measurement, model, steps=5, **arguments):
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    twins = [copy.deepcopy(model)]
    data = batches((16, 6), steps)
    with bnprobe.attach(model, measurement, optimizer=optimizer, **arguments) as probe:
        train(model, optimizer, data, lambda: twins.append(copy.deepcopy(model)))
    for (x, _), twin in zip(data, twins, strict=False):  # the buffers that the forward of the step leaves
        twin(x)
    return probe.run, twins


def test_values_are_those_of_the_weights_of_the_step():
    run, twins = recorded(Spectra(BATCH, every=2, k=None), mlp())
    for layer in ("0", "1", "3", "4", "6"):
        values = run.channels(layer, "singular_value", place="jacobian")
        errors = run.channels(layer, "singular_value", place="jacobian", error=True)
        assert list(values.index) == [0, 2, 4]
        for step in values.index:
            found = bnprobe.spectrum(twins[step], BATCH, layer)
            np.testing.assert_allclose(values.loc[step], found.values.mean(0), rtol=1e-12)
            np.testing.assert_allclose(errors.loc[step], found.error.mean(0), rtol=1e-9, atol=1e-300)
            frame = run.frame(layer=layer, place="jacobian").set_index(["step", "statistic"])
            row = frame.loc[step]
            assert row.loc["singular_max", "value"] == pytest.approx(found.values.max(), rel=1e-12)
            assert row.loc["singular_min", "value"] == pytest.approx(found.values.min(), rel=1e-12, abs=1e-300)
            assert row.loc["singular_value", "value"] == pytest.approx(found.values.mean(), rel=1e-12)
            assert row.loc["mean_square", "value"] == pytest.approx((found.values**2).mean(), rel=1e-12)
            near = ((found.values >= 0.9) & (found.values <= 1.1)).mean()
            assert row.loc["share_near_one", "value"] == pytest.approx(near)
            assert set(row["count"]) == {found.values.size}
            assert set(row["source"]) == {"computed"}


def test_the_batch_as_a_whole_where_samples_interact():
    run, twins = recorded(Spectra(BATCH, k=None), mlp(), steps=1)
    values = run.channels("1", "singular_value", place="jacobian").loc[0]
    assert len(values) == 5 * 12  # one Jacobian of the whole batch
    assert (values.to_numpy()[-24:] < 1e-3).all()  # two of each channel's five are (nearly) zero
    assert len(run.channels("3", "singular_value", place="jacobian").loc[0]) == 12
    frame = run.frame(statistic="condition_number", layer="2", place="jacobian")
    found = bnprobe.spectrum(twins[0], BATCH, "2")
    assert frame["value"].item() == pytest.approx(found.condition_number.max())


def test_some_values_only():
    run, twins = recorded(Spectra(BATCH, layers="3", k=(2, 1)), mlp(), steps=1)
    found = bnprobe.spectrum(twins[0], BATCH, "3")
    values = run.channels("3", "singular_value", place="jacobian").loc[0].to_numpy()
    np.testing.assert_allclose(values, found.values[0, [0, 1, -1]], rtol=1e-6)
    assert run.frame(statistic="singular_value").empty  # no mean of all values is known
    assert "share_near_one" not in run.statistics
    ratio = run.frame(statistic="condition_number")["value"].item()
    assert ratio == pytest.approx(found.condition_number[0], rel=1e-6)
    largest, _ = recorded(Spectra(BATCH, layers="3", k=2), mlp(), steps=1)
    assert {"singular_max", "mean_square"} <= set(largest.statistics)
    assert not {"singular_min", "condition_number"} & set(largest.statistics)


def spectrum_of(values, error):
    values, error = np.array(values, np.float64), np.array(error, np.float64)
    n = values.shape[1]
    return Spectrum(values, error, "dense", (n, n), False, (n, 0), squares=(values**2).sum(1))


def test_errors_reach_what_the_values_may_be():
    """Each number of values anywhere within their errors is within the number's error."""
    generator = np.random.default_rng(0)
    values = np.sort(generator.uniform(0.5, 1.5, (3, 8)), 1)[:, ::-1]
    error = generator.uniform(0, 0.05, (3, 8))
    told = spectrum_of(values, error)
    for _ in range(200):
        other = spectrum_of(np.sort(values + error * generator.uniform(-1, 1, error.shape), 1)[:, ::-1], error)
        for name, read in _READ.items():
            if name not in ("singular_max", "singular_min"):  # sorting anew may pass on a neighbour's error
                value, off = read(told)
                assert abs(read(other)[0] - value) <= off + 1e-12, name
    assert _READ["condition_number"](spectrum_of([[1.0, 0.01]], [[0.0, 0.02]])) == (100.0, np.inf)
    assert _READ["condition_number"](spectrum_of([[1.0, 0.0]], [[0.0, 0.0]])) == (np.inf, np.inf)
    assert _READ["share_near_one"](spectrum_of([[1.0, 0.9001, 1.2, 0.1]], [[0.01] * 4])) == (0.5, 0.25)


def test_modes_are_told_apart():
    model = mlp().eval()
    run, twins = recorded(Spectra(BATCH, layers="1", k=None), model, steps=1)
    assert set(run.frame(place="jacobian")["phase"]) == {"eval"}
    values = run.channels("1", "singular_value", place="jacobian", phase="eval").loc[0].to_numpy()
    np.testing.assert_allclose(values, bnprobe.spectrum(twins[0], BATCH, "1").values.mean(0), rtol=1e-12)


def test_a_layer_without_a_jacobian_is_listed_with_the_reason():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 6), nn.Flatten(), nn.Linear(12, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    tokens = torch.randint(7, (4, 2))
    with bnprobe.attach(model, Spectra(tokens), optimizer=optimizer) as probe:
        model(tokens).sum().backward()
        optimizer.step()
    layers = probe.run.layers.set_index("name")
    assert "Spectra: not measured: the input of '0' is int64: not differentiable" in layers.loc["0", "why"]
    assert layers.loc["2", "why"] == ""
    assert set(probe.run.frame(place="jacobian")["layer"]) == {"2"}


def test_segments_and_the_whole_model():
    model = mlp()
    run, twins = recorded(Spectra(BATCH, every=2, k=None, segments=[("0", "3"), ("3", "6"), None]), model, steps=3)
    frame = run.frame(place="jacobian")
    names = {"0 -> 3": ("0", "3"), "3 -> 6": ("3", "6"), "input -> output": None}
    assert set(frame["layer"]) == set(names)  # and no single layer
    for name, segment in names.items():
        values = run.channels(name, "singular_value", place="jacobian")
        assert list(values.index) == [0, 2]
        for step in values.index:
            found = bnprobe.spectrum(twins[step], BATCH, segment)
            np.testing.assert_allclose(values.loc[step], found.values.mean(0), rtol=1e-9, atol=found.error.max())
    layers = run.layers.set_index("name")
    assert layers.loc[list(names), "observed"].all()
    assert (layers.loc[list(names), "why"] == "").all()
    assert layers.loc["0 -> 3", "kind"] == "Linear"
    assert layers.loc["input -> output", "kind"] == "Sequential"
    assert not layers.loc["0", "why"]


def test_segments_leave_the_run_as_it_is():
    model, shape = CASES["cnn"]
    arguments = (model, batches(shape, 5), lambda p: torch.optim.Adam(p, 0.01), 5)
    names = [name for name, module in model().named_modules() if not list(module.children())]
    measured = Spectra(batches((4, *shape[1:]), 1)[0][0], every=2, k=2, segments=[(names[0], names[2]), None])
    assert_bitwise(run(*arguments), run(*arguments, statistics=(measured,), every=2))


def test_segments_beside_layers():
    run, _ = recorded(Spectra(BATCH, layers=("3", "4"), k=2, segments=[("3", "4")]), mlp(), steps=1)
    frame = run.frame(statistic="singular_max", place="jacobian").set_index("layer")
    assert set(frame.index) == {"3", "4", "3 -> 4"}
    assert frame.loc["3 -> 4", "value"] <= frame.loc["3", "value"] * frame.loc["4", "value"] * (1 + 1e-6)


def test_a_segment_that_cannot_be_measured_is_listed_with_the_reason():
    run, _ = recorded(Spectra(BATCH, segments=[("3", "0"), ("0", "1")], k=1), mlp(), steps=1)
    layers = run.layers.set_index("name")
    assert "in this forward the output of '0' does not come after the input of '3'" in layers.loc["3 -> 0", "why"]
    assert set(run.frame(place="jacobian")["layer"]) == {"0 -> 1"}


def test_the_batch_is_copied_and_goes_where_the_model_is():
    batch = BATCH.clone()
    measurement = Spectra((batch,), k=None)
    batch.zero_()
    model = mlp()
    readings = measurement.measure(Occasion(0, model, find_sites(model, "1")))
    np.testing.assert_allclose(
        readings.values["singular_max"].value[0], bnprobe.spectrum(model, BATCH, "1").values.max(), rtol=1e-12
    )


def test_what_it_says_of_itself_is_the_same_on_every_rank():
    def chosen(name, module):
        return True

    one, other = (Spectra(torch.randn(3, 6), every=7, layers=chosen) for _ in range(2))
    assert repr(one) == repr(other)
    assert "every=7" in repr(one)
    assert "chosen" in repr(one)
    assert "tensor" not in repr(one)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("x",), "batch must be the model's input: tensors; got str"),
        ((BATCH, 0), "interval must be an int of at least 1; got 0"),
        ((BATCH, "often"), "every must be a positive int or a callable"),
        ((BATCH, 1, None, 0), "k must be None, a positive int or two ints"),
        ((BATCH, 1, None, 3, None, None, 1, 0, ("0", "3")), "segments must be pairs of layers' names, or None for"),
        ((BATCH, 1, None, 3, "row"), 'per must be None, "sample" or "batch"; got \'row\''),
    ],
)
def test_arguments_are_checked_at_the_door(arguments, text):
    with pytest.raises(ArgumentError, match=text.replace("(", r"\(")):
        Spectra(*arguments)


def test_layers_that_are_not_there_are_an_error_when_attaching():
    with pytest.raises(SelectionError, match="nope"):
        bnprobe.attach(mlp(), Spectra(BATCH, layers="nope"))
    with pytest.raises(SelectionError, match="there is no 'nope'; near names"):
        bnprobe.attach(mlp(), Spectra(BATCH, segments=[("0", "nope")]))
