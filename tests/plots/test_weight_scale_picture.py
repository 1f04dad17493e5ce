"""The picture of scale-invariant weights shows means of the run's numbers."""

import numpy as np
import pytest
from report.believable_run import with_weights

from bnprobe import plots
from bnprobe.errors import RunError


def of(run, statistic, layer):
    frame = run.frame(statistic=statistic, layer=layer)
    return frame.sort_values("step")["value"].to_numpy()


def test_a_short_run_is_drawn_step_by_step_and_a_long_one_in_means(run):
    short, long = with_weights(run, steps=40), with_weights(run)
    layer = run.layers["name"][0]
    for made in (short, long):
        left, right = plots.weight_scale(made)
        for ax, statistic, law, power in (
            (left, "weight_norm", "equilibrium_norm", 4),
            (right, "angular_update", "equilibrium_angle", 2),
        ):
            line, dashed = ax.lines[:2]
            for drawn, name in ((line, statistic), (dashed, law)):
                parts = np.array_split(of(made, name, layer), min(60, 40 if made is short else 240))
                np.testing.assert_allclose(drawn.get_ydata(), [np.mean(one**power) ** (1 / power) for one in parts])
            assert len(ax.lines) == 6
            labels = [text.get_text() for text in ax.get_legend().get_texts()]
            assert labels == [*run.layers["name"][:3], "equilibrium"]


def test_some_layers_alone(run):
    layer = run.layers["name"][1]
    left, _ = plots.weight_scale(with_weights(run), layers=[layer])
    assert len(left.lines) == 2


def test_what_is_missing_is_said(run):
    with pytest.raises(
        RunError, match=r"no angular updates of weights; attach with bnprobe.statistics.WeightScale\(\)"
    ):
        plots.weight_scale(run)
    with pytest.raises(RunError, match="the run has no scale-invariant weight of 'head'"):
        plots.weight_scale(with_weights(run), layers=["head"])
