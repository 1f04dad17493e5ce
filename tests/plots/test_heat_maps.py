"""Layers x steps: every cell is a recorded number, a mean of some, or plainly missing."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from report.believable_run import make_run

from bnprobe import plots
from bnprobe.distances import KolmogorovSmirnov, KullbackLeibler
from bnprobe.drift import drift
from bnprobe.plots import style
from bnprobe.plots.heat_map import LayerSteps, draw_heat_map


def drawn_values(ax: Axes) -> np.ma.MaskedArray:
    mesh = ax.collections[0]
    return mesh.get_array().reshape(len(mesh.get_coordinates()) - 1, -1)


def test_drift_map_holds_the_drift_in_the_order_of_the_inventory(run):
    ax = plots.drift_map(run, KolmogorovSmirnov(), reference=30, place="output")
    frame = drift(run, KolmogorovSmirnov(), 30, place="output", standardize=True)
    expected = frame.pivot_table(index="layer", columns="step", values="value")
    names = [name for name in run.layers["name"] if name in expected.index]
    np.testing.assert_allclose(drawn_values(ax), expected.loc[names].to_numpy())
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    assert ax.get_title(loc="left") == "Drift of the output against step 30"
    assert ax.figure.axes[-1].get_xlabel() == "kolmogorov smirnov, in reference sd"


def test_a_layer_that_comes_later_is_missing_before(tmp_path):
    seen = drift(make_run(tmp_path / "run", steps=range(6)), place="input")
    late = seen[(seen["layer"] != "bn1") | (seen["step"] >= 3)]
    data = LayerSteps.from_frame(late, ["bn1", "fc1"])
    assert data.names[0] == "bn1"
    assert np.isnan(data.value[0]).tolist() == [True] * 3 + [False] * 3
    ax = Figure().subplots()
    draw_heat_map(ax, data, "x")
    assert np.ma.getmaskarray(drawn_values(ax))[0].tolist() == [True] * 3 + [False] * 3
    assert to_hex(ax.collections[0].cmap.get_bad()) == style.MISSING


def test_further_calls_of_a_layer_are_rows_of_their_own(run):
    frame = drift(run, place="input", layer="fc1")
    both = LayerSteps.from_frame(pd.concat([frame, frame.assign(call=1, value=7.0)]), run.layers["name"].to_list())
    assert both.names == ["fc1", "fc1 (call 1)"]
    assert set(both.value[1]) == {7.0}


def test_infinite_distances_take_the_colour_beyond_the_scale(tmp_path):
    data = LayerSteps(["a"], np.arange(3), np.array([[1.0, np.inf, np.nan]]))
    ax = Figure().subplots()
    draw_heat_map(ax, data, KullbackLeibler().name)
    mesh = ax.collections[0]
    colors = mesh.cmap(mesh.norm(drawn_values(ax)))[0]
    assert to_hex(colors[1]) == to_hex(mesh.cmap(2.0))
    assert to_hex(colors[2]) == style.MISSING


@given(
    arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.floats(-1, 1) | st.just(np.nan)),
    st.integers(1, 12),
)
def test_binning_averages_what_is_there(values, most):
    data = LayerSteps(["x"] * len(values), np.arange(values.shape[1]), values)
    binned, size = data.binned(most)
    assert binned.value.shape[1] <= most
    for index, step in enumerate(binned.steps):
        for row, cell in zip(values[:, step : step + size], binned.value[:, index], strict=True):
            there = row[~np.isnan(row)]
            assert cell == pytest.approx(there.mean(), abs=1e-12) if there.size else np.isnan(cell)
