"""Share of values in the flat region of a nonlinearity, over training."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from bnprobe.errors import RunError
from bnprobe.plots import style
from bnprobe.plots.heat_map import LayerSteps, draw_heat_map
from bnprobe.store import Run

__all__ = ["saturation"]

_MOST_LINES = 8  # as many as there are colours to tell apart
_MOST_POINTS = 600
_MEANING = {"saturated": "inputs in the flat region", "dead": "channels without a positive output"}


def saturation(
    run: Run, ax: Axes | None = None, *, statistic: str = "saturated", phase: str = "train", lines: bool | None = None
) -> Axes:
    """Draws the share of saturated inputs (or of dead channels) of every nonlinearity over training.

    Up to eight layers are lines, shares of saturated inputs with their recorded error as a band; more are a heat map.

    Args:
        run: a run with the statistic ``Saturation``.
        ax: where to draw; None makes a new figure.
        statistic: ``saturated`` (sigmoid, tanh) or ``dead`` (ReLU).
        phase: ``train`` or ``eval``.
        lines: True for lines, False for a heat map, whatever the number of layers.

    Returns:
        The Axes.

    Raises:
        RunError: the run has no such shares.
    """
    if statistic not in run.statistics:
        raise RunError(f"the run has no statistic {statistic!r}; it has {', '.join(run.statistics)}")
    frame = run.frame(statistic=statistic, phase=phase)
    if frame.empty:
        raise RunError(f"the run has no {statistic!r} shares in phase {phase!r}")
    order = run.layers["name"].to_list()
    data = LayerSteps.from_frame(frame, order)
    as_lines = len(data.names) <= _MOST_LINES if lines is None else lines
    meaning = f"share of {_MEANING.get(statistic, statistic)}"
    # The error of "dead" is in another unit: how many positive values a dead channel may have.
    error = frame["error"].fillna(0.0) if statistic == "saturated" else 0.0
    errors = LayerSteps.from_frame(frame.assign(value=error), order)
    with style.canvas(ax, height=3.4 if as_lines else 0.6 + style.layer_height(len(data.names))) as drawn:
        style.title(drawn, style.sentence(meaning))
        if as_lines:
            _draw_lines(drawn, data, errors.value)
        else:
            draw_heat_map(drawn, data, meaning, limits=(0.0, 1.0))
    return drawn


def _draw_lines(ax: Axes, data: LayerSteps, errors: NDArray[np.float64]) -> None:
    kept = style.thin(len(data.steps), _MOST_POINTS)
    steps = data.steps[kept]
    handles: list[Artist] = []
    for value, error, color in zip(data.value[:, kept], errors[:, kept], style.colors(len(data.names)), strict=True):
        ax.fill_between(steps, value - error, value + error, color=color, alpha=0.2, linewidth=0)
        handles += ax.plot(steps, value, color=color)
    style.step_axis(ax, data.steps, len(kept))
    ax.set_ylim(-0.02, 1.02)  # so that lines at 0 and 1 do not lie under the frame
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    ax.set_ylabel("share")
    style.legend_above(ax, handles, data.names)
