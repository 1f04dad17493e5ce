"""Pictures of gradient shift and landscape show the numbers of the run."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from report.believable_run import with_measurements

from bnprobe import plots
from bnprobe.errors import RunError


def test_shifts_are_colours_from_no_shift_down(run):
    made = with_measurements(run)
    ax = plots.gradient_shift(made)
    (mesh,) = ax.collections
    frame = made.frame(statistic="gradient_cosine")
    wide = frame.pivot_table(index="layer", columns="step", values="value", observed=True, sort=False)
    np.testing.assert_allclose(mesh.get_array(), wide.to_numpy())
    assert mesh.get_clim() == (pytest.approx(frame["value"].min()), 1.0)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(wide.index)
    (mesh,) = plots.gradient_shift(made, statistic="gradient_shift").collections
    assert mesh.get_clim()[0] == 0


def test_the_landscape_is_a_band_between_the_lengths(run):
    ax = plots.landscape(with_measurements(run))
    corners = ax.collections[0].get_paths()[0].vertices
    assert corners[:, 1].max() == 4
    assert corners[:, 1].min() == pytest.approx(1e-5)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 2.5 * 10.0 ** -np.arange(6))
    assert ax.get_yscale() == "log"
    assert plots.landscape(with_measurements(run, [0, 10])).get_yscale() == "linear"


def test_two_runs_on_the_same_axes_have_a_legend(run):
    ax = Figure().subplots()
    for name, color in (("one", "red"), ("other", "blue")):
        plots.landscape(with_measurements(run), ax, statistic="gradient_change", color=color, label=name)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "other"]
    assert [line.get_color() for line in ax.lines] == ["red", "blue"]


def test_what_is_missing_is_said(run):
    with pytest.raises(RunError, match=r"no statistic 'gradient_cosine'; attach with bnprobe.statistics.GradientShift"):
        plots.gradient_shift(run)
    with pytest.raises(RunError, match="the run has no 'gradient_cosine' in phase 'eval'"):
        plots.gradient_shift(with_measurements(run), phase="eval")
    with pytest.raises(
        RunError, match=r"no landscape 'loss' \(of loss, .*\); attach with bnprobe.statistics.Landscape"
    ):
        plots.landscape(run)
    with pytest.raises(RunError, match="no landscape 'mean'"):
        plots.landscape(run, statistic="mean")
    with pytest.raises(RunError, match="no channel values of 'loss' at place 'loss' in phase 'eval'"):
        plots.landscape(with_measurements(run), phase="eval")
