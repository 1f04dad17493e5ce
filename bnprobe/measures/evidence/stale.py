"""How far running statistics are from those of the batches at hand.

Per channel, in units that say what it does to the output: |running mean - pooled mean| in pooled standard deviations,
and |log(running variance / pooled variance)| with PyTorch's n / (n - 1) taken out. The z values take into account that
an exponential average of momentum m never settles: its variance is m / (2 - m) of that of a batch's mean.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.sites import Site
from bnprobe.measures.evidence.patient import Patient

__all__ = ["FAR", "gaps", "measure"]

# PITFALLS' toys had 0.02 to 0.04 where healthy and 0.4 and more where stale; these lie between.
FAR = (0.25, 0.4)  # standard deviations of the mean, logarithm of the variance


def measure(patient: Patient) -> list[Fact]:
    """``mean_gap``, ``variance_gap``, ``mean_z`` (the median, and each channel) and ``stale_share`` of each layer."""
    if not patient.tracked:
        raise NotMeasuredError("no layer has running statistics")
    pooled, facts = patient.pooled, []
    patient.origin.rewind()  # pooling has put statistics of its own into the layers
    for site in patient.tracked:
        if site.name in pooled.mean:
            facts += gaps(patient, site)
    if not facts:
        raise NotMeasuredError("no layer with running statistics was called")
    return facts


def gaps(patient: Patient, site: Site) -> list[Fact]:
    """Facts of one layer."""
    pooled, count = patient.pooled, patient.pooled.count[site.name]
    mean, variance = pooled.mean[site.name].numpy(), pooled.variance[site.name].numpy()
    stored, spread = _stored(site, "running_mean"), _stored(site, "running_var")
    alive = variance > 0
    if not alive.any():
        return []
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.where(alive, np.abs(stored - mean) / np.sqrt(variance), np.nan)
        size = _values_a_batch(patient, count)
        stretched = np.where(alive, np.abs(np.log(spread * (size - 1) / size / variance)), np.nan)
    far = (off > FAR[0]) | (stretched > FAR[1]) | (alive & ~(np.isfinite(off) & np.isfinite(stretched)))
    facts = [
        Fact("mean_gap", _median(off), site.name, place="input", count=count, channels=off),
        Fact("variance_gap", _median(stretched), site.name, place="input", count=count, channels=stretched),
        Fact("stale_share", float(far[alive].mean()), site.name, place="input", count=int(alive.sum())),
    ]
    z = _z(patient, site, stored, mean)
    return facts if z is None else [*facts, Fact("mean_z", _median(z), site.name, place="input", channels=z)]


def _stored(site: Site, name: str) -> NDArray[np.float64]:
    buffer = getattr(site.module, name)
    assert isinstance(buffer, torch.Tensor)
    values: NDArray[np.float64] = buffer.detach().double().cpu().numpy()
    return values


def _values_a_batch(patient: Patient, count: int) -> float:
    """How many values a channel a batch had, on average: its unbiased variance is what the running average took."""
    return max(count / len(patient.batches), 2.0)


def _z(
    patient: Patient, site: Site, stored: NDArray[np.float64], mean: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    layer = patient.moments.get(site.name)
    if layer is None or len(layer.means) < 3:
        return None
    means = torch.stack(layer.means).numpy()
    momentum = getattr(site.module, "momentum", None)
    seen = getattr(site.module, "num_batches_tracked", None)
    if isinstance(momentum, float | int):
        noise = momentum / (2 - momentum)
    else:
        noise = 1 / max(float(seen), 1.0) if isinstance(seen, torch.Tensor) else 0.0
    scale = means.std(0, ddof=1) * np.sqrt(noise + 1 / len(means))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, (stored - mean) / scale, np.nan)


def _median(values: NDArray[np.float64]) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(np.median(finite)) if finite.size else float("nan")
