"""Evidence about a model's normalization: one measurement a file, each ``measure(patient) -> facts``.

Nothing here judges: what the facts mean is said by :mod:`bnprobe.rules`, which read them and nothing else.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.measures.evidence.patient import INTENTS, Given, Patient, collect, device_of

__all__ = ["INTENTS", "MEASUREMENTS", "Examination", "Given", "Patient", "collect", "device_of", "examine"]

# In the order in which they are taken; what is cheap and cannot fail comes first.
MEASUREMENTS = (
    "state", "horizon", "checkpoint", "loader", "swap", "dispatch", "groups", "triangle", "stale", "composition",
    "calls", "gain", "depth", "axis", "mask", "dropout", "preprocessing", "freeze", "precision", "step", "evaluation",
    "validation", "copies", "parity", "ranks",
)  # fmt: skip


@dataclass
class Examination:
    """What was found, what was not and why, and how long each measurement took."""

    facts: list[Fact] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def examine(patient: Patient, names: Iterable[str] = MEASUREMENTS) -> Examination:
    """Take measurements; one that fails is missing, with the reason, and stops no other."""
    found = Examination()
    for name in names:
        start = time.perf_counter()
        try:
            patient.origin.rewind()
            found.facts += _measurement(name)(patient)
        except NotMeasuredError as error:
            found.missing[name] = str(error)
        except Exception as error:  # whatever the model raises: what else was found is kept
            found.missing[name] = f"it raised {type(error).__name__}: {error}"
        found.seconds[name] = time.perf_counter() - start
    return found


def _measurement(name: str) -> Callable[[Patient], list[Fact]]:
    measure: Callable[[Patient], list[Fact]] = import_module(f"{__name__}.{name}").measure
    return measure
