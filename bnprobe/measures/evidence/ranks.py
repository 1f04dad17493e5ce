"""What differs between the processes or devices of a job: wrappers, and running statistics of the ranks.

Statistics of other ranks are given as their state dicts; or, where a process group is there and all ranks diagnose at
the same time, exchanged through the group's store. No collective is called: a rank that does not take part is waited
for a few seconds, and makes nobody hang.
"""

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.measures.evidence.patient import Patient, set_modes

__all__ = ["MOST_RANKS", "WAIT_SECONDS", "measure"]

MOST_RANKS = 8  # whose statistics are tried on the batches; ours: each costs a pass
WAIT_SECONDS = 20.0  # for ranks that are a little behind
_ROUNDS = itertools.count()  # every diagnosis of a job has keys of its own; all ranks count alike
Statistics = dict[str, tuple[Tensor, Tensor]]


def measure(patient: Patient) -> list[Fact]:
    """Facts of the job, and of layers whose statistics other ranks have, too.

    ``process_group``, ``world_size``, ``data_parallel`` (with the number of devices as ``count``), ``distributed``,
    ``broadcast_buffers``; of a layer ``rank_gap_mean``, the largest |mean_r - mean_0| over ranks in standard deviations
    (median over channels; ``channels`` has all), ``rank_gap_variance``, the largest |log(variance_r / variance_0)|, and
    ``rank_gap_share`` of channels that are beyond 0.25 or 0.4; of the model ``rank_loss`` of each rank (``call``), or
    ``rank_distance`` of its outputs from this model's in their standard deviations, and ``rank_weights_differ``.
    """
    facts = list(_job(patient))
    others = _given(patient) if patient.given.ranks is not None else _exchanged(patient)
    if others:
        facts += _gaps(patient, others)
        facts += _harm(patient, others)
        facts += _weights(patient)
    return facts


def _job(patient: Patient) -> Iterable[Fact]:
    group = dist.is_available() and dist.is_initialized()
    yield Fact("process_group", float(group))
    yield Fact("world_size", float(dist.get_world_size() if group else 1))
    parallel = [one for one in patient.model.modules() if isinstance(one, nn.DataParallel)]
    yield Fact("data_parallel", float(bool(parallel)), count=len(parallel[0].device_ids) if parallel else 0)
    ddp = nn.parallel.DistributedDataParallel
    wrappers = [one for one in patient.model.modules() if isinstance(one, ddp)]
    yield Fact("distributed", float(bool(wrappers)))
    if wrappers:
        yield Fact("broadcast_buffers", float(wrappers[0].broadcast_buffers))


def _own(patient: Patient) -> Statistics:
    found: Statistics = {}
    for site in patient.tracked:
        module: Any = site.module
        found[site.name] = (module.running_mean.detach().double().cpu(), module.running_var.detach().double().cpu())
    return found


def _given(patient: Patient) -> list[Statistics]:
    """From state dicts, whatever wrapper they were taken of.

    Raises:
        NotMeasuredError: they hold no statistics of this model's layers.
    """
    given = patient.given.ranks
    if not isinstance(given, Sequence) or not all(isinstance(one, Mapping) for one in given):
        raise NotMeasuredError(f"ranks= must be a list of state dicts; got {type(given).__name__}")
    found = [_statistics(patient, one) for one in given]
    if len(found) < 2 and found and _same(found[0], _own(patient)):
        raise NotMeasuredError("ranks= must hold the state dicts of other ranks; it holds this model's only")
    if not found or not all(found):
        raise NotMeasuredError("the state dicts of ranks= hold no running statistics of this model's layers")
    return found


def _statistics(patient: Patient, state: Mapping[str, Any]) -> Statistics:
    found: Statistics = {}
    for name, (mean, _) in _own(patient).items():
        for prefix in ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
            theirs = [state.get(f"{prefix}{name}.{key}") for key in ("running_mean", "running_var")]
            if all(isinstance(one, Tensor) and one.shape == mean.shape for one in theirs):
                found[name] = (theirs[0].detach().double().cpu(), theirs[1].detach().double().cpu())  # type: ignore[union-attr]
                break
    return found


def _exchanged(patient: Patient) -> list[Statistics]:
    """Through the store of the process group; nothing where there is one process.

    Raises:
        NotMeasuredError: another rank does not diagnose.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2:
        return []
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    store = PrefixStore(f"bnprobe/diagnosis/{next(_ROUNDS)}", _get_default_store())
    buffer = io.BytesIO()
    torch.save(_own(patient), buffer)
    store.set(str(dist.get_rank()), buffer.getvalue())
    keys = [str(rank) for rank in range(dist.get_world_size())]
    if not _arrived(store, keys):
        raise NotMeasuredError(f"the other ranks did not call diagnose within {WAIT_SECONDS:.0f} s")
    return [torch.load(io.BytesIO(store.get(key)), weights_only=True) for key in keys]


def _arrived(store: Any, keys: list[str]) -> bool:
    import time

    end = time.monotonic() + WAIT_SECONDS
    while not store.check(keys):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _same(one: Statistics, other: Statistics) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(mine, theirs) for name in one for mine, theirs in zip(one[name], other[name], strict=True)
    )


def _gaps(patient: Patient, ranks: Sequence[Statistics]) -> Iterable[Fact]:
    for name, (mean, variance) in _own(patient).items():
        theirs = [one[name] for one in ranks if name in one]
        if not theirs:
            continue
        alive = variance > 0
        scale = variance.clamp_min(1e-300)
        off = torch.stack([(one - mean).abs() / scale.sqrt() for one, _ in theirs]).amax(0)
        stretched = torch.stack([(one.clamp_min(1e-300) / scale).log().abs() for _, one in theirs]).amax(0)
        if not alive.any():
            continue
        # The bounds of "stale": the gap of two ranks hurts as one of statistics and data does.
        share = float(((off > 0.25) | (stretched > 0.4))[alive].double().mean())
        yield Fact(
            "rank_gap_mean", float(off[alive].median()), name, count=len(theirs), channels=_listed(off),
        )  # fmt: skip
        yield Fact("rank_gap_variance", float(stretched[alive].median()), name, count=len(theirs))
        yield Fact("rank_gap_share", share, name, count=len(theirs))


def _listed(values: Tensor) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.asarray(values.numpy(), dtype=np.float64)


def _harm(patient: Patient, ranks: Sequence[Statistics]) -> Iterable[Fact]:
    """What each rank would answer on these batches."""
    losses, outputs = not patient.why_no_loss, []
    for number, statistics in enumerate(ranks[:MOST_RANKS]):
        patient.origin.rewind()
        set_modes(patient, "stored")
        for site in patient.tracked:
            if site.name in statistics:
                module: Any = site.module
                with torch.no_grad():
                    module.running_mean.copy_(statistics[site.name][0])
                    module.running_var.copy_(statistics[site.name][1])
        if losses:
            sizes = [patient.samples(batch) for batch in patient.batches]
            values = [patient.loss(batch) for batch in patient.batches]
            mean = float(np.average(values, weights=sizes))
            yield Fact("rank_loss", mean, call=number, place="loss", count=len(values))
        else:
            outputs.append(torch.cat([patient.outputs(batch) for batch in patient.batches]))
    if len(outputs) > 1:
        spread = (outputs[0] - outputs[0].mean(0)).square().mean().sqrt()
        for number, one in enumerate(outputs):
            away = (one - outputs[0]).square().mean().sqrt() / spread
            yield Fact("rank_distance", float(away), call=number, place="output", count=len(one))


def _weights(patient: Patient) -> Iterable[Fact]:
    """Largest relative difference of a parameter's tensors: averaged gradients keep them equal."""
    worst, seen = 0.0, False
    own = {name: one for name, one in patient.root.named_parameters()}
    for state in patient.given.ranks or ():
        for name, one in own.items():
            theirs = state.get(name, state.get(f"module.{name}"))
            if isinstance(theirs, Tensor) and theirs.shape == one.shape:
                seen = True
                mine = one.detach().double().cpu()
                size = float(mine.norm())
                off = float((theirs.detach().double().cpu() - mine).norm())
                worst = max(worst, off / size if size else off)
    if seen:
        yield Fact("rank_weights_differ", worst)
