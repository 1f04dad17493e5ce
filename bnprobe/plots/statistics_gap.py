"""How far each layer's running statistics are from those pooled over the batches of a diagnosis."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from bnprobe.evidence import Evidence
from bnprobe.plots import style
from bnprobe.plots.of_layers import draw_facts, facts_of_layers, names_of

__all__ = ["statistics_gap"]

# Statistic, its label, and from where on a channel counts as far off (rule N02; drawn as a line of the same colour).
_GAPS = (("mean_gap", "mean: |difference| / sd", 0.25), ("variance_gap", "variance: |log ratio|", 0.4))


def statistics_gap(evidence: Evidence, ax: Axes | None = None) -> Axes:
    """Draws the gap between running and pooled statistics over depth, the median over a layer's channels.

    Dotted lines are the distances beyond which rule N02 takes a channel's statistics for foreign. Alone they say
    little: a network that was trained with frozen statistics is far beyond them, and well.

    Args:
        evidence: of a diagnosis, ``diagnosis.evidence``.
        ax: where to draw; None makes a new figure, as high as the number of layers asks for.

    Returns:
        The Axes.

    Raises:
        RunError: no layer's gap was measured.
    """
    gaps = [facts_of_layers(evidence, statistic) for statistic, _, _ in _GAPS]
    names = names_of(evidence, *gaps, what="gap of running statistics")
    with style.canvas(ax, height=0.2 + style.layer_height(len(names))) as drawn:
        style.title(drawn, "Running against pooled statistics")
        handles: list[Artist] = []
        for index, (facts, (_, _, far)) in enumerate(zip(gaps, _GAPS, strict=True)):
            color = style.PALETTE[index]
            draw_facts(drawn, facts, names, color, 0.26 * (index - 0.5))
            drawn.axvline(far, color=color, linewidth=1.0, linestyle=":")
            handles.append(style.dot(color))
        drawn.set_xscale("symlog", linthresh=0.1, linscale=0.5)
        most = [one.value for facts in gaps for one in facts.values() if np.isfinite(one.value)]
        high = 1.3 * max([*most, 0.6])
        drawn.set_xlim(0.0, high)
        drawn.xaxis.set_major_locator(FixedLocator([0.0, 0.1, 0.25, 0.5, *(10.0 ** np.arange(np.log10(high)))]))
        drawn.xaxis.set_minor_locator(NullLocator())
        style.plain_numbers(drawn.xaxis)
        drawn.set_xlabel("gap, median over channels")
        style.legend_above(drawn, handles, [label for _, label, _ in _GAPS])
    return drawn
