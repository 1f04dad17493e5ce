"""Pictures of trials that several analyses need: Axes in, Axes out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from bnprobe.plots import style
from bnprobe.report import Figure

__all__ = ["ARM_COLORS", "Lines", "as_figure", "learning_curves", "percentile_band", "shares"]

ARM_COLORS = (style.PALETTE[1], style.PALETTE[0])  # without, with batch norm

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Lines:
    """Values ``[seeds, steps]`` of one arm."""

    steps: NDArray[np.int64]
    values: Array


def learning_curves(ax: Axes, arms: Mapping[str, Lines], label: str) -> Axes:
    """Mean over the seeds of each arm, with the range from the lowest to the highest seed as a band."""
    for (name, lines), color in zip(arms.items(), ARM_COLORS, strict=False):
        ax.plot(lines.steps, lines.values.mean(0), color=color, label=name)
        if len(lines.values) > 1:
            low, high = lines.values.min(0), lines.values.max(0)
            ax.fill_between(lines.steps, low, high, color=color, alpha=0.22, linewidth=0)
    ax.set_ylabel(label)
    ax.legend(loc="lower right", frameon=False)
    _step_axis(ax, next(iter(arms.values())).steps)
    return ax


def percentile_band(
    ax: Axes, steps: NDArray[np.int64], curves: Mapping[float, tuple[Array, Array, Array]], color: str
) -> Axes:
    """Percentiles over training, named at their ends: per level the value and its error band's ends ``[steps]``."""
    for level, (value, low, high) in curves.items():
        ax.fill_between(steps, low, high, color=color, alpha=0.25, linewidth=0)
        ax.plot(steps, value, color=color, linewidth=1.8 if level == 0.5 else 1.2)
        ax.annotate(f"{100 * level:.0f} %", (1.01, value[-1]), xycoords=("axes fraction", "data"), va="center", size=9)
    _step_axis(ax, steps)
    return ax


def _step_axis(ax: Axes, steps: NDArray[np.int64]) -> None:
    ax.set_xlabel("training step")
    ax.set_xlim(float(steps[0]), float(steps[-1]))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def shares(ax: Axes, values: Array, color: str, label: str | None) -> Axes:
    """Cumulative share of the finite values, on a logarithmic axis."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ordered = np.sort(values[np.isfinite(values)])
    ax.step(ordered, np.arange(1, len(ordered) + 1) / max(1, len(ordered)), where="post", color=color, label=label,
            linewidth=1.1)  # fmt: skip
    return ax


def as_figure(ax: Axes, caption: str, alt: str, *, wide: bool = False) -> Figure:
    """The figure of some Axes, for a page."""
    drawing = ax.get_figure(root=True)
    assert drawing is not None, "Axes that were just drawn on have a figure"
    return Figure(drawing, caption, alt, wide)
