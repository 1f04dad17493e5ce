"""What dropout does to the variance of what batch norms are given: with it and without, nothing else changed.

A dropout of rate p right before the norm multiplies a channel's variance by 1 + p / (1 - p) (1 + mean^2 / variance)
(Li et al. 2019, section 3); whatever lies between is taken in here, for it is measured.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.measures.evidence.moments import observe
from bnprobe.measures.evidence.patient import Patient, set_modes
from bnprobe.measures.evidence.resampling import bootstrap, excess_test

__all__ = ["measure"]

Variances = dict[str, NDArray[np.float64]]


def measure(patient: Patient) -> list[Fact]:
    """``dropout_ratio`` of each tracked batch norm: variance of its input with dropout over that without.

    Median over channels, and a channel; its p-value is of "no more with than without", by a t test over batches.
    ``stored_with_dropout``: |log| of the stored variance over that with dropout, less the same without: below zero
    where the stored one is that with dropout.
    """
    if not patient.tracked:
        raise NotMeasuredError("no layer has running statistics")
    active = [one for one in patient.root.modules() if isinstance(one, nn.modules.dropout._DropoutNd) and one.p > 0]
    if not active:
        raise NotMeasuredError("the model has no dropout module")
    without = _variances(patient, [])
    with_ = _variances(patient, active)
    facts: list[Fact] = []
    for site in patient.tracked:
        if site.name in without and site.name in with_ and len(without[site.name]) == len(with_[site.name]):
            stored = site.module.running_var.detach().double().cpu().numpy()  # type: ignore[operator]
            facts += _facts(site.name, with_[site.name], without[site.name], stored, patient.seed)
    return facts


def _variances(patient: Patient, active: list[nn.modules.dropout._DropoutNd]) -> Variances:
    """Of each layer ``[B, C]``, with running statistics in use and only these dropouts on."""
    patient.origin.rewind()
    set_modes(patient, "stored")
    for one in active:
        one.training = True
    seen = observe(patient.tracked, enumerate(patient.batches), patient.run)
    return {name: torch.stack(layer.variances).numpy() for name, layer in seen.items()}


def _facts(
    name: str, on: NDArray[np.float64], off: NDArray[np.float64], stored: NDArray[np.float64], seed: int
) -> Iterator[Fact]:
    alive = (off.mean(0) > 0) & (on.mean(0) > 0)
    if not alive.any():
        return

    def ratio(rows: NDArray[np.int64]) -> float:
        return float(np.median(on[rows][:, alive].mean(0) / off[rows][:, alive].mean(0)))

    everything = np.arange(len(on))
    low, high = bootstrap(ratio, len(on), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(on[:, alive]) - np.log(off[:, alive])
        changes = np.nanmedian(
            np.where(np.isfinite(logs), logs, np.nan), axis=1
        )  # some channel is silent in some batch
        channels = np.where(alive, on.mean(0) / np.where(alive, off.mean(0), 1), np.nan)
        nearer = np.abs(np.log(stored / on.mean(0))) - np.abs(np.log(stored / off.mean(0)))
    yield Fact(
        "dropout_ratio", ratio(everything), name, place="input", count=len(on), low=low, high=high,
        p_value=excess_test(changes), channels=channels,
    )  # fmt: skip
    yield Fact("stored_with_dropout", float(np.nanmedian(nearer[alive])), name, place="input", count=int(alive.sum()))
