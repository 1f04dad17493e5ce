"""The loss triangle: the same batches with stored, with their own, and with pooled statistics; nothing else changes.

Dropout and everything else stay in evaluation mode. Without labels the outputs' distances to those with pooled
statistics stand for the losses.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.measures.evidence.patient import Patient, set_modes
from bnprobe.measures.evidence.pooling import install
from bnprobe.measures.evidence.resampling import bootstrap, excess_test

__all__ = ["WAYS", "measure", "normalizing"]

WAYS = ("stored", "batch", "pooled")
# Ours: a loss that is below 0.05 nats is as good as none, and twice nothing is nothing.
LEAST_LOSS = 0.05


def measure(patient: Patient) -> list[Fact]:
    """``batch_loss_*`` a batch; ``loss_*`` and ``excess_A_over_B`` with intervals; without labels ``distance_*``."""
    if not patient.tracked:
        raise NotMeasuredError("no layer has running statistics")
    if not patient.why_no_loss:
        return _losses(patient)
    return _distances(patient)


def normalizing(patient: Patient, way: str) -> None:
    """Have all batch norms normalize by ``stored``, ``batch`` or ``pooled`` statistics."""
    patient.origin.rewind()
    set_modes(patient, "batch" if way == "batch" else "stored")
    if way == "pooled":
        install(patient, patient.pooled)


def _losses(patient: Patient) -> list[Fact]:
    found = {way: np.full(len(patient.batches), np.nan) for way in WAYS}
    sizes = np.array([patient.samples(batch) for batch in patient.batches], dtype=np.float64)
    _ = patient.pooled  # before the modes are set: it sets its own
    for way in WAYS:
        for number, batch in enumerate(patient.batches):
            normalizing(patient, way)
            found[way][number] = _or_nan(patient, batch)
    found["stored"][np.isnan(found["stored"])] = np.inf  # worse than any loss, and not missing
    facts = [
        Fact(f"batch_loss_{way}", float(value), batch=number, place="loss", count=int(sizes[number]))
        for way in WAYS
        for number, value in enumerate(found[way])
    ]
    usable = np.isfinite(found["pooled"]) & np.isfinite(found["batch"])
    kept = {way: values[usable] for way, values in found.items()}
    return [*facts, *_summaries(kept, sizes[usable], patient.seed)]


def _or_nan(patient: Patient, batch: object) -> float:
    """NaN for a batch of one value a channel, which has no batch statistics."""
    try:
        return patient.loss(batch)
    except ValueError:
        return float("nan")


def _summaries(kept: dict[str, NDArray[np.float64]], sizes: NDArray[np.float64], seed: int) -> Iterable[Fact]:
    count = sizes.size
    if not count:
        raise NotMeasuredError("no batch has a finite loss with its own and with pooled statistics")
    for way, values in kept.items():
        low, high = bootstrap(lambda rows, v=values: _mean(v[rows], sizes[rows]), count, seed)  # type: ignore[misc]
        yield Fact(f"loss_{way}", _mean(values, sizes), place="loss", count=count, low=low, high=high)
    for one in WAYS:
        for other in WAYS:
            if one != other:
                yield _excess(one, other, kept, sizes, seed)


def _excess(one: str, other: str, kept: dict[str, NDArray[np.float64]], sizes: NDArray[np.float64], seed: int) -> Fact:
    """How much more loss one way has than the other, as a share of the latter."""

    def share(rows: NDArray[np.int64]) -> float:
        base = max(_mean(kept[other][rows], sizes[rows]), LEAST_LOSS)
        return (_mean(kept[one][rows], sizes[rows]) - _mean(kept[other][rows], sizes[rows])) / base

    everything = np.arange(sizes.size)
    p_value = excess_test((kept[one] - kept[other]) * sizes / sizes.mean())
    low, high = bootstrap(share, sizes.size, seed)
    return Fact(
        f"excess_{one}_over_{other}", share(everything), place="loss", count=sizes.size, low=low, high=high,
        p_value=p_value,
    )  # fmt: skip


def _mean(values: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    return float(np.average(values, weights=sizes))


def _distances(patient: Patient) -> list[Fact]:
    found: dict[str, list[float]] = {"stored": [], "batch": []}
    _ = patient.pooled
    spread = _spread(patient)
    for batch in patient.batches:
        normalizing(patient, "pooled")
        pooled = patient.outputs(batch)
        for way, values in found.items():
            normalizing(patient, way)
            try:
                off = (patient.outputs(batch) - pooled).square().mean().sqrt()
            except ValueError:
                continue
            values.append(float(off / spread))
    facts = []
    for way, values in found.items():
        array = np.array(values)
        if array.size:
            low, high = bootstrap(lambda rows, a=array: float(a[rows].mean()), array.size, patient.seed)  # type: ignore[misc]
            facts.append(
                Fact(f"distance_{way}", float(array.mean()), place="output", count=array.size, low=low, high=high)
            )
    return facts


def _spread(patient: Patient) -> Tensor:
    """How much the outputs with pooled statistics differ from sample to sample: their root mean square deviation."""
    normalizing(patient, "pooled")
    outputs = torch.cat([patient.outputs(batch) for batch in patient.batches])
    spread = (outputs - outputs.mean(0)).square().mean().sqrt()
    if not float(spread) > 0:
        raise NotMeasuredError("needs loss=: the outputs are the same for all samples, so they have no scale")
    return spread
