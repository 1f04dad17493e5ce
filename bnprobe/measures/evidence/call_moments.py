"""Moments of every call of every batch norm in a pass: a forward, or a loss that calls the model several times."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.hooks.outputs import calls_at
from bnprobe.measures.evidence.patient import Patient, set_modes
from bnprobe.measures.evidence.pooling import MOST_PASSES, SETTLED, Pooled, install

__all__ = ["Call", "Pass", "as_arrays", "mixture", "passes_of"]

Array = NDArray[np.float64]
Call = tuple[int, Tensor, Tensor]  # values a channel, means [C], biased variances [C]; float64
Pass = list[Call]


def passes_of(
    patient: Patient, run: Callable[[Any], Any], training: bool = False, first: int | None = None
) -> dict[str, list[Pass]]:
    """Of each layer, for each batch that reaches it, its calls in their order.

    A call whose moments are those of an earlier call of the pass is the same input again, and left out: something is
    computed twice. Batches of a single value, which have no statistics, are left out. Under the empty name are the
    calls of the model as a whole, without moments.

    Args:
        patient: the model, in the modes that it shall run in.
        run: one pass, given a batch.
        training: whether to leave out calls of layers that are in evaluation mode: they use and move no statistics.
        first: only so many batches; None takes all.
    """
    sites = {site.name: site for site in patient.batch_norms}
    found: dict[str, list[Pass]] = {}
    now: dict[str, Pass] = {}
    layers = {"": patient.root} | {name: site.module for name, site in sites.items()}

    def see(name: str, _: int, x: Tensor, __: object) -> None:
        if name not in sites:  # the model itself: only counted
            now.setdefault(name, []).append((0, x.new_zeros(0), x.new_zeros(0)))
            return
        axis = sites[name].channel_axis(x)
        if axis is None or not x.numel() or (training and not sites[name].module.training):
            return
        values = x.detach().movedim(axis, 0).flatten(1).double()
        variance, mean = torch.var_mean(values, 1, correction=0)
        calls = now.setdefault(name, [])
        if not any(torch.equal(mean, one) and torch.equal(variance, other) for _, one, other in calls):
            calls.append((values.shape[1], mean, variance))

    for batch in patient.batches[:first]:
        now.clear()
        try:
            with calls_at(layers, see), torch.no_grad():
                run(batch)
        except ValueError:
            if not any(module.training for module in patient.root.modules()):
                raise
            continue
        for name, calls in now.items():
            found.setdefault(name, []).append(calls)
    return found


def mixture(patient: Patient, run: Callable[[Any], Any], may_differ: bool) -> tuple[Pooled, bool]:
    """Statistics over all calls of all passes, and whether they are others than those over all forwards.

    Args:
        patient: the model.
        run: one pass.
        may_differ: whether a pass is something else than a forward.
    """
    if not may_differ:
        return patient.pooled, False
    usual = patient.pooled
    patient.origin.rewind()
    set_modes(patient, "stored")
    install(patient, usual)
    if _pooled(passes_of(patient, run)).count == usual.count:  # the loss is one forward
        return usual, False
    patient.origin.rewind()
    set_modes(patient, "batch")
    now = _pooled(passes_of(patient, run))
    set_modes(patient, "stored")
    for _ in range(MOST_PASSES):
        install(patient, now)
        before, now = now, _pooled(passes_of(patient, run))
        if all(_near(before, now, name) for name in now.mean):
            break
    return now, True


def as_arrays(passes: Sequence[Pass]) -> tuple[Array, Array, Array] | None:
    """Means and variances ``[B, k, C]`` and counts ``[B, k]`` of the passes with the usual number k > 1 of calls.

    None where a layer is called once, or two passes that can be compared are not there.
    """
    numbers = [len(one) for one in passes]
    usual = max(set(numbers), key=numbers.count)
    kept = [one for one in passes if len(one) == usual]
    if usual < 2 or len(kept) < 2:
        return None
    means = np.stack([torch.stack([mean for _, mean, _ in one]).cpu().numpy() for one in kept])
    variances = np.stack([torch.stack([variance for _, _, variance in one]).cpu().numpy() for one in kept])
    counts = np.array([[count for count, _, _ in one] for one in kept], dtype=np.float64)
    if not (np.isfinite(means).all() and np.isfinite(variances).all()):
        return None
    return means, variances, counts


def _pooled(found: dict[str, list[Pass]]) -> Pooled:
    mean, variance, count = {}, {}, {}
    for name, passes in found.items():
        calls = [] if not name else [call for one in passes for call in one if bool(torch.isfinite(call[2]).all())]
        if not calls:
            continue
        sizes = torch.tensor([size for size, _, _ in calls], dtype=torch.float64, device=calls[0][1].device)[:, None]
        means, variances = torch.stack([one for _, one, _ in calls]), torch.stack([one for _, _, one in calls])
        mean[name] = (sizes * means).sum(0) / sizes.sum()
        variance[name] = (sizes * (variances + (means - mean[name]).square())).sum(0) / sizes.sum()
        count[name] = int(sizes.sum())
    return Pooled(mean, variance, count, {}, 1, float("inf"))


def _near(before: Pooled, now: Pooled, name: str) -> bool:
    if name not in before.mean:
        return False
    scale = now.variance[name].clamp_min(1e-300)
    moved = (now.mean[name] - before.mean[name]).abs() / scale.sqrt()
    stretched = (scale.log() - before.variance[name].clamp_min(1e-300).log()).abs()
    return bool((torch.maximum(moved, stretched) < SETTLED)[now.variance[name] > 0].all())
