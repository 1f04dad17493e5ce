"""What something does to the whole model: losses (or outputs) with different statistics, read from evidence."""

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Quantity

__all__ = ["HIGH", "distance", "excess", "is_high", "share"]

HIGH = 0.2  # relative; PITFALLS' bound for "high", on toys: 20 % more loss
LIKELY = 0.01  # p-value below which a difference of losses is no accident of the batches


def excess(evidence: Evidence, one: str, other: str) -> Fact | None:
    """How much more loss the model has with statistics ``one`` than with ``other``, relative; None: not measured."""
    return evidence.fact(f"excess_{one}_over_{other}")


def distance(evidence: Evidence, one: str) -> Fact | None:
    """How far outputs with statistics ``one`` are from those with pooled ones, in standard deviations of outputs."""
    return evidence.fact(f"distance_{one}")


def is_high(evidence: Evidence, one: str, other: str, least: float = HIGH) -> bool:
    """Whether one is worse than the other by ``least`` or more, and not by chance."""
    found = excess(evidence, one, other)
    return found is not None and found.value >= least and found.p_value < LIKELY


def share(fact: Fact, name: str) -> Quantity:
    """A relative excess, in per cent."""
    ends = (None, None) if fact.low != fact.low else (100 * fact.low, 100 * fact.high)
    return Quantity(name, 100 * fact.value, "%", *ends)
