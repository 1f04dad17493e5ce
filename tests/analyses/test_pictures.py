"""Pictures of trials: what stands in them is what was given."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from analyses.pictures import ARM_COLORS, Lines, learning_curves, percentile_band, shares

STEPS = np.array([0, 10, 20])


def test_learning_curves_show_the_mean_and_the_range_over_seeds() -> None:
    ax = Figure().subplots()
    values = np.array([[0.1, 0.5, 0.9], [0.3, 0.5, 0.7]])
    assert learning_curves(ax, {"a": Lines(STEPS, values), "b": Lines(STEPS, values[:1])}, "accuracy") is ax
    assert [line.get_color() for line in ax.lines] == list(ARM_COLORS)
    assert ax.lines[0].get_ydata() == pytest.approx([0.2, 0.5, 0.8])
    assert len(ax.collections) == 1, "one seed has no range"
    assert ax.get_legend() is not None


def test_percentiles_are_named_at_their_ends_and_have_their_band() -> None:
    ax = Figure().subplots()
    curve = np.array([1.0, 2.0, 3.0])
    percentile_band(ax, STEPS, {0.15: (curve, curve - 1, curve + 0.5), 0.5: (curve + 2, curve + 1, curve + 3)}, "k")
    assert [text.get_text() for text in ax.texts] == ["15 %", "50 %"]
    assert [text.xy[1] for text in ax.texts] == [3.0, 5.0]  # type: ignore[attr-defined]
    corners = ax.collections[0].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (0.0, 3.5)


def test_shares_end_at_one_and_leave_out_what_is_not_finite() -> None:
    ax = Figure().subplots()
    shares(ax, np.array([3.0, np.nan, 1.0, 2.0, 4.0]), "k", None)
    assert ax.lines[0].get_xdata() == pytest.approx([1, 2, 3, 4])
    assert ax.lines[0].get_ydata() == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert ax.get_xscale() == "log"
