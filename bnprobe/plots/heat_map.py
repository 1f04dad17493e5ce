"""One value a layer and step, as colours: the common part of the pictures that show a whole network over training."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bnprobe.plots import style

__all__ = ["LayerSteps", "draw_heat_map"]

_MOST_COLUMNS = 300  # about two screen pixels a column
_DPI = 200


@dataclass(frozen=True)
class LayerSteps:
    """Values ``[layers, steps]``, NaN where nothing was recorded."""

    names: Sequence[str]
    steps: NDArray[np.int64]
    value: NDArray[np.float64]

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, order: Sequence[str]) -> "LayerSteps":
        """From rows ``layer, call, step, value``; further calls of a layer get rows of their own.

        Args:
            frame: the rows, none twice.
            order: names of the layers in the order of the inventory.
        """
        wide = frame.pivot_table(index=["layer", "call"], columns="step", values="value", dropna=False, observed=True)
        wide = wide.dropna(how="all")
        rank = {name: index for index, name in enumerate(order)}
        rows = sorted(wide.index, key=lambda row: (rank.get(row[0], len(rank)), row[1]))
        wide = wide.reindex(rows)
        names = [name if call == 0 else f"{name} (call {call})" for name, call in rows]
        return cls(names, wide.columns.to_numpy(np.int64), wide.to_numpy(np.float64))

    def binned(self, most: int) -> tuple["LayerSteps", int]:
        """Neighbouring steps averaged so that at most ``most`` remain, and how many went into each."""
        size = -(-len(self.steps) // most)
        if size <= 1:
            return self, 1
        starts = np.arange(0, len(self.steps), size)
        there = ~np.isnan(self.value)  # an infinite distance is a value too
        count = np.add.reduceat(there, starts, axis=1)
        total = np.add.reduceat(np.where(there, self.value, 0.0), starts, axis=1)
        mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        return LayerSteps(self.names, self.steps[starts], mean), size


def draw_heat_map(ax: Axes, data: LayerSteps, label: str, limits: tuple[float, float | None] = (0.0, None)) -> None:
    """Draws ``data`` with a colour bar; grey is "not recorded".

    Args:
        ax: where to draw.
        data: the values.
        label: what the colour means, with its unit.
        limits: of the colour scale; an upper limit None is the 98th percentile, and the bar's pointed end says so.
    """
    shown, size = data.binned(_MOST_COLUMNS)
    low, high = _limits(shown.value, limits)
    colors = mpl.colormaps[style.MAP].with_extremes(bad=style.MISSING)
    mesh = ax.pcolormesh(
        _edges(shown.steps),
        np.arange(len(shown.names) + 1) - 0.5,
        np.where(np.isposinf(shown.value), 2 * high + 1, shown.value),  # infinity takes the colour beyond the scale
        cmap=colors,
        vmin=low,
        vmax=high,
        rasterized=True,  # one picture in the figure, not a path a cell: 200 layers stay under a megabyte
    )
    ax.grid(visible=False)
    style.layer_axis(ax, shown.names)
    style.step_axis(ax, shown.steps)
    ax.set_xlim(*_edges(shown.steps)[[0, -1]])
    if size > 1:
        ax.set_xlabel(f"training step (a column is the mean of {size} records)")
    beyond = bool(np.nanmax(shown.value, initial=low) > high)
    bar = ax.figure.colorbar(
        mesh, ax=ax, location="bottom", extend="max" if beyond else "neither", pad=0.02, aspect=35, extendfrac=0.02
    )
    bar.set_label(label, color=style.ink(ax), fontsize=ax.xaxis.label.get_fontsize())
    bar.ax.tick_params(colors=style.ink(ax), labelsize=ax.xaxis.get_ticklabels()[0].get_fontsize(), length=3)
    bar.outline.set_visible(False)
    bar.ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    style.plain_numbers(bar.ax.xaxis)


def _limits(values: NDArray[np.float64], limits: tuple[float, float | None]) -> tuple[float, float]:
    low, high = limits
    if high is None:
        finite = values[np.isfinite(values)]
        high = float(np.percentile(finite, 98)) if finite.size else low
    return low, high if high > low else low + 1.0


def _edges(steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Borders half way between neighbouring steps."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])
