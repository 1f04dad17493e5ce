"""How far batch-norm layers' running statistics are from those of the batches."""

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from bnprobe.errors import RunError
from bnprobe.plots import style
from bnprobe.store import Run

__all__ = ["running_gap"]

_GAPS = {"mean_gap": "mean: |difference| / sd", "variance_gap": "variance: |log ratio|"}
_RANGE = (0.05, 0.95)  # ours: what a gap usually is, without the first steps after initialisation


def running_gap(run: Run, ax: Axes | None = None, *, phase: str = "train") -> Axes:
    """Draws the gap between batch and running statistics of every batch-norm layer.

    A dot is the last recorded step, a bar runs from the 5th to the 95th percentile over the recorded steps.
    Both gaps are means over channels of absolute values: of (batch mean - running mean) / standard deviation,
    and of log(batch variance / running variance).

    Args:
        run: a run with the statistic ``RunningGap``.
        ax: where to draw; None makes a new figure.
        phase: ``train`` or ``eval``.

    Returns:
        The Axes.

    Raises:
        RunError: the run has no gaps.
    """
    there = [gap for gap in _GAPS if gap in run.statistics]
    if not there:
        raise RunError("the run has no statistic 'mean_gap' or 'variance_gap'")
    frame = run.frame(statistic=there, phase=phase)
    frame = frame[frame["call"] == 0]
    if frame.empty:
        raise RunError(f"the run has no gaps in phase {phase!r}")
    recorded = set(frame["layer"])
    names = [name for name in run.layers["name"] if name in recorded]
    with style.canvas(ax, height=style.layer_height(len(names))) as drawn:
        style.title(drawn, "Running against batch statistics")
        _draw(drawn, frame, names, there)
    return drawn


def _draw(ax: Axes, frame: pd.DataFrame, names: list[str], gaps: list[str]) -> None:
    depth = np.arange(len(names))
    handles: list[Artist] = []
    for index, gap in enumerate(gaps):
        of_layer = frame[frame["statistic"] == gap].groupby("layer", observed=True)["value"]
        low, high = (of_layer.quantile(level).reindex(names).to_numpy(np.float64) for level in _RANGE)
        last = of_layer.last().reindex(names).to_numpy(np.float64)
        row = depth + 0.26 * (index - (len(gaps) - 1) / 2)
        ax.hlines(row, low, high, color=style.PALETTE[index], linewidth=1.5, alpha=0.6)
        ax.plot(last, row, "o", color=style.PALETTE[index], markersize=3.0)
        handles.append(style.dot(style.PALETTE[index]))
    ax.set_xscale("symlog", linthresh=0.01, linscale=0.4)
    ax.set_xlim(left=0.0)
    style.plain_numbers(ax.xaxis)
    ax.grid(visible=False, axis="y")
    style.layer_axis(ax, names)
    ax.set_xlabel("gap: last step (dot), 5 % to 95 % (bar)")
    style.legend_above(ax, handles, [_GAPS[gap] for gap in gaps])
