"""Norms and angular updates of scale-invariant weights over training, beside where weight decay takes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from bnprobe.errors import RunError
from bnprobe.plots import style
from bnprobe.store import Run

__all__ = ["weight_scale"]

_WINDOWS = 60  # ours: means over so many stretches of the run show the course, and none of the steps' own noise
_MOST = 8


@dataclass(frozen=True)
class _Panel:
    """What one of the two pictures shows; means are taken of the power that theory gives a mean of."""

    statistic: str
    law: str
    power: float
    label: str
    title: str


_NORM = _Panel("weight_norm", "equilibrium_norm", 4, "norm", "Norm of weights")
_ANGLE = _Panel("angular_update", "equilibrium_angle", 2, "angle per step (rad)", "Angular update")


def weight_scale(
    run: Run, axes: Sequence[Axes] | None = None, *, layers: Sequence[str] | None = None
) -> tuple[Axes, Axes]:
    """Draws the norm and the angular update of scale-invariant weights, each with its equilibrium as a dashed line.

    Of long runs, means over some sixty stretches: of fourth powers of norms and squares of angles, which are what the
    laws of equilibrium speak of. The equilibrium of the norm follows the gradients of its time.

    Args:
        run: a run with the track ``WeightScale``.
        axes: two, where to draw; None makes a new figure.
        layers: names of layers; None for all that were followed, at most eight of them evenly over the depth.

    Returns:
        The Axes of norms and of angles.

    Raises:
        RunError: the run has no such records, or not of these layers.
    """
    frame = _recorded(run)
    names = [
        f"{layer}{place.removeprefix('weight')}" for layer, place in zip(frame["layer"], frame["place"], strict=True)
    ]
    frame = frame.assign(weight=names)
    shown = _chosen(run, frame, layers)
    with style.canvases(axes, width=9.0, height=3.8, columns=2) as (left, right):
        for ax, panel in ((left, _NORM), (right, _ANGLE)):
            style.title(ax, panel.title)
            _draw(ax, frame[frame["weight"].isin(shown)], shown, panel)
    return left, right


def _recorded(run: Run) -> pd.DataFrame:
    wanted = [name for panel in (_NORM, _ANGLE) for name in (panel.statistic, panel.law)]
    if not {_NORM.statistic, _ANGLE.statistic} <= set(run.statistics):
        raise RunError("the run has no angular updates of weights; attach with bnprobe.statistics.WeightScale()")
    return run.frame(statistic=[name for name in wanted if name in run.statistics])


def _chosen(run: Run, frame: pd.DataFrame, layers: Sequence[str] | None) -> list[str]:
    order = {name: i for i, name in enumerate(run.layers["name"])}
    known = frame.drop_duplicates("weight").sort_values("layer", key=lambda column: column.map(order), kind="stable")
    if layers is not None:
        missing = sorted(set(layers) - set(known["layer"]))
        if missing:
            raise RunError(f"the run has no scale-invariant weight of {', '.join(map(repr, missing))}")
        return known[known["layer"].isin(list(layers))]["weight"].tolist()
    names = known["weight"].tolist()
    return [names[i] for i in style.thin(len(names), _MOST)]


def _draw(ax: Axes, frame: pd.DataFrame, weights: Sequence[str], panel: _Panel) -> None:
    handles: list[Line2D] = []
    steps = np.unique(frame["step"].to_numpy(np.int64))
    for color, weight in zip(style.colors(len(weights)), weights, strict=True):
        mine = frame[frame["weight"] == weight]
        handles += ax.plot(*_course(mine, panel.statistic, panel.power), color=color, linewidth=1.4)
        ax.plot(*_course(mine, panel.law, panel.power), color=color, linewidth=1.1, linestyle=(0, (4, 2)), alpha=0.8)
    labels = list(weights)
    if (frame["statistic"] == panel.law).any():
        handles.append(Line2D([], [], color=style.MISSING, linewidth=1.1, linestyle=(0, (4, 2))))
        labels.append("equilibrium")
    ax.set_yscale("log")
    style.plain_numbers(ax.yaxis)
    ax.yaxis.set_minor_formatter(ax.yaxis.get_major_formatter())
    style.step_axis(ax, steps)
    ax.set_ylabel(panel.label)
    style.legend_above(ax, handles, labels)


def _course(frame: pd.DataFrame, statistic: str, power: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and means of a statistic over stretches of neighbouring records."""
    some = frame[frame["statistic"] == statistic].sort_values("step")
    steps, values = some["step"].to_numpy(np.float64), some["value"].to_numpy(np.float64)
    if not steps.size:
        return steps, values
    parts = np.array_split(np.arange(steps.size), min(steps.size, _WINDOWS))
    means = np.array([np.mean(values[part] ** power) for part in parts]) ** (1 / power)
    return np.array([steps[part].mean() for part in parts]), means
