"""Mean and standard deviation of every layer at one moment of training."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bnprobe.errors import RunError
from bnprobe.plots import style
from bnprobe.store import Run

__all__ = ["moments_over_depth"]

_WIDE = 100.0  # ratio of standard deviations from which a linear axis would hide the small ones


def moments_over_depth(
    run: Run,
    step: int | Sequence[int] | None = None,
    ax: Axes | None = None,
    *,
    place: str = "output",
    phase: str = "train",
) -> Axes:
    """Draws each layer's mean as a dot and its standard deviation as a bar to both sides, layers from top to bottom.

    The axis turns logarithmic (symmetrically around 0) where standard deviations differ by more than a
    factor of 100, as they do when a signal vanishes or explodes with depth.

    Args:
        run: a run with moments.
        step: a recorded step, or several to compare; None is the last.
        ax: where to draw; None makes a new figure.
        place: ``input``, ``output`` or ``grad_output``.
        phase: ``train`` or ``eval``.

    Returns:
        The Axes.

    Raises:
        RunError: the run has no moments there, or not at that step.
    """
    frame = run.frame(statistic=["mean", "variance"], place=place, phase=phase)
    if frame.empty:
        raise RunError(f"the run has no mean and variance of place {place!r} in phase {phase!r}")
    steps = _steps(frame, step)
    moments = frame[frame["step"].isin(steps) & (frame["call"] == 0)].pivot_table(
        index="layer", columns=["step", "statistic"], values="value", observed=True
    )
    names = [name for name in run.layers["name"] if name in moments.index]
    with style.canvas(ax, height=style.layer_height(len(names))) as drawn:
        style.title(drawn, f"Moments of the {place}")
        _draw(drawn, moments.reindex(names), steps)
    return drawn


def _steps(frame: pd.DataFrame, step: int | Sequence[int] | None) -> list[int]:
    there = frame["step"].unique()
    if step is None:
        return [int(there.max())]
    wanted = [step] if isinstance(step, int) else list(dict.fromkeys(step))
    for one in wanted:
        if one not in there:
            near = sorted(there, key=lambda known: abs(int(known) - one))[:3]
            raise RunError(f"step {one} was not recorded; the nearest recorded steps are {sorted(map(int, near))}")
    return wanted


def _draw(ax: Axes, moments: pd.DataFrame, steps: Sequence[int]) -> None:
    depth = np.arange(len(moments))
    width = float(np.clip(30 / max(len(moments), 1), 0.7, 1.5))  # thin enough that 200 layers do not run together
    handles: list[Artist] = []
    deviations, ends = [], []
    for index, (step, color) in enumerate(zip(steps, style.colors(len(steps)), strict=True)):
        mean = moments[step]["mean"].to_numpy(np.float64)
        deviation = np.sqrt(moments[step]["variance"].to_numpy(np.float64))
        row = depth + 0.26 * (index - (len(steps) - 1) / 2)
        ax.hlines(row, mean - deviation, mean + deviation, color=color, linewidth=width)
        ax.plot(mean, row, "o", color=color, markersize=2.3 * width)
        handles.append(style.dot(color))
        deviations.append(deviation)
        ends.append(np.abs(mean) + deviation)
    _scale(ax, np.concatenate(deviations), np.concatenate(ends))
    ax.axvline(0.0, color=style.MISSING, linewidth=0.8, zorder=0)
    ax.grid(visible=False, axis="y")
    style.layer_axis(ax, moments.index.to_list())
    ax.set_xlabel("mean ± standard deviation")
    style.legend_above(ax, handles, [f"step {step:,}" for step in steps])


def _scale(ax: Axes, deviations: NDArray[np.float64], ends: NDArray[np.float64]) -> None:
    positive = deviations[np.isfinite(deviations) & (deviations > 0)]
    if positive.size and positive.max() > _WIDE * positive.min():
        style.signed_log_axis(ax, float(positive.min()), float(np.nanmax(ends)))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
        style.plain_numbers(ax.xaxis)
