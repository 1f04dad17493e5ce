"""A layer's singular values over training, as a probe recorded them."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bnprobe.errors import RunError
from bnprobe.plots import style
from bnprobe.plots.spectra import spectrum_over_training
from bnprobe.store import Run

__all__ = ["recorded_spectrum"]

_PLACE = "jacobian"


def recorded_spectrum(run: Run, layer: str, ax: Axes | None = None, *, phase: str = "train") -> Axes:
    """Draws how the singular values of a layer's Jacobian move with training.

    Where the run has all of them, as :func:`bnprobe.plots.spectrum_over_training`; else a line a recorded value, the
    largest darkest, each with its error as a band.

    Args:
        run: a run with the measurement ``Spectra``.
        layer: name of a layer.
        ax: where to draw; None makes a new figure.
        phase: ``train`` or ``eval``: the mode in which the model was when it was measured.

    Returns:
        The Axes.

    Raises:
        RunError: the run has no singular values of this layer in this phase.
    """
    if "singular_value" not in run.statistics:
        raise RunError("the run has no singular values; attach with bnprobe.statistics.Spectra(batch)")
    values = run.channels(layer, "singular_value", place=_PLACE, phase=phase)
    whole = run.frame(statistic="singular_value", layer=layer, place=_PLACE, phase=phase)["step"]  # has a mean then
    if set(whole) >= set(values.index):
        return spectrum_over_training(
            {int(step): row[~np.isnan(row)] for step, row in zip(values.index, values.to_numpy(), strict=True)}, ax
        )
    errors = run.channels(layer, "singular_value", place=_PLACE, phase=phase, error=True)
    steps = values.index.to_numpy()
    with style.canvas(ax) as drawn:
        colors = colormaps[style.MAP](np.linspace(0.25, 0.85, values.shape[1]))
        lines: list[Line2D] = []
        for color, value, error in zip(colors, values.to_numpy().T, errors.to_numpy().T, strict=True):
            drawn.fill_between(
                steps, np.clip(value - error, 0, None), value + error, color=color, alpha=0.25, linewidth=0
            )
            lines += drawn.plot(
                steps, value, color=color, linewidth=1.3, marker="o" if len(steps) <= 12 else "", markersize=3
            )
        drawn.set_ylim(bottom=0)
        style.step_axis(drawn, steps)
        drawn.set_ylabel("singular value")
        style.title(drawn, f"{values.shape[1]} singular values over training")
        style.legend_above(drawn, [lines[0], lines[-1]], ["largest", "smallest of those recorded"])
    return drawn
