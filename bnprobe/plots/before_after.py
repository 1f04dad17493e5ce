"""A normalization layer's input and output distribution over training, as ridges."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from numpy.typing import NDArray

from bnprobe.errors import ArgumentError, RunError
from bnprobe.plots import style
from bnprobe.store import Run

__all__ = ["before_after"]

_RIDGES = 9
_BINS = 50  # fewer than the grid has levels: more would show the grid, not the distribution
_SMOOTHINGS = 2  # each by 1, 2, 1: bins of a sample of thousands are rough, and that is no news
_TAILS = (0.005, 0.995)  # the axis ends here; a single outlier would flatten the rest
_OVERLAP = 1.7  # height of a ridge in units of their distance


def before_after(
    run: Run, layer: str, axes: Sequence[Axes] | None = None, *, phase: str = "train", call: int = 0
) -> tuple[Axes, Axes]:
    """Draws the distribution of what goes into ``layer`` and of what comes out, from the first step to the last.

    Each ridge is the density of one step, from the record's quantiles, scaled to the same height. The two Axes
    have axes of their own: compare shapes, and read the scales.

    Args:
        run: a run with quantiles of the layer's input and output.
        layer: name of the layer, usually a normalization layer.
        axes: two Axes, for input and output; None makes a new figure.
        phase: ``train`` or ``eval``.
        call: which call of the layer within a step, where it is called more than once.

    Returns:
        The two Axes.

    Raises:
        ArgumentError: ``axes`` are not two.
        RunError: the run has no quantiles there.
    """
    if axes is not None and len(axes) != 2:
        raise ArgumentError(f"axes must be two Axes, for input and output; got {len(axes)}")
    with style.canvases(axes, 7.6, 4.0, columns=2) as (before, after):
        for ax, place, side in ((before, "input", "Before"), (after, "output", "After")):
            grid = run.grid(layer=layer, place=place, phase=phase)
            here = (grid.keys["call"] == call).to_numpy()
            if not here.any():
                raise RunError(f"the run has no quantiles of the {place} of {layer} in phase {phase!r}, call {call}")
            steps, quantiles = grid.keys["step"].to_numpy(np.int64)[here], np.asarray(grid.values)[here]
            chosen = style.thin(len(steps), _RIDGES)
            _draw(ax, steps[chosen], quantiles[chosen], np.asarray(grid.levels))
            ax.set_xlabel(f"value of the {place}")
            style.title(ax, f"{side} {layer}")
    return before, after


def _draw(ax: Axes, steps: NDArray[np.int64], quantiles: NDArray[np.float64], levels: NDArray[np.float64]) -> None:
    edges = _bins(quantiles, levels)
    middles = (edges[1:] + edges[:-1]) / 2
    colors = colormaps[style.MAP](np.linspace(0.3, 0.85, len(steps)))
    for index, row in enumerate(quantiles):
        height = _density(row, levels, edges)
        peak = height.max(initial=0.0)
        ridge = index - _OVERLAP * (height / peak if peak > 0 else height)
        ax.fill_between(middles, index, ridge, color=colors[index], alpha=0.85, linewidth=0, zorder=2 + index)
        ax.plot(middles, ridge, color=style.PAPER, linewidth=0.9, zorder=2 + index)
    ax.set_yticks(range(len(steps)), [f"{step:,}" for step in steps])
    ax.set_ylim(len(steps) - 0.8, -_OVERLAP - 0.1)
    ax.set_xlim(float(edges[0]), float(edges[-1]))
    ax.set_ylabel("training step")
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    style.plain_numbers(ax.xaxis)


def _bins(quantiles: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    ends = np.array([np.interp(_TAILS, levels, row) for row in quantiles if np.isfinite(row).all()])
    if not ends.size:
        return np.linspace(0.0, 1.0, _BINS + 1)
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    margin = 0.03 * (high - low) or 0.5
    return np.linspace(low - margin, high + margin, _BINS + 1)


def _density(
    quantiles: NDArray[np.float64], levels: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of values in each bin, from the quantile function; zeros where the record has no finite values."""
    if not np.isfinite(quantiles).all():
        return np.zeros(len(edges) - 1)
    quantiles = np.where(np.abs(quantiles) < 1e-290, 0.0, quantiles)  # slopes between denormal numbers overflow
    share = np.diff(np.interp(edges, quantiles, levels, left=0.0, right=1.0))
    for _ in range(_SMOOTHINGS):
        padded = np.pad(share, 1, mode="edge")
        share = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return share
