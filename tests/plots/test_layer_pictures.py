"""Moments, running gaps, saturation and distributions around norm layers show the numbers of the run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure
from report.believable_run import LEVELS, inventory, make_run, moments_of, quantiles

from bnprobe import plots
from bnprobe.errors import ArgumentError, RunError
from bnprobe.plots.before_after import _density
from bnprobe.records import DEFAULT_LEVELS


def test_moments_are_the_recorded_ones(run):
    ax = plots.moments_over_depth(run, (0, 59))
    grid = quantiles(inventory(3)[2], "output", 1.0, 0)
    mean, variance = moments_of(grid)
    row = ax.get_yticklabels()
    position = [label.get_text() for label in row].index("act1")
    assert ax.lines[1].get_xdata()[position] == pytest.approx(mean)
    low, high = ax.collections[1].get_segments()[position][:, 0]
    assert (high - low) / 2 == pytest.approx(variance**0.5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["step 0", "step 59"]


def test_moments_at_a_step_that_was_not_recorded_name_the_nearest(run):
    with pytest.raises(RunError, match=r"step 99 was not recorded; the nearest recorded steps are \[57, 58, 59\]"):
        plots.moments_over_depth(run, 99)


def test_moments_that_explode_with_depth_get_a_logarithmic_axis(tmp_path):
    deep = make_run(tmp_path / "deep", steps=range(2), blocks=80)
    assert plots.moments_over_depth(deep).get_xscale() == "symlog"
    shallow = make_run(tmp_path / "shallow", steps=range(2), blocks=1)
    assert plots.moments_over_depth(shallow).get_xscale() == "linear"


def test_gap_dot_is_the_last_step_and_bar_the_middle_of_all(run):
    ax = plots.running_gap(run)
    gaps = run.frame(statistic="variance_gap", layer="bn2")["value"].to_numpy()
    assert ax.lines[1].get_xdata()[1] == pytest.approx(gaps[-1])
    assert ax.collections[1].get_segments()[1][:, 0] == pytest.approx(np.quantile(gaps, [0.05, 0.95]))


def test_saturation_is_lines_for_few_layers_and_a_map_for_many(run, tmp_path):
    few = plots.saturation(run)
    assert [line.get_ydata()[-1] for line in few.lines] == pytest.approx([0.66, 0.6, 0.54])
    assert few.get_ylim() == (-0.02, 1.02)
    band = few.collections[0].get_paths()[0].vertices
    assert np.ptp(band[band[:, 0] == 59, 1]) == pytest.approx(2 * 0.02)
    many = plots.saturation(make_run(tmp_path / "many", steps=range(5), blocks=9))
    assert not many.lines
    assert many.collections[0].get_array().shape == (9, 5)


def test_before_and_after_show_input_and_output(run):
    before, after = plots.before_after(run, "bn2")
    assert [before.get_title(loc="left"), after.get_title(loc="left")] == ["Before bn2", "After bn2"]
    assert [label.get_text() for label in before.get_yticklabels()][::8] == ["0", "59"]
    grid = quantiles(inventory(3)[4], "input", 0.0, 1)
    peak = before.lines[0].get_xdata()[np.argmin(before.lines[0].get_ydata())]
    assert peak == pytest.approx(np.interp(0.5, LEVELS, grid), abs=1.0)
    assert before.get_xlim()[1] > 1.5 * after.get_xlim()[1]


def test_before_and_after_need_two_axes_and_quantiles(run, bare):
    with pytest.raises(ArgumentError, match="axes must be two Axes, for input and output; got 1"):
        plots.before_after(run, "bn1", [Figure().subplots()])
    with pytest.raises(RunError, match="no quantiles of the input of bn1"):
        plots.before_after(bare, "bn1")


@given(arrays(np.float64, len(DEFAULT_LEVELS), elements=st.floats(-50, 50)).map(np.sort))
def test_density_is_a_share_of_the_values(grid):
    edges = np.linspace(-51, 51, 61)
    density = _density(grid, np.array(DEFAULT_LEVELS), edges)
    assert (density >= 0).all()
    assert density.sum() == pytest.approx(1.0, abs=1e-9)


def test_density_of_a_uniform_distribution_is_flat_and_of_nothing_is_zero():
    levels = np.array(DEFAULT_LEVELS)
    edges = np.linspace(0, 1, 21)
    np.testing.assert_allclose(_density(levels, levels, edges), 1 / 20)
    assert not _density(np.full(65, np.nan), levels, edges).any()
