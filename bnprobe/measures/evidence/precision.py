"""Running statistics in half precision: whether a batch still moves them."""

import torch
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.outputs import calls_at
from bnprobe.measures.evidence.moments import channel_moments
from bnprobe.measures.evidence.patient import Patient, set_modes

__all__ = ["measure"]

BATCHES = 4  # ours: a channel that none of four batches moves, stands still
HALF = (torch.float16, torch.bfloat16)


def measure(patient: Patient) -> list[Fact]:
    """``stagnant_share`` a layer: channels whose running mean a batch leaves as it is though it should move.

    It should where momentum times the distance of the batch's mean is above 1e-6 standard deviations. The mean over
    batches, ``low`` and ``high`` their extremes; ``buffer_bits`` of each layer. Layers in single precision are not run.
    """
    if not patient.tracked:
        raise NotMeasuredError("no layer has running statistics")
    facts, half = [], {}
    for site in patient.tracked:
        mean = site.module.running_mean
        assert isinstance(mean, Tensor)
        facts.append(Fact("buffer_bits", 8.0 * mean.element_size(), site.name))
        if mean.dtype in HALF and _momentum(site.module) > 0:
            half[site.name] = site
    if not half:
        return facts
    shares: dict[str, list[float]] = {}
    for batch in patient.batches[:BATCHES]:
        for name, share in _stagnant(patient, half, batch).items():
            shares.setdefault(name, []).append(share)
    for name, found in shares.items():
        middle = sum(found) / len(found)
        facts.append(Fact("stagnant_share", middle, name, count=len(found), low=min(found), high=max(found)))
    return facts


def _momentum(module: torch.nn.Module) -> float:
    value = getattr(module, "momentum", None)
    return float(value) if isinstance(value, int | float) else 0.0


def _stagnant(patient: Patient, half: dict, batch: object) -> dict[str, float]:  # type: ignore[type-arg]
    patient.origin.rewind()
    set_modes(patient, "batch")
    before = {name: site.module.running_mean.detach().clone() for name, site in half.items()}
    means: dict[str, tuple[Tensor, Tensor]] = {}

    def see(name: str, call: int, x: Tensor, _: object) -> None:
        found = channel_moments(half[name], x)
        if call == 0 and found is not None:
            _, mean, variance = found
            means[name] = (mean, variance.sqrt())

    try:
        with calls_at({name: site.module for name, site in half.items()}, see), torch.no_grad():
            patient.run(batch)
    except ValueError:  # one value a channel
        return {}
    shares = {}
    for name, (mean, deviation) in means.items():
        module = half[name].module
        due = _momentum(module) * (mean - before[name].double()).abs() > 1e-6 * deviation
        still = module.running_mean == before[name]
        if due.any():
            shares[name] = float((still & due).sum() / due.sum())
    return shares
