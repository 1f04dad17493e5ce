"""Singular values of Jacobians: over depth, against each other and theory, over training."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from bnprobe.errors import ArgumentError
from bnprobe.plots import style

__all__ = ["sorted_spectra", "spectrum_over_training", "spectrum_ridgeline"]

_Array = NDArray[np.float64]
_BINS = 80
_SMOOTHINGS = 2  # each by 1, 2, 1
_OVERLAP = 1.5  # height of a ridge in units of their distance
_DECADES = 5.0  # an axis goes no further down: what is less than that of the largest value is as good as zero
_POINTS = 400
_LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Law(Protocol):
    """A theoretical distribution, as :class:`bnprobe.measures.jacobian.laws.MarchenkoPastur`."""

    @property
    def support(self) -> tuple[float, float]:
        """The least and the largest value."""

    def cumulative(self, s: ArrayLike) -> _Array:
        """Share of values up to ``s``."""


def spectrum_ridgeline(spectra: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Draws the histogram of each layer's singular values over their logarithm, layers from top to bottom.

    Ridges are scaled to the same height. The axis goes five decades down at most; the share of a layer's values that
    are below it, zeros among them, is written at the right. A line marks 1, where signals keep their length.

    Args:
        spectra: all singular values of each layer, by name, in the order of depth.
        ax: where to draw; None makes a new figure.

    Raises:
        ArgumentError: no layer, a layer without values, or values that are negative or not finite.
    """
    layers = _checked(spectra, "layer")
    edges = _log_bins(np.concatenate(list(layers.values())))
    with style.canvas(ax, 5.6, max(2.6, 1.1 + 0.34 * len(layers))) as ax:
        ax.axvline(1.0, color=style.ink(ax), linewidth=0.8, linestyle=":", zorder=1)
        colors = colormaps[style.MAP](np.linspace(0.3, 0.85, len(layers)))
        middles = 10 ** ((edges[1:] + edges[:-1]) / 2)
        for index, values in enumerate(layers.values()):
            height, below = _smooth_histogram(values, edges)
            ridge = index - _OVERLAP * height / max(float(height.max()), 1e-300)
            ax.fill_between(middles, index, ridge, color=colors[index], alpha=0.85, linewidth=0, zorder=2 + index)
            ax.plot(middles, ridge, color=style.PAPER, linewidth=0.9, zorder=2 + index)
            _note_below(ax, index, below)
        ax.set_xscale("log")
        _log_axis(ax.xaxis)
        ax.set_xlim(10 ** edges[0], 10 ** edges[-1])
        style.layer_axis(ax, list(layers))
        ax.set_ylim(len(layers) - 0.7, -_OVERLAP - 0.1)
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("singular value")
        style.title(ax, "Singular values over depth")
    return ax


def sorted_spectra(
    spectra: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    laws: Mapping[str, Law] | None = None,
    *,
    logarithmic: bool = False,
) -> Axes:
    """Draws several spectra, each sorted from the largest value down, over the share of values that are larger.

    Args:
        spectra: all singular values of each, by what the legend calls it.
        ax: where to draw; None makes a new figure.
        laws: theoretical distributions to draw dashed, by what the legend calls them.
        logarithmic: whether the values' axis is; zeros are then off it.

    Raises:
        ArgumentError: no spectrum, one without values, or values that are negative or not finite.
    """
    shown = _checked(spectra, "spectrum")
    drawn: list[Line2D] = []
    with style.canvas(ax, 5.2, 3.6) as ax:
        colors = style.colors(len(shown))
        for color, values in zip(colors, shown.values(), strict=True):
            ordered = np.sort(values)[::-1]
            ordered = ordered[style.thin(len(ordered), 4 * _POINTS)] if len(ordered) > 4 * _POINTS else ordered
            share = (np.arange(len(ordered)) + 0.5) / len(ordered)
            marker = "o" if len(ordered) <= 40 else ""
            drawn += ax.plot(share, ordered, color=color, linewidth=1.8, marker=marker, markersize=3.5)
        ink = style.ink(ax)
        for law, dashes in zip((laws or {}).values(), ("--", ":", "-.") * 9, strict=False):
            at = np.linspace(*law.support, _POINTS)
            drawn += ax.plot(1 - law.cumulative(at), at, color=ink, linewidth=1.2, linestyle=dashes, zorder=4)
        everything = np.concatenate(list(shown.values()))
        top = float(everything.max())
        if logarithmic and top > 0:
            ax.set_yscale("log")
            ax.set_ylim(max(float(everything[everything > 0].min()), top * 10**-_DECADES) / 1.3, 1.3 * top)
            _log_axis(ax.yaxis)
        else:
            ax.set_ylim(bottom=0)
            style.plain_numbers(ax.yaxis)
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        ax.set_xlabel("share of values that are larger")
        ax.set_ylabel("singular value")
        style.title(ax, "Sorted singular values")
        style.legend_above(ax, drawn, [*shown, *(laws or {})])
    return ax


def spectrum_over_training(spectra: Mapping[int, ArrayLike], ax: Axes | None = None) -> Axes:
    """Draws how the spectrum of one layer, or of a whole model, moves with training.

    Dark is the middle half of the values, light all of them, and the line is their median. The axis goes down to
    1e-5 of the largest value; where values are smaller, the light band ends there.

    Args:
        spectra: all singular values at each step.
        ax: where to draw; None makes a new figure.

    Raises:
        ArgumentError: no step, a step without values, or values that are negative or not finite.
    """
    recorded = _checked(spectra, "step")
    steps = np.array(sorted(recorded), np.int64)
    quantiles = np.array([np.quantile(recorded[int(step)], _LEVELS) for step in steps])
    top = float(quantiles.max())
    floor = top * 10**-_DECADES
    with style.canvas(ax) as ax:
        color = style.PALETTE[0]
        low, quarter, middle, three, high = np.clip(quantiles, floor, None).T
        light = ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        dark = ax.fill_between(steps, quarter, three, color=color, alpha=0.4, linewidth=0)
        (line,) = ax.plot(
            steps, middle, color=color, linewidth=1.8, marker="o" if len(steps) <= 12 else "", markersize=4
        )
        if top > 0:
            ax.set_yscale("log")
            ax.set_ylim(max(floor, float(quantiles.min())) / 1.3, 1.3 * top)
            _log_axis(ax.yaxis)
        style.step_axis(ax, steps)
        ax.set_ylabel("singular value")
        style.title(ax, "Singular values over training")
        style.legend_above(ax, [line, dark, light], ["median", "middle half", "all values"])
    return ax


def _checked(spectra: Mapping[Any, ArrayLike], what: str) -> dict[Any, _Array]:
    if not spectra:
        raise ArgumentError(f"spectra must hold the values of at least one {what}; got none")
    found = {name: np.asarray(values, np.float64).ravel() for name, values in spectra.items()}
    for name, values in found.items():
        if not values.size or not np.isfinite(values).all() or (values < 0).any():
            raise ArgumentError(f"spectra: {what} {name!r} must have singular values, finite and not negative")
    return found


def _log_bins(values: _Array) -> _Array:
    """Edges in decimal logarithms, around all values that are not too small, and 1."""
    top = float(values.max()) or 1.0
    low, high = (float(np.log10(one)) for one in (values[values > top * 10**-_DECADES].min(initial=top), top))
    margin = 0.04 * (high - low) + 0.05
    return np.linspace(min(low, max(0, high - _DECADES)) - margin, max(high, 0) + margin, _BINS + 1)


def _smooth_histogram(values: _Array, edges: _Array) -> tuple[_Array, float]:
    """Counts of logarithms, and the share of values that are below all bins."""
    seen = values >= 10 ** edges[0]
    height = np.histogram(np.log10(values[seen]), edges)[0].astype(np.float64)
    for _ in range(_SMOOTHINGS):
        padded = np.pad(height, 1)
        height = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return height, 1 - float(seen.mean())


def _note_below(ax: Axes, row: int, share: float) -> None:
    if share > 0:
        text = f"{style.number(100 * share)} % below axis"
        ax.annotate(
            text,
            (1.0, row),
            (4, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=8,
            color=style.ink(ax),
            annotation_clip=False,
        )


def _log_axis(axis: Any) -> None:
    axis.set_major_locator(LogLocator(10, numticks=7))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=2, width=0.6)
    style.plain_numbers(axis)
