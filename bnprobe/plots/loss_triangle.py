"""The same batches with running, with their own and with pooled statistics: which of them costs loss."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bnprobe.errors import RunError
from bnprobe.evidence import Evidence, Fact
from bnprobe.plots import style

__all__ = ["loss_triangle"]

_WAYS = ("stored", "batch", "pooled")
_MEANING = {"stored": "running", "batch": "batch's own", "pooled": "pooled"}


def loss_triangle(evidence: Evidence, ax: Axes | None = None) -> Axes:
    """Draws the loss with each kind of statistics: the mean with its 95 % interval over the batches' own losses.

    A grey line is one batch, so that what differs can be seen pair by pair. Without labels the distance of outputs
    to those with pooled statistics stands for the loss.

    Args:
        evidence: of a diagnosis, ``diagnosis.evidence``.
        ax: where to draw; None makes a new figure.

    Returns:
        The Axes.

    Raises:
        RunError: neither losses nor distances were measured.
    """
    losses = {way: one for way in _WAYS if (one := evidence.fact(f"loss_{way}")) is not None}
    distances = {way: one for way in _WAYS[:2] if (one := evidence.fact(f"distance_{way}")) is not None}
    if not losses and not distances:
        raise RunError("the evidence has no losses and no distances of outputs with different statistics")
    with style.canvas(ax) as drawn:
        style.title(drawn, "What the choice of statistics costs")
        _batches(drawn, evidence, list(losses))
        _means(drawn, losses or distances)
        drawn.set_xlabel("statistics that normalize")
        drawn.set_ylabel("loss" if losses else "distance of outputs / sd")
    return drawn


def _batches(ax: Axes, evidence: Evidence, ways: list[str]) -> None:
    """One line a batch that has all the losses."""
    columns = [{one.batch: one.value for one in evidence.all(f"batch_loss_{way}")} for way in ways]
    if len(columns) < 2:
        return
    shared = sorted(set.intersection(*map(set, columns)))
    lines = np.array([[column[batch] for batch in shared] for column in columns])
    for line in lines[:, np.isfinite(lines).all(axis=0)].T[:64]:
        ax.plot(np.arange(len(ways)), line, color=style.MISSING, linewidth=0.7, alpha=0.35)


def _means(ax: Axes, facts: dict[str, Fact]) -> None:
    for index, fact in enumerate(facts.values()):
        color = style.PALETTE[index]
        if np.isfinite([fact.low, fact.high]).all():
            ax.vlines(index, fact.low, fact.high, color=color, linewidth=4.0, alpha=0.6)
        said = style.number(fact.value)
        if np.isfinite(fact.value):
            ax.plot(index, fact.value, "o", color=color, markersize=7)
            ax.annotate(
                said, (index, fact.value), xytext=(9, 0), textcoords="offset points", va="center", color=style.ink(ax)
            )
        else:
            ax.text(index, 0.5, "not finite", transform=ax.get_xaxis_transform(), ha="center", color=style.ink(ax))
    ax.set_xticks(range(len(facts)), [_MEANING[way] for way in facts])
    ax.set_xlim(-0.5, len(facts) - 0.3)
    ax.grid(visible=False, axis="x")
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
    style.plain_numbers(ax.yaxis)
