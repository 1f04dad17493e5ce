"""Percentiles are the recorded ones, with the band of their rank error."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from report.believable_run import ERROR, LEVELS, inventory, make_run, quantiles

from bnprobe import plots
from bnprobe.errors import ArgumentError, RunError
from bnprobe.records import Layer


def act(block: int = 0) -> Layer:
    return inventory(3)[3 * block + 2]


def test_percentiles_are_the_recorded_ones_with_the_band_of_their_rank_error(run):
    ax = plots.percentiles(run, "act2", levels=(0.85, 0.15, 0.5))
    grid = quantiles(act(1), "input", 20 / 59, 1)
    drawn = {text.get_text(): line for text, line in zip(ax.get_legend().get_texts(), ax.lines, strict=True)}
    assert list(drawn) == ["85 %", "50 %", "15 %"]
    for level, band in zip((0.85, 0.5, 0.15), ax.collections, strict=True):
        assert drawn[f"{100 * level:g} %"].get_ydata()[20] == pytest.approx(np.interp(level, LEVELS, grid))
        at_20 = band.get_paths()[0].vertices[band.get_paths()[0].vertices[:, 0] == 20, 1]
        assert at_20.min() == pytest.approx(np.interp(level - ERROR, LEVELS, grid))
        assert at_20.max() == pytest.approx(np.interp(level + ERROR, LEVELS, grid))


def test_a_channel_has_no_band_for_no_error_is_recorded(run):
    ax = plots.percentiles(run, "act1", channel=1)
    assert np.isfinite(ax.lines[0].get_ydata()).all()
    assert all(not path.vertices.size for band in ax.collections for path in band.get_paths())
    assert "channel 1" in ax.get_title(loc="left")


def test_several_runs_stand_side_by_side_on_one_scale(run, tmp_path):
    other = make_run(tmp_path / "other", steps=range(10))
    panels = plots.percentiles({"with": run, "without": other}, "act1", "output")
    assert [panel.get_title(loc="left") for panel in panels] == ["with", "without"]
    assert panels[0].get_ylim() == panels[1].get_ylim()
    assert panels[0].figure is panels[1].figure
    assert [panel.get_ylabel() for panel in panels] == ["output of act1", ""]
    given_axes = list(Figure().subplots(1, 2))
    assert plots.percentiles([run, other], "act1", ax=given_axes) == given_axes


def test_many_levels_have_a_colour_each(run):
    ax = plots.percentiles(run, "act1", levels=np.linspace(0.05, 0.95, 19))
    assert len({line.get_color() for line in ax.lines}) == 19


def test_long_runs_are_thinned_and_say_so(tmp_path):
    layer = replace(act(), name="only")
    long = make_run(tmp_path / "long", steps=range(1500), layers=[layer], without=("saturated", "mean", "variance"))
    ax = plots.percentiles(long, "only")
    assert len(ax.lines[0].get_xdata()) == 600
    assert ax.lines[0].get_xdata()[[0, -1]].tolist() == [0, 1499]
    assert ax.get_xlabel() == "training step (600 of 1,500 drawn)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"levels": (0.5, 1.5)}, ArgumentError, r"levels must be probabilities from 0 to 1.*got \(0.5, 1.5\)"),
        ({"levels": ()}, ArgumentError, "levels must be probabilities"),
        ({"ax": []}, ArgumentError, "ax must hold one Axes a run, 1 in all; got 0"),
        ({"layer": "act9"}, RunError, "no layer 'act9'"),
        ({"place": "grad_output"}, RunError, "no quantiles of the grad_output of act1 in phase 'train'"),
        ({"call": 2}, RunError, "no quantiles of the input of act1, call 2"),
        ({"channel": 7}, RunError, r"channel 7; channels with quantiles: \[0, 1\]"),
    ],
)
def test_percentiles_refuse(run, arguments, error, message):
    with pytest.raises(error, match=message):
        plots.percentiles(**{"run": run, "layer": "act1", **arguments})


def test_percentiles_of_no_run_are_refused():
    with pytest.raises(ArgumentError, match="run must be a Run, or at least one"):
        plots.percentiles([], "act1")
