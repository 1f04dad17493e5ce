"""Whether one layer sees several distributions: in several calls of one pass, or in batches that take turns.

A pass is the user's loss, where there is one, for it may call the model more often than a forward does; else a forward.
Calls are compared in evaluation mode with statistics pooled over all of them, so that a call's own batch statistics do
not hide at deeper layers what differs.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bnprobe.contrasts import contrast, divergence, periodicity, together
from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.measures.evidence.call_moments import Pass, as_arrays, mixture, passes_of
from bnprobe.measures.evidence.composition import effective_values
from bnprobe.measures.evidence.moments import LayerMoments
from bnprobe.measures.evidence.patient import Patient, set_modes
from bnprobe.measures.evidence.pooling import install
from bnprobe.measures.evidence.resampling import bootstrap, excess_test

__all__ = ["measure"]

Array = NDArray[np.float64]
LEAST_LOSS = 0.05  # nats; below it a relative excess says nothing


def measure(patient: Patient) -> list[Fact]:
    """Facts of layers that are called k > 1 times in a pass, and of the first and deepest layer's series of batches.

    ``calls_per_pass``; ``call_contrast_mean``, the share of pooled variance that lies between calls, and
    ``call_contrast_spread``, the range of log variances over calls, less what chance makes, with p-values of permuting
    calls within each batch; of each call ``call_divergence``, KL(call || all calls together) in nats a channel, and
    ``call_n_eff_values``. ``batch_period``, ``batch_periodicity`` with a p-value of permuting the order of batches,
    ``phase_divergence``. Of the model ``model_calls`` in a pass, and ``calls_excess_pooled_over_batch``, where the loss
    calls layers more often than a forward does.
    """
    if not patient.batch_norms:
        raise NotMeasuredError("the model has no batch normalization")
    if len(patient.batches) < 2:
        raise NotMeasuredError("needs two batches or more (sixteen to have power); one was given")
    facts: list[Fact] = []
    for name in [name for name in patient.moments if patient.moments[name].samples]:
        facts += _turns(name, patient.moments[name], patient.seed)
    by_loss = patient.given.loss is not None and not patient.why_no_loss
    run: Callable[[Any], Any] = patient.loss if by_loss else patient.run
    pooled, more = mixture(patient, run, by_loss)
    patient.origin.rewind()
    set_modes(patient, "stored")
    install(patient, pooled)
    found = passes_of(patient, run, first=2)
    if more or any(len(calls) > 1 for passes in found.values() for calls in passes):
        found = passes_of(patient, run)  # else there is nothing to compare
    whole = found.pop("", [])
    if whole:
        facts.append(Fact("model_calls", float(np.median([len(one) for one in whole])), count=len(whole)))
    for name, calls in found.items():
        facts += _calls(name, calls, patient.seed)
    if more:
        facts += _excess(patient, pooled)
    return facts


def _turns(name: str, layer: LayerMoments, seed: int) -> Iterable[Fact]:
    means, variances = (torch.stack(one).numpy() for one in (layer.means, layer.variances))
    if not (np.isfinite(means).all() and np.isfinite(variances).all()):
        return
    counts = np.array(layer.counts, dtype=np.float64)
    center = np.average(means, axis=0, weights=counts)
    total = np.average(variances + (means - center) ** 2, axis=0, weights=counts)
    alive = total > 0
    found = periodicity(((means - center)[:, alive]) / np.sqrt(total[alive]), seed) if alive.any() else None
    if found is None:
        return
    period, value, p_value = found
    phases = [slice(phase, None, period) for phase in range(period)]
    moments = [together(means[one], variances[one], counts[one]) for one in phases]
    far = max(divergence(mean, variance, center, total) for mean, variance in moments)
    yield Fact("batch_period", float(period), name, place="input", count=len(means))
    yield Fact("batch_periodicity", value, name, place="input", count=len(means), p_value=p_value)
    yield Fact("phase_divergence", far, name, place="input", count=len(means))


def _calls(name: str, passes: Sequence[Pass], seed: int) -> Iterable[Fact]:
    found = as_arrays(passes)
    if found is None:
        return
    means, variances, counts = found
    batches, calls, channels = means.shape
    yield Fact("calls_per_pass", float(calls), name, place="input", count=batches)
    center, total = together(means.reshape(-1, channels), variances.reshape(-1, channels), counts.reshape(-1))
    alive = total > 1e-12 * (total + center**2)
    if not alive.any():
        return
    scaled = (means - center)[:, :, alive] / np.sqrt(total[alive])
    observed, by_chance, p_value = contrast(scaled, seed)
    share = (observed - by_chance) / (calls * int(alive.sum()))
    yield Fact("call_contrast_mean", share, name, place="input", count=batches, p_value=p_value)
    logs = np.log(np.maximum(variances[:, :, alive], 1e-12 * total[alive]))
    observed, by_chance, p_value = contrast(logs, seed)
    # The range of k equally spread values whose variance is what is left of the contrast.
    spread = np.sqrt(12 * max(observed - by_chance, 0.0) / (calls * int(alive.sum())) * (calls - 1) / (calls + 1))
    yield Fact("call_contrast_spread", float(spread), name, place="input", count=batches, p_value=p_value)
    for call in range(calls):
        mean, variance = together(means[:, call], variances[:, call], counts[:, call])
        far = divergence(mean, variance, center, total)
        yield Fact("call_divergence", far, name, call=call, place="input", count=batches)
        worth, low, high = effective_values(means[:, call], counts[:, call], variances[:, call], seed)
        if np.isfinite(worth):
            yield Fact("call_n_eff_values", worth, name, call=call, place="input", count=batches, low=low, high=high)


def _excess(patient: Patient, pooled: Any) -> Iterable[Fact]:
    """How much more the loss is with statistics pooled over all calls than with those of each call."""
    found: dict[str, list[float]] = {"batch": [], "pooled": []}
    sizes = []
    for batch in patient.batches:
        values = {}
        for way in found:
            patient.origin.rewind()
            set_modes(patient, "batch" if way == "batch" else "stored")
            if way == "pooled":
                install(patient, pooled)
            try:
                values[way] = patient.loss(batch)
            except ValueError:  # a batch of one value
                break
        if len(values) == len(found) and all(map(np.isfinite, values.values())):
            sizes.append(patient.samples(batch))
            for way, value in values.items():
                found[way].append(value)
    if len(sizes) < 2:
        return
    weights = np.array(sizes, dtype=np.float64)
    own, mixed = np.array(found["batch"]), np.array(found["pooled"])

    def share(rows: NDArray[np.int64]) -> float:
        base = float(np.average(own[rows], weights=weights[rows]))
        return (float(np.average(mixed[rows], weights=weights[rows])) - base) / max(abs(base), LEAST_LOSS)

    low, high = bootstrap(share, weights.size, patient.seed)
    p_value = excess_test((mixed - own) * weights / weights.mean())
    yield Fact(
        "calls_excess_pooled_over_batch", share(np.arange(weights.size)), place="loss", count=weights.size, low=low,
        high=high, p_value=p_value,
    )  # fmt: skip
