"""How far every layer's distribution has moved, over training."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from bnprobe.distances import Wasserstein
from bnprobe.distances.base import Distance
from bnprobe.drift import Reference, drift
from bnprobe.errors import RunError
from bnprobe.plots import style
from bnprobe.plots.heat_map import LayerSteps, draw_heat_map
from bnprobe.store import Run

__all__ = ["drift_map"]


def drift_map(
    run: Run,
    distance: Distance | None = None,
    ax: Axes | None = None,
    *,
    reference: Reference | int | Run = "first",
    place: str = "input",
    phase: str = "train",
    standardize: bool = True,
) -> Axes:
    """Draws the drift of every layer as colours, layers down and training steps across.

    Args:
        run: a run with the records that the distance needs.
        distance: how to compare two distributions; None is the Wasserstein-1 distance.
        ax: where to draw; None makes a new figure, as high as the number of layers asks for.
        reference: what each record is compared with, as in ``bnprobe.drift``.
        place: ``input`` (where internal covariate shift is defined: Ioffe & Szegedy 2015, section 2), ``output``
            or ``grad_output``.
        phase: ``train`` or ``eval``.
        standardize: in units of the reference's standard deviation, so that layers can be compared.

    Returns:
        The Axes.

    Raises:
        RunError: the run lacks what the distance needs.
    """
    distance = Wasserstein() if distance is None else distance
    frame = drift(run, distance, reference, place=place, phase=phase, standardize=standardize)
    title = f"Drift of the {place} {_against(reference)}"
    return draw_drift(frame, run.layers["name"].to_list(), ax, title, _label(distance, standardize))


def draw_drift(frame: pd.DataFrame, order: Sequence[str], ax: Axes | None, title: str, label: str) -> Axes:
    """Draws rows of ``bnprobe.drift``.

    Args:
        frame: the rows, of one place.
        order: names of all layers, in the order of the inventory.
        ax: where to draw; None makes a new figure.
        title: of the picture.
        label: of the colour bar.

    Returns:
        The Axes.

    Raises:
        RunError: there are no rows.
    """
    if frame.empty:
        raise RunError("the run has no distributions to compare: no drift to draw")
    data = LayerSteps.from_frame(frame, order)
    with style.canvas(ax, 5.4, 0.6 + style.layer_height(len(data.names))) as drawn:
        style.title(drawn, title)
        draw_heat_map(drawn, data, label)
    return drawn


def _label(distance: Distance, standardize: bool) -> str:
    name = distance.name.replace("_", " ")
    return f"{name}, in reference sd" if standardize else f"{name} distance"


def _against(reference: Reference | int | Run) -> str:
    if isinstance(reference, Run):
        return f"against run {reference.path.name}"
    return {"first": "against the first step", "previous": "against the previous record"}.get(
        str(reference), f"against step {reference}"
    )
