"""How much norm layers amplify: batch norm by its stored variances, the others sample by sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.outputs import calls_at
from bnprobe.hooks.sites import Site
from bnprobe.measures.evidence.moments import Chunk, channel_moments
from bnprobe.measures.evidence.patient import Patient, set_modes
from bnprobe.measures.evidence.resampling import bootstrap

__all__ = ["measure"]

MOST_SAMPLES = 512
AMPLIFIED = 10.0  # times the median gain: an input of a tenth of the usual contrast
MOST_LOSSES = 24


def measure(patient: Patient) -> list[Fact]:
    """Of batch norms with running statistics, as they were handed over, and of group and instance norms.

    ``gain``: |gamma| / sqrt(running variance + eps), a channel and their median. ``variance_ratio``: variance of what
    comes in over running variance + eps, a channel and their largest, with its interval by bootstrap over batches (of
    the channel that is largest over all). ``dead_share``: channels that are constant here while their stored variance
    and gamma are not near zero. ``sample_gain_spread``: largest over median of 1 / sqrt(variance + eps) over samples
    and groups of one layer. ``amplified_samples``, ``amplified_loss``, ``ordinary_loss``: of samples whose gain in the
    first such layer is ten times the median.
    """
    tracked = {site.name: site for site in patient.tracked}
    grouped = {site.name: site for site in patient.norms if site.family in ("group_norm", "instance_norm")}
    if not tracked and not grouped:
        raise NotMeasuredError("no batch norm with running statistics, no group norm and no instance norm")
    set_modes(patient, "stored")
    seen = _Seen({}, {})

    def see(name: str, call: int, x: Tensor, _: object) -> None:
        if name in tracked:
            part = channel_moments(tracked[name], x)
            if part is not None:
                seen.moments.setdefault(name, []).append(part)
        elif call == 0:
            variances = _group_variances(grouped[name], x)
            if variances is not None:
                seen.groups.setdefault(name, []).append(variances.cpu())

    sites = {name: site.module for name, site in (tracked | grouped).items()}
    for batch in patient.batches:
        with calls_at(sites, see), torch.no_grad():
            patient.run(batch)
    facts = [fact for name, parts in seen.moments.items() for fact in _stored(patient, tracked[name], parts)]
    return facts + _by_sample(patient, grouped, seen.groups)


@dataclass
class _Seen:
    """By layer and batch: moments of batch norms' inputs; variances ``[N, G]`` of samples' groups."""

    moments: dict[str, list[Chunk]]
    groups: dict[str, list[Tensor]]


def _stored(patient: Patient, site: Site, parts: Sequence[Chunk]) -> list[Fact]:
    module: Any = site.module
    eps = float(getattr(module, "eps", 0.0) or 0.0)
    variance = module.running_var.detach().double().cpu().numpy() + eps
    gamma = getattr(module, "weight", None)
    scale = gamma.detach().double().abs().cpu().numpy() if isinstance(gamma, Tensor) else np.ones_like(variance)
    counts = np.array([count for count, _, _ in parts], dtype=np.float64)
    means = torch.stack([mean for _, mean, _ in parts]).cpu().numpy()
    spreads = torch.stack([spread for _, _, spread in parts]).cpu().numpy()

    def ratios(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        share = (counts[rows] / counts[rows].sum())[:, None]
        mean = (share * means[rows]).sum(0)
        found: NDArray[np.float64] = (share * (spreads[rows] + (means[rows] - mean) ** 2)).sum(0) / variance
        return found

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        whole = ratios(np.arange(len(parts)))
        gains = scale / np.sqrt(variance)
        if not np.isfinite(whole).any():
            return []
        top = int(np.nanargmax(np.where(np.isfinite(whole), whole, -1)))
        low, high = bootstrap(lambda rows: float(ratios(rows)[top]), len(parts), patient.seed)
        # Of moments in float32, this much may be rounding.
        nothing = 1e-9 + 1e-12 * (means**2).mean(0) / variance
        dead = (whole <= nothing) & (scale > 1e-2) & (variance > 100 * eps)
    known = gains[np.isfinite(gains)]
    middle = float(np.median(known)) if known.size else float("nan")
    return [
        Fact("gain", middle, site.name, count=gains.size, channels=gains),
        Fact(
            "variance_ratio", float(whole[top]), site.name, place="input", count=int(counts.sum()), low=low, high=high,
            channels=whole,
        ),
        Fact("dead_share", float(dead.mean()), site.name, place="input", count=gains.size),
    ]  # fmt: skip


def _group_variances(site: Site, x: Tensor) -> Tensor | None:
    """``[N, G]`` with epsilon added; None where groups are single values or do not come sample by sample."""
    module: Any = site.module
    groups = getattr(module, "num_groups", None) if site.family == "group_norm" else x.shape[1] if x.dim() > 2 else None
    if not isinstance(groups, int) or x.dim() < 2 or not x.numel() or x.shape[1] % groups:
        return None
    if getattr(module, "track_running_stats", False):
        return None
    values = x.detach().double().reshape(len(x), groups, -1)
    if values.shape[2] < 3:
        return None
    return values.var(2, correction=0) + float(getattr(module, "eps", 0.0) or 0.0)


def _by_sample(patient: Patient, sites: dict[str, Site], found: dict[str, list[Tensor]]) -> list[Fact]:
    facts = []
    for name, parts in found.items():
        gains = torch.cat([one.flatten() for one in parts]).rsqrt()
        middle = float(gains.median())
        if middle > 0:
            facts.append(
                Fact("sample_gain_spread", float(gains.max()) / middle, name, place="input", count=gains.numel())
            )
    first = next((site.name for site in patient.norms if site.name in found and site.name in sites), None)
    if first is not None:
        facts += _losses(patient, first, found[first])
    return facts


def _losses(patient: Patient, name: str, parts: Sequence[Tensor]) -> list[Fact]:
    """Losses of samples that are amplified, against those of others; each sample by itself."""
    rows = [(number, row) for number, part in enumerate(parts) for row in range(len(part))][:MOST_SAMPLES]
    if len(parts) != len(patient.batches) or any(
        len(part) != patient.samples(batch) for part, batch in zip(parts, patient.batches, strict=True)
    ):
        return []  # its rows are no samples
    gains = torch.cat([part.rsqrt().median(1).values for part in parts])[: len(rows)]
    high = gains > AMPLIFIED * gains.median()
    facts = [Fact("amplified_samples", float(high.sum()), name, place="input", count=len(rows))]
    if not 3 <= int(high.sum()) < len(rows) - 3 or patient.why_no_loss:
        return facts
    patient.origin.rewind()
    set_modes(patient, "stored")
    draw = np.random.default_rng(patient.seed)
    losses = {}
    for which in (True, False):
        chosen = draw.permutation(np.flatnonzero(high.numpy() == which))[:MOST_LOSSES]
        picked = [rows[index] for index in chosen]
        losses[which] = [patient.loss(patient.part(patient.batches[number], [row])) for number, row in picked]
    p_value = float(mannwhitneyu(losses[True], losses[False], alternative="greater").pvalue)
    high_loss, other = float(np.mean(losses[True])), float(np.mean(losses[False]))
    return [
        *facts,
        Fact("amplified_loss", high_loss, name, place="loss", count=len(losses[True]), p_value=p_value),
        Fact("ordinary_loss", other, name, place="loss", count=len(losses[False])),
    ]
