"""A second copy of the model (an average, a target network, a client): do its running statistics fit its weights?

Buffers of two copies may well differ, for weights do: each is held against statistics pooled under its own weights.
"""

import torch
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.sites import named_layers, unwrap
from bnprobe.measures.evidence.patient import Patient
from bnprobe.measures.evidence.twins import facts_of_twin

__all__ = ["measure"]


def measure(patient: Patient) -> list[Fact]:
    """``reference_...`` facts; ``buffers_shared`` and ``weights_shared``: shares of tensors that are equal."""
    if patient.given.reference is None:
        raise NotMeasuredError("needs reference=")
    facts = facts_of_twin(patient, "reference_", model=patient.given.reference)
    for kind in ("buffers", "weights"):
        pairs = _pairs(patient, kind)
        if pairs:
            equal = sum(one.shape == other.shape and bool(torch.equal(one.cpu(), other.cpu())) for one, other in pairs)
            facts.append(Fact(f"{kind}_shared", equal / len(pairs), count=len(pairs)))
    return facts


def _pairs(patient: Patient, kind: str) -> list[tuple[Tensor, Tensor]]:
    """Tensors of normalization layers that both copies have."""
    assert patient.given.reference is not None
    others = dict(named_layers(unwrap(patient.given.reference)))
    pairs = []
    for site in patient.tracked:
        other = others.get(site.name)
        if other is None:
            continue
        mine, its = (one._buffers if kind == "buffers" else one._parameters for one in (site.module, other))
        pairs += [(a, b) for name, a in mine.items() if a is not None and a.dim() and (b := its.get(name)) is not None]
    return pairs
