"""Running statistics against the batches of the evaluation: another distribution than that of the training?"""

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.measures.evidence.patient import Patient, collect, device_of
from bnprobe.measures.evidence.twins import facts_of_twin

__all__ = ["measure"]


def measure(patient: Patient) -> list[Fact]:
    """Facts of triangle and staleness on as many validation batches, as ``validation_...``."""
    if patient.given.val_loader is None:
        raise NotMeasuredError("needs val_loader=")
    batches = collect(patient.given.val_loader, len(patient.batches), device_of(patient.model))
    return facts_of_twin(patient, "validation_", batches=batches)
