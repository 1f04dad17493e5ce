"""Facts of layers as dots with intervals, layers down the y axis: what several pictures of evidence share."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from bnprobe.errors import RunError
from bnprobe.evidence import Evidence, Fact
from bnprobe.plots import style

__all__ = ["draw_facts", "facts_of_layers", "names_of"]


def facts_of_layers(evidence: Evidence, statistic: str) -> dict[str, Fact]:
    """The first fact of each layer that has a number."""
    found: dict[str, Fact] = {}
    for fact in evidence.all(statistic):
        if fact.layer and not np.isnan(fact.value):
            found.setdefault(fact.layer, fact)
    return found


def names_of(evidence: Evidence, *some: dict[str, Fact], what: str) -> list[str]:
    """Layers that one of them has, in the order of the inventory; what is not in it comes last.

    Raises:
        RunError: no layer has any.
    """
    there = [name for facts in some for name in facts]
    if not there:
        raise RunError(f"the evidence has no {what}")
    known = [layer.name for layer in evidence.layers]
    return [name for name in known if name in set(there)] + [name for name in dict.fromkeys(there) if name not in known]


def draw_facts(ax: Axes, facts: dict[str, Fact], names: Sequence[str], color: str, shift: float = 0.0) -> None:
    """A dot a layer with a bar from end to end of its interval; what is infinite stands at the edge as a triangle."""
    rows = [row for row, name in enumerate(names) if name in facts]
    values = np.array([facts[names[row]].value for row in rows])
    ends = np.array([[facts[names[row]].low, facts[names[row]].high] for row in rows]).reshape(-1, 2)
    at, there = np.array(rows, dtype=np.float64) + shift, np.isfinite(values)
    barred = np.isfinite(ends).all(axis=1)
    ax.hlines(at[barred], ends[barred, 0], ends[barred, 1], color=color, linewidth=1.5, alpha=0.6)
    ax.plot(values[there], at[there], "o", color=color, markersize=3.6)
    if not there.all():
        edge = ax.get_yaxis_transform()  # x in shares of the width
        ax.plot(np.ones((~there).sum()), at[~there], ">", color=color, markersize=5, transform=edge, clip_on=False)
    ax.grid(visible=False, axis="y")
    style.layer_axis(ax, names)
