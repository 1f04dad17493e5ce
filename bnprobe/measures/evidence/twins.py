"""The triangle of another model, or of other batches, under names of its own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from bnprobe.evidence import Fact
from bnprobe.measures.evidence import stale, triangle
from bnprobe.measures.evidence.patient import Patient

__all__ = ["facts_of_twin"]


def facts_of_twin(
    patient: Patient, prefix: str, model: nn.Module | None = None, batches: Sequence[Any] | None = None
) -> list[Fact]:
    """Losses (or distances) and gaps of running statistics, their names led by ``prefix``; nothing of single batches.

    Args:
        patient: the examination that this one belongs to.
        prefix: such as ``validation_``.
        model: the other model; None for the same.
        batches: the other batches; None for the same.
    """
    twin = Patient(
        model if model is not None else patient.model,
        batches if batches is not None else patient.batches,
        patient.origin,
        patient.given,
        patient.intent,
        patient.seed,
    )
    found = [*triangle.measure(twin), *stale.measure(twin)]
    return [replace(fact, statistic=prefix + fact.statistic) for fact in found if not _of_one_batch(fact)]


def _of_one_batch(fact: Fact) -> bool:
    return fact.statistic.startswith("batch_loss_")
