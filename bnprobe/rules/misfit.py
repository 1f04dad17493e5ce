"""Running statistics that do not fit, as N02, N25 and N26 read them from the facts of triangle and staleness."""

from dataclasses import dataclass

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Quantity
from bnprobe.rules.impact import share

__all__ = ["Misfit", "misfit"]


@dataclass(frozen=True)
class Misfit:
    """Of one model on some batches.

    Attributes:
        layers: names of those with channels that are far off.
        of: how many layers were looked at.
        worst: share of such channels in the worst layer.
        excess: how much more loss it has than with pooled statistics; None without labels.
        distance: how far its outputs are from those with pooled statistics; None with labels.
        losses: with running statistics, and with pooled ones.
    """

    layers: tuple[str, ...]
    of: int
    worst: Fact
    excess: Fact | None
    distance: Fact | None
    losses: tuple[float, float]

    @property
    def effect(self) -> Quantity:
        """How far off the statistics are."""
        return Quantity(f"channels far off in {self.worst.layer}", 100 * self.worst.value, "%")

    @property
    def impact(self) -> Quantity | None:
        """What it does to loss or outputs."""
        if self.excess is not None:
            return share(self.excess, "more loss than with pooled statistics")
        apart = self.distance
        if apart is None:
            return None
        return Quantity("distance of outputs", apart.value, "standard deviations", apart.low, apart.high)

    @property
    def p_value(self) -> float | None:
        """Of the null hypothesis that the loss is no higher; None without labels, and where the loss is not finite."""
        return None if self.excess is None or self.excess.p_value != self.excess.p_value else self.excess.p_value

    def excess_of(self, least: float) -> bool:
        """Whether the loss is higher by that share at least."""
        return self.excess is not None and not self.excess.value < least

    def outputs_beyond(self, least: float) -> bool:
        """Whether, without labels, outputs are off by that many standard deviations, with 95 % confidence."""
        return self.excess is None and self.distance is not None and self.distance.low > least


def misfit(evidence: Evidence, prefix: str, channels: float, layer: float = 0.5) -> Misfit | None:
    """Read it; None where too few channels are far off to speak of.

    Args:
        evidence: what was measured.
        prefix: of the statistics' names.
        channels: share of the channels of all layers together that is enough.
        layer: share of the channels of one layer that is enough: a part of a model may have been exchanged.
    """
    everything = evidence.all(f"{prefix}stale_share")
    far = [fact for fact in everything if fact.value > 0]
    counts = sum(max(fact.count, 1) for fact in everything)
    together = sum(fact.value * max(fact.count, 1) for fact in far) / max(counts, 1)
    if not far or (together < channels and max(fact.value for fact in far) < layer):
        return None
    return Misfit(
        tuple(fact.layer for fact in far),
        len(everything),
        max(far, key=lambda fact: fact.value),
        evidence.fact(f"{prefix}excess_stored_over_pooled"),
        evidence.fact(f"{prefix}distance_stored"),
        (evidence.value(f"{prefix}loss_stored"), evidence.value(f"{prefix}loss_pooled")),
    )
