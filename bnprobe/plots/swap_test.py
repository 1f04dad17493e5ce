"""Whether a sample's output changes with the other samples of its batch."""

import numpy as np
from matplotlib.axes import Axes

from bnprobe.errors import RunError
from bnprobe.evidence import Evidence, Fact
from bnprobe.plots import style

__all__ = ["swap_test"]

# Change, words, and which of the palette's colours it has; rule N01's bounds.
_BANDS = ((0.05, "error", 3), (0.005, "warning", 1))
_STATISTICS = {
    "swap_change": "other batch mates",
    "swap_alone": "alone in its batch",
    "swap_random": "other random numbers",
    "swap_noise": "the same batch again",
}
_LEAST = 1e-9  # float32 leaves 1e-7 to 1e-6; what is below is as good as nothing


def swap_test(evidence: Evidence, ax: Axes | None = None) -> Axes:
    """Draws by how much outputs change when other samples share the batch, beside what repeating the batch changes.

    Changes are medians over samples, in standard deviations of the outputs. A model that treats samples one by one
    stays at rounding, 1e-6; above the dotted lines rule N01 speaks of a warning and an error.

    Args:
        evidence: of a diagnosis, ``diagnosis.evidence``.
        ax: where to draw; None makes a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: the swap test was not made.
    """
    found = {name: fact for name in _STATISTICS if (fact := evidence.fact(name)) and not np.isnan(fact.value)}
    if "swap_change" not in found:
        raise RunError("the evidence has no swap test ('swap_change')")
    with style.canvas(ax, height=1.3 + 0.42 * len(found)) as drawn:
        style.title(drawn, "Do outputs depend on batch mates?")
        for row, fact in enumerate(found.values()):
            _bar(drawn, row, fact)
        drawn.set_xscale("log")
        values = [one.value for one in found.values() if np.isfinite(one.value)]
        drawn.set_xlim(_LEAST, max([10.0, *(2 * value for value in values)]))
        for bound, _, color in _BANDS:
            drawn.axvline(bound, color=style.PALETTE[color], linestyle=":", linewidth=1.2)
        drawn.set_yticks(range(len(found)), [_STATISTICS[name] for name in found])
        drawn.set_ylim(len(found) - 0.4, -0.6)
        drawn.grid(visible=False, axis="y")
        drawn.set_xlabel("change of outputs, in standard deviations")
    return drawn


def _bar(ax: Axes, row: int, fact: Fact) -> None:
    value = max(fact.value, _LEAST)
    ax.hlines(row, _LEAST, value, color=style.PALETTE[row], linewidth=5, alpha=0.5)
    ax.plot(value, row, "o", color=style.PALETTE[row], markersize=6)
    said = style.number(fact.value) if fact.value > _LEAST else "none"
    ax.annotate(said, (value, row), xytext=(4, 7), textcoords="offset points", ha="left", color=style.ink(ax))
