"""How figures look: colours, sizes, and the few helpers that keep text out of the way of data.

The theme is seaborn's, narrowed in one place. ``theme`` is a context: outside of it, matplotlib's settings
are the user's own.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

__all__ = ["GRID", "INK", "MAP", "PALETTE", "PAPER", "canvas", "canvases", "theme"]

# The three colours that carry no data; a page may put its own light and dark ones in their place.
INK, GRID, PAPER = "#22262b", "#d9dce1", "#ffffff"
# Okabe and Ito's colours as seaborn has them: told apart with any colour vision, on white and on near-black.
PALETTE: tuple[str, ...] = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#56b4e9", "#ca9161", "#949494")
MAP = "viridis"
MISSING = "#8a8f98"


@contextmanager
def theme() -> Iterator[None]:
    """Figures made inside follow the house style, whatever was set before; afterwards all settings are as they were."""
    settings = {
        **sns.axes_style("ticks"),
        **sns.plotting_context("notebook", font_scale=0.85),
        "axes.edgecolor": INK,
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11.0,
        "figure.constrained_layout.use": True,
        # Comes with matplotlib and runs wide: a page that shows the text in another font does not clip it.
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield


@contextmanager
def canvas(ax: Axes | None, width: float = 5.0, height: float = 3.4) -> Iterator[Axes]:
    """Where to draw: ``ax`` in the style that its owner gave it, or new Axes in the house style."""
    with canvases(None if ax is None else [ax], width, height) as (one,):
        yield one


@contextmanager
def canvases(
    axes: Sequence[Axes] | None, width: float = 5.0, height: float = 3.4, columns: int = 1
) -> Iterator[list[Axes]]:
    """Like `canvas`, for several Axes side by side.

    Args:
        axes: whose owner knows their style, or None.
        width: of a new figure in inches; pyplot does not know it.
        height: of a new figure in inches.
        columns: how many new Axes.
    """
    if axes is not None:
        yield list(axes)
        return
    with theme():
        new = list(Figure(figsize=(width, height)).subplots(1, columns, squeeze=False)[0])
        for ax in new:  # some ticks are made when the figure is drawn, which may be under other settings
            size = mpl.rcParams["xtick.labelsize"]
            ax.tick_params(colors=INK, labelsize=size, grid_color=GRID, grid_linewidth=0.7, width=1.0, length=4.0)
        yield new


def plain(text: str, most: int = 34) -> str:
    """``text`` as matplotlib shows it literally: no mathematics, no control characters, shortened if long.

    A leading underscore would hide a legend entry, so a hair space goes before it.
    """
    shown = "".join(character if character.isprintable() else "\ufffd" for character in text)
    shown = _shortened(shown, most).replace("$", r"\$")
    return f"\u200a{shown}" if shown.startswith("_") else shown


def _shortened(text: str, most: int) -> str:
    """The end of a dotted name tells most, so that is kept, from a dot on if one is near."""
    if len(text) <= most:
        return text
    tail = text[-(most - 1) :]
    dot = tail.find(".", 0, most // 2)
    if dot >= 0:
        return f"…{tail[dot + 1 :]}"
    kept = (most - 1) * 2 // 3
    return f"{text[: most - 1 - kept]}…{text[-kept:]}"


def colors(count: int) -> Sequence[str]:
    """Colours for ``count`` things: to tell apart up to eight, beyond that in order from dark to light."""
    if count <= len(PALETTE):
        return PALETTE[:count]
    return [to_hex(color) for color in mpl.colormaps[MAP](np.linspace(0.0, 0.9, count))]


def sentence(text: str) -> str:
    """``text`` with its first letter large; the rest, which may hold names, as it is."""
    return text[:1].upper() + text[1:]


def thin(count: int, most: int) -> NDArray[np.intp]:
    """At most ``most`` indices into ``count`` things, evenly spread, first and last among them."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.intp))


def ink(ax: Axes) -> str:
    """Colour of text on ``ax``, whoever made it."""
    return to_hex(ax.xaxis.label.get_color())


def legend_above(ax: Axes, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """A legend between title and data, where it covers neither; in as many columns as there is room for."""
    shown = [plain(text) for text in labels]
    size = float(ax.xaxis.label.get_fontsize())
    room = 72 * ax.get_window_extent().width / ax.figure.dpi
    columns = max(1, min(len(shown), int(room / (36 + 0.6 * size * max(map(len, shown))))))
    ax.legend(
        handles,
        shown,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        borderpad=0.1,
        columnspacing=1.2,
        handlelength=1.6,
        handletextpad=0.5,
        frameon=False,
        fontsize=size,
        labelcolor=ink(ax),
    )
    rows = -(-len(shown) // columns)
    ax.set_title(ax.get_title(loc="left"), loc="left", pad=8 + 1.5 * size * rows)


def dot(color: str) -> Line2D:
    """A legend's dot."""
    return Line2D([], [], linestyle="", marker="o", markersize=4.5, color=color)


def title(ax: Axes, text: str) -> None:
    """Sets the title of ``ax``, which may hold any characters."""
    ax.set_title(plain(text, most=46), loc="left")


def step_axis(ax: Axes, steps: NDArray[np.int64], drawn: int | None = None) -> None:
    """Labels the x axis as training steps; logarithmic where the steps were recorded so.

    Args:
        ax: where.
        steps: the recorded ones.
        drawn: how many of them are drawn, if not all.
    """
    some = drawn is not None and drawn < len(steps)
    ax.set_xlabel(f"training step ({drawn:,} of {len(steps):,} drawn)" if some else "training step")
    if is_log_spaced(steps):
        ax.set_xscale("symlog", linthresh=1.0, linscale=0.4)
        ax.xaxis.set_minor_formatter(NullFormatter())
        plain_numbers(ax.xaxis)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if len(steps) > 1:
        ax.set_xlim(float(steps[0]), float(steps[-1]))


def is_log_spaced(steps: NDArray[np.int64]) -> bool:
    """Whether the gaps between recorded steps grow with the steps."""
    if len(steps) < 6 or steps[-1] < 100:
        return False
    gaps = np.diff(steps)
    return bool(np.median(gaps[-3:]) >= 20 * np.median(gaps[:3]))


def plain_numbers(axis: Axis) -> None:
    """Tick labels as ``0.01`` and ``10,000`` rather than powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def signed_log_axis(ax: Axes, threshold: float, most: float) -> None:
    """Makes the x axis logarithmic to both sides of 0, linear within ``threshold``, with ticks that do not touch."""
    ax.set_xscale("symlog", linthresh=threshold, linscale=0.6)
    decades = 10.0 ** np.arange(np.ceil(np.log10(threshold) + 0.2), np.floor(np.log10(max(most, threshold))) + 1)
    decades = decades[thin(len(decades), 3)]
    ax.xaxis.set_major_locator(FixedLocator([*-decades[::-1], 0.0, *decades]))
    ax.xaxis.set_minor_locator(NullLocator())
    plain_numbers(ax.xaxis)


def number(value: float) -> str:
    """A number as a reader wants it: three digits, thousands apart, no exponent where it can be helped."""
    if value != value:
        return "–"
    if value == 0:
        return "0"
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def layer_axis(ax: Axes, names: Sequence[str]) -> None:
    """Layers down the y axis in the order of the inventory; labels are left out where they would touch."""
    height = ax.get_window_extent().height / ax.figure.dpi
    stride = max(1, math.ceil(len(names) * 0.16 / height))
    shown = range(0, len(names), stride)
    ax.set_yticks(shown, [plain(names[index], most=24) for index in shown])
    ax.tick_params(axis="y", labelsize=8.5 if len(names) > 12 else 9.5, length=2)
    ax.set_ylim(len(names) - 0.5, -0.5)
    if len(shown) < len(names):
        ax.set_ylabel(f"layer ({len(shown)} of {len(names)} named)")


def layer_height(count: int) -> float:
    """Height in inches of a figure with ``count`` layers down its y axis."""
    return float(np.clip(1.3 + 0.2 * count, 2.4, 9.0))
