"""How the update of the layers before moves each layer's gradient, over training."""

import numpy as np
from matplotlib.axes import Axes

from bnprobe.errors import RunError
from bnprobe.plots import style
from bnprobe.plots.heat_map import LayerSteps, draw_heat_map
from bnprobe.store import Run

__all__ = ["gradient_shift"]

_MEANING = {
    "gradient_cosine": "cosine of the gradients before and after",
    "gradient_shift": "l2 distance of the gradients",
    "gradient_norm": "norm of the gradient",
}


def gradient_shift(
    run: Run, ax: Axes | None = None, *, statistic: str = "gradient_cosine", phase: str = "train"
) -> Axes:
    """Draws the gradient shift of every layer as colours, layers down and training steps across.

    Args:
        run: a run with the measurement ``GradientShift``.
        ax: where to draw; None makes a new figure, as high as the number of layers asks for.
        statistic: ``gradient_cosine``, whose scale ends at 1 (no shift), ``gradient_shift`` or ``gradient_norm``.
        phase: ``train`` or ``eval``: the mode in which the model was when it was measured.

    Returns:
        The Axes.

    Raises:
        RunError: the run has no such shifts.
    """
    if statistic not in run.statistics:
        raise RunError(
            f"the run has no statistic {statistic!r}; attach with bnprobe.statistics.GradientShift(loss, batch) and "
            "optimizer="
        )
    frame = run.frame(statistic=statistic, place="grad_weight", phase=phase)
    if frame.empty:
        raise RunError(f"the run has no {statistic!r} in phase {phase!r}")
    data = LayerSteps.from_frame(frame, run.layers["name"].to_list())
    low = float(np.nanmin(data.value, initial=0.0))
    limits = (max(-1.0, low), 1.0) if statistic == "gradient_cosine" else (0.0, None)
    with style.canvas(ax, 5.4, 0.6 + style.layer_height(len(data.names))) as drawn:
        style.title(drawn, "Gradient shift")
        draw_heat_map(drawn, data, _MEANING.get(statistic, statistic), limits=limits)
    return drawn
