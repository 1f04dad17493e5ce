"""How much running means jump about, by their momentum and by how much the means of batches differ."""

import numpy as np
import torch
from torch import nn

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.measures.evidence.patient import Patient

__all__ = ["measure"]

LEAST_BATCHES = 4  # ours: a variance over fewer is off by a factor


def measure(patient: Patient) -> list[Fact]:
    """``momentum_jitter``: variance that an exponential average of momentum m has about the mean, in variances.

    ``m / (2 - m)`` of the variance of a batch's mean (Welford, unbiased) over that of all values; median over channels
    and a channel. Only for classes of PyTorch's own and their children, of which it is known that momentum is the
    weight of the new batch. What the batches' sizes are here, they are taken to have been.
    """
    sites = [site for site in patient.tracked if isinstance(site.module, nn.modules.batchnorm._BatchNorm)]
    if not sites:
        raise NotMeasuredError("no batch norm of PyTorch's has running statistics")
    if len(patient.batches) < LEAST_BATCHES:
        raise NotMeasuredError(f"needs {LEAST_BATCHES} batches or more; there are {len(patient.batches)}")
    facts = []
    for site in sites:
        layer, momentum = patient.moments.get(site.name), site.module.momentum
        if layer is None or not isinstance(momentum, int | float) or not 0 <= momentum <= 1:
            continue
        if len(layer.means) < LEAST_BATCHES or site.name not in patient.pooled.variance:
            continue
        between = torch.stack(layer.means).var(0).numpy()
        total = patient.pooled.variance[site.name].cpu().numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            jitter = np.where(total > 0, momentum / (2 - momentum) * between / total, np.nan)
        if np.isfinite(jitter).any():
            value = float(np.nanmedian(jitter))
            facts.append(
                Fact("momentum_jitter", value, site.name, place="input", count=len(layer.means), channels=jitter)
            )
    return facts
