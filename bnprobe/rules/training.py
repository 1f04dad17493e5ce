"""Whom rules about training batches concern: layers that normalize by them."""

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Quantity
from bnprobe.rules.impact import distance, excess, share

__all__ = [
    "hidden_by_batches",
    "impact_of_batches",
    "layers_in_training",
    "meant_to_use_batches",
    "more_loss",
    "trains",
]

SURE = 0.01  # p-value of a difference of losses


def trains(evidence: Evidence, layer: str) -> bool:
    """Whether a layer was handed over in training mode, or the user says that it will be."""
    return evidence.value("training", layer) == 1 or evidence.context.intent == "train"


def layers_in_training(evidence: Evidence, statistic: str) -> list[Fact]:
    """Facts of layers that normalize by their batch while they train."""
    return [fact for fact in evidence.all(statistic) if trains(evidence, fact.layer)]


def meant_to_use_batches(evidence: Evidence) -> bool:
    """Whether the user says that predictions shall depend on the batch: then what is true of it is no mistake."""
    return evidence.context.intent in ("batch-stats-at-test", "transductive")


def more_loss(evidence: Evidence, one: str, other: str, least: float) -> Fact | None:
    """The excess of loss of one way to normalize over another, if it is at least so large and no accident."""
    found = excess(evidence, one, other)
    if one == "pooled" and other == "batch":  # where the loss calls layers more often than a forward does
        found = evidence.fact("calls_excess_pooled_over_batch") or found
    return found if found is not None and found.value >= least and found.p_value < SURE else None


def hidden_by_batches(evidence: Evidence, least: float) -> Fact | None:
    """The loss that statistics of the batch hide: it is low with them only, and neither pooled nor stored ones do.

    Where the stored ones do, there are statistics that serve every batch, and nothing is hidden.
    """
    pooled, stored = more_loss(evidence, "pooled", "batch", least), excess(evidence, "stored", "batch")
    if stored is not None and more_loss(evidence, "stored", "batch", least) is None:
        return None
    return pooled


def impact_of_batches(evidence: Evidence, least: float, far: float) -> Quantity | None:
    """What it does that layers normalize by their own batch instead of by all: None where it does nothing.

    Args:
        evidence: with the loss triangle.
        least: relative difference of losses, either way, from which it counts.
        far: without labels, distance of outputs, in their standard deviations, from which it counts.
    """
    for one, other, name in (
        ("batch", "pooled", "more loss with statistics of the batch than with pooled ones"),
        ("pooled", "batch", "more loss with pooled statistics than with those of the batch"),
    ):
        found = more_loss(evidence, one, other, least)
        if found is not None:
            return share(found, name)
    apart = distance(evidence, "batch")
    if excess(evidence, "batch", "pooled") is None and apart is not None and apart.low > far:
        return Quantity("outputs move by", apart.value, "standard deviations", apart.low, apart.high)
    return None
