"""What the loss was like along its gradient, over training."""

import numpy as np
from matplotlib.axes import Axes

from bnprobe.errors import RunError
from bnprobe.plots import style
from bnprobe.store import Run

__all__ = ["landscape"]

_WIDE = 50.0  # ours: values that differ by more need a logarithmic axis
_MEANING = {
    "loss": ("Loss along the gradient", "loss"),
    "gradient_change": ("Change of the gradient", "l2 distance"),
    "effective_smoothness": ("Change of the gradient over distance", "ratio"),
}


def landscape(
    run: Run,
    ax: Axes | None = None,
    *,
    statistic: str = "loss",
    phase: str = "train",
    color: str | None = None,
    label: str | None = None,
) -> Axes:
    """Draws the range of a loss along its gradient (or of what becomes of the gradient) as a band over training.

    The band runs from the smallest to the largest value at the recorded lengths. The line is the loss at the weights
    themselves; of the other statistics the largest value, which is what the run recorded as theirs.

    Args:
        run: a run with the measurement ``Landscape``.
        ax: where to draw, several runs on the same one if need be; None makes a new figure.
        statistic: ``loss``, ``gradient_change`` ("predictiveness") or ``effective_smoothness``.
        phase: ``train`` or ``eval``: the mode in which the model was when it was measured.
        color: of line and band; default the first of the house's.
        label: of the run, in a legend that names runs; default a legend that names line and band.

    Returns:
        The Axes. The y axis is logarithmic where the values are positive and differ by more than a factor of 50.

    Raises:
        RunError: the run has no landscape.
    """
    if statistic not in _MEANING or statistic not in run.statistics:
        known = ", ".join(_MEANING)
        raise RunError(
            f"the run has no landscape {statistic!r} (of {known}); attach with "
            "bnprobe.statistics.Landscape(loss, batch)"
        )
    along = run.channels("", statistic, place="loss", phase=phase)
    line = run.frame(statistic=statistic, layer="", place="loss", phase=phase)
    steps, values = along.index.to_numpy(), along.to_numpy(np.float64)
    title, axis = _MEANING[statistic]
    color = color or style.PALETTE[0]
    with style.canvas(ax) as drawn:
        band = drawn.fill_between(steps, values.min(1), values.max(1), color=color, alpha=0.25, linewidth=0)
        (at,) = drawn.plot(line["step"], line["value"], color=color, linewidth=1.3, label=label)
        _scale(drawn)
        style.step_axis(drawn, steps)
        drawn.set_ylabel(axis)
        style.title(drawn, title)
        if label is None:
            name = "at the weights" if statistic == "loss" else "largest"
            style.legend_above(drawn, [at, band], [name, "at the recorded lengths"])
        else:
            style.legend_above(drawn, *drawn.get_legend_handles_labels())
    return drawn


def _scale(ax: Axes) -> None:
    """Logarithmic, if all that was drawn asks for it."""
    bands = [np.asarray(path.vertices)[:, 1] for band in ax.collections for path in band.get_paths()]
    drawn = np.concatenate([*bands, *(np.asarray(line.get_ydata(), np.float64) for line in ax.lines)])
    known = drawn[np.isfinite(drawn)]
    if known.size and known.min() > 0 and known.max() > _WIDE * known.min():
        ax.set_yscale("log")
        style.plain_numbers(ax.yaxis)
