"""How many independent values a batch has for each layer's statistics."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from bnprobe.evidence import Evidence
from bnprobe.plots import style
from bnprobe.plots.of_layers import draw_facts, facts_of_layers, names_of

__all__ = ["effective_values"]

_BANDS = ((8.0, "error", 3), (16.0, "warning", 1), (32.0, "info", 7))  # rule N04's; the last is a palette's colour


def effective_values(evidence: Evidence, ax: Axes | None = None) -> Axes:
    """Draws the effective number of independent values a batch of every layer, with its interval.

    A mean over so many independent values would vary from batch to batch as the batches' means do. The bands end at
    8, 16 and 32, below which rule N04 speaks of an error, a warning and something to know, if the loss agrees.

    Args:
        evidence: of a diagnosis, ``diagnosis.evidence``.
        ax: where to draw; None makes a new figure, as high as the number of layers asks for.

    Returns:
        The Axes.

    Raises:
        RunError: it was not measured.
    """
    facts = {name: one for name, one in facts_of_layers(evidence, "n_eff_values").items() if one.value > 0}
    names = names_of(evidence, facts, what="effective number of values ('n_eff_values')")
    with style.canvas(ax, height=0.2 + style.layer_height(len(names))) as drawn:
        style.title(drawn, "Effective values a batch")
        draw_facts(drawn, facts, names, style.PALETTE[0])
        numbers = [value for one in facts.values() for value in (one.value, one.low, one.high)]
        there = [value for value in numbers if np.isfinite(value) and value > 0]
        low, high = min([*there, 4.0]) / 1.4, max([*there, 64.0]) * 1.4
        drawn.set_xscale("log")
        drawn.set_xlim(low, high)
        _ticks(drawn, low, high)
        _bands(drawn, low)
        drawn.set_xlabel("independent values a batch")
    return drawn


def _ticks(ax: Axes, low: float, high: float) -> None:
    """Powers of two: the bands end at some."""
    powers = 2.0 ** np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1)
    ax.xaxis.set_major_locator(FixedLocator(list(powers if powers.size <= 9 else powers[::3])))
    ax.xaxis.set_minor_locator(NullLocator())
    style.plain_numbers(ax.xaxis)


def _bands(ax: Axes, low: float) -> None:
    start = low
    handles = []
    for end, _, color in _BANDS:
        if end > start:
            handles.append(ax.axvspan(start, end, color=style.PALETTE[color], alpha=0.18, linewidth=0, zorder=0))
            start = end
    labels = [f"below {end:.0f}: {word}" for end, word, _ in _BANDS if end > low]
    style.legend_above(ax, handles, labels)
