"""Which axis a norm layer equalizes, and whether another one was left as uneven as it was.

Over the axis that a batch norm declares (its second) variances are equal behind it, whatever they were before. Features
have variances of their own, positions seldom do: where those along the declared axis were nearly equal before the norm,
and those along another axis differ by orders of magnitude behind it, the layer was probably given its axes in the wrong
order. Positions are told from features by their neighbours, which resemble each other more than distant ones.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.outputs import calls_at
from bnprobe.hooks.sites import Site
from bnprobe.hooks.tensors import tensors_in
from bnprobe.measures.evidence.patient import Patient, set_modes
from bnprobe.measures.evidence.pooling import install

__all__ = ["measure", "smoothness", "spread"]

MOST_VALUES = 2**20  # of a tensor that are looked at: variances to a hundredth, at the price of a small layer
MOST_BATCHES = 8
PERMUTATIONS = 2000
MOST_ROWS = 64  # samples that are permuted
FLOOR = 1e-6  # of the mean variance: what is constant has no logarithm


@dataclass
class _Seen:
    """Of one layer: some samples of some batches, ``[n, ...]`` in float64, before and behind it."""

    before: list[Tensor] = field(default_factory=list)
    behind: list[Tensor] = field(default_factory=list)


def measure(patient: Patient) -> list[Fact]:
    """Of batch norms, and layer norms over several axes, whose input has three axes or more.

    ``axis_spread_before`` and ``axis_spread_behind``: standard deviation of the logarithms of variances along the
    declared axis before the layer, and along the most uneven other axis (``axis_other``, its number) behind it, with a
    p-value by permutation of that axis within samples. ``axis_smoothness_declared`` and ``axis_smoothness_other``: how
    much more neighbours along them correlate than others do. ``axes_normalized``: of a layer norm.
    ``axis_mismatch``: the layer declares another number of features than its second axis has, and one of its other
    axes has that number.
    """
    sites = {site.name: site for site in patient.norms if _is_wanted(site)}
    if not sites:
        raise NotMeasuredError("no batch norm, and no layer norm over several axes")
    seen = _look(patient, sites)
    facts = []
    for name, tensors in seen.items():
        before, behind = torch.cat(tensors.before), torch.cat(tensors.behind)
        if sites[name].family == "layer_norm":
            facts += _layer_norm(sites[name], before, behind, patient.seed)
        else:
            facts += _batch_norm(sites[name], before, behind, patient.seed)
    return facts


def spread(values: Tensor, axis: int) -> float:
    """Standard deviation of the logarithms of the variances along an axis."""
    variances = values.movedim(axis, 0).flatten(1).var(1, correction=0)
    level = variances.mean()
    if not float(level) > 0:
        return 0.0
    return float((variances / level).clamp_min(FLOOR).log().std(correction=0))


def smoothness(values: Tensor, axis: int) -> float:
    """How much more neighbours along an axis correlate than all pairs; 0 where fewer than four of them vary."""
    rows = values.movedim(axis, 0).flatten(1)[:64, :16384]
    rows = rows - rows.mean(1, keepdim=True)
    norm = rows.norm(dim=1)
    rows = rows[norm > 0] / norm[norm > 0, None]
    count = len(rows)
    if count < 4:
        return 0.0
    correlations = rows @ rows.T
    near = correlations.diagonal(1).mean()
    every = (correlations.sum() - correlations.diagonal().sum()) / (count * (count - 1))
    return float(near - every)


def _is_wanted(site: Site) -> bool:
    if site.family == "batch_norm":
        return True
    shape = getattr(site.module, "normalized_shape", ())
    return site.family == "layer_norm" and isinstance(shape, tuple) and len(shape) > 1


def _look(patient: Patient, sites: dict[str, Site]) -> dict[str, _Seen]:
    seen: dict[str, _Seen] = {}
    pooled = patient.pooled
    patient.origin.rewind()
    set_modes(patient, "stored")
    install(patient, pooled)

    def see(name: str, call: int, x: Tensor, output: object) -> None:
        _, y = next(tensors_in(output), ("", None))
        if call or y is None or x.dim() < 3 or y.shape != x.shape or not x.is_floating_point() or not x.numel():
            return
        kept = seen.setdefault(name, _Seen())
        if not kept.before or kept.before[0].shape[1:] == x.shape[1:]:
            rows = max(1, MOST_VALUES // (x[0].numel() * min(MOST_BATCHES, len(patient.batches))))
            kept.before.append(x[:rows].detach().double().cpu())
            kept.behind.append(y[:rows].detach().double().cpu())

    for batch in patient.batches[:MOST_BATCHES]:
        with calls_at({name: site.module for name, site in sites.items()}, see), torch.no_grad():
            patient.run(batch)
    return seen


def _batch_norm(site: Site, before: Tensor, behind: Tensor, seed: int) -> list[Fact]:
    declared, size = site.channel_axis(before), site.channels
    stock = type(site.module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    facts = []
    if stock and size is not None and before.shape[1] != size:
        facts.append(Fact("axis_mismatch", float(size in before.shape[2:]), site.name, place="input"))
        declared = 1
    if declared != 1 or before.shape[1] < 2 or not bool(torch.isfinite(behind).all()):
        return facts  # channels last by design, or a single one
    others = {axis: spread(behind, axis) for axis in range(2, before.dim()) if before.shape[axis] > 1}
    if not others:
        return facts
    other = max(others, key=others.__getitem__)
    p_value = _p_value(behind, other, seed)
    values = {
        "axis_size": before.shape[1],
        "axis_other": other,
        "axis_spread_before": spread(before, 1),
        "axis_smoothness_declared": smoothness(before, 1),
        "axis_smoothness_other": smoothness(before, other),
    }
    facts += [Fact(name, float(value), site.name, place="input") for name, value in values.items()]
    count = before.shape[other]
    return [*facts, Fact("axis_spread_behind", others[other], site.name, place="output", count=count, p_value=p_value)]


def _layer_norm(site: Site, before: Tensor, behind: Tensor, seed: int) -> list[Fact]:
    normalized = len(site.module.normalized_shape)  # type: ignore[arg-type]
    axes = [axis for axis in range(before.dim() - normalized, before.dim()) if before.shape[axis] > 1]
    if not axes or not bool(torch.isfinite(behind).all()):
        return []
    spreads = {axis: spread(behind, axis) for axis in axes}
    other = max(spreads, key=spreads.__getitem__)
    return [
        Fact("axes_normalized", float(normalized), site.name, place="input"),
        Fact("input_axes", float(before.dim()), site.name, place="input"),
        Fact("axis_other", float(other), site.name, place="input"),
        Fact("axis_smoothness_other", smoothness(before, other), site.name, place="input"),
        Fact(
            "axis_spread_behind", spreads[other], site.name, place="output", count=before.shape[other],
            p_value=_p_value(behind, other, seed),
        ),
    ]  # fmt: skip


def _p_value(values: Tensor, axis: int, seed: int) -> float:
    """Of the null hypothesis that the entries along an axis can be exchanged within each sample."""
    rows = values[:MOST_ROWS].movedim(axis, 1).flatten(2)
    rows = rows - rows.mean((0, 2), keepdim=True)
    squares = rows.square().mean(2)
    table: NDArray[np.float64] = (squares / squares.mean().clamp_min(1e-300)).clamp_min(FLOOR).log().numpy()
    draw = np.random.default_rng(seed)
    found = table.mean(0).var()
    chance = np.array([draw.permuted(table, axis=1).mean(0).var() for _ in range(PERMUTATIONS)])
    return float((1 + (chance >= found).sum()) / (1 + PERMUTATIONS))
