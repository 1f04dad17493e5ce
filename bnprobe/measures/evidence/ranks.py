"""What differs between the processes or devices of a job: wrappers, and running statistics of the ranks.

Statistics of other ranks are given as their state dicts; or, where a process group is there and all ranks diagnose at
the same time, exchanged through the group's store. No collective is called: a rank that does not take part is waited
for a few seconds, and makes nobody hang.
"""

import io
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.measures.evidence.patient import Patient, set_modes
from bnprobe.measures.evidence.resampling import excess_test

__all__ = ["MOST_RANKS", "WAIT_SECONDS", "measure"]

MOST_RANKS = 8  # whose statistics are tried on the batches; ours: each costs a pass
LEAST_LOSS = 0.05  # nats; below it a relative excess says nothing
WAIT_SECONDS = 20.0  # for ranks that are a little behind
_ROUNDS = itertools.count()  # every diagnosis of a job has keys of its own; all ranks count alike
Statistics = dict[str, tuple[Tensor, Tensor]]


def measure(patient: Patient) -> list[Fact]:
    """Facts of the job, and of layers whose statistics other ranks have, too.

    ``process_group``, ``world_size``, ``data_parallel`` (with the number of devices as ``count``), ``distributed``,
    ``broadcast_buffers``; of a layer ``rank_gap_mean``, the largest |mean_r - mean_0| over ranks in standard deviations
    (median over channels; ``channels`` has all), ``rank_gap_variance``, the largest |log(variance_r / variance_0)|, and
    ``rank_gap_share`` of channels that are beyond 0.25 or 0.4; of the model ``rank_loss`` of each rank (``call``),
    ``merged_rank_loss`` with statistics of all ranks together, ``rank_excess`` of the worst rank over these, with a
    p-value over batches (or ``rank_distance`` of outputs in their standard deviations), and ``rank_weights_differ``.
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
    store.set(str(dist.get_rank()), buffer.getvalue())  # type: ignore[arg-type]  # its stubs lack bytes
    keys = [str(rank) for rank in range(dist.get_world_size())]
    if not _arrived(store, keys):
        raise NotMeasuredError(f"the other ranks did not call diagnose within {WAIT_SECONDS:.0f} s")
    return [torch.load(io.BytesIO(store.get(key)), weights_only=True) for key in keys]


def _arrived(store: Any, keys: list[str]) -> bool:
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
        yield Fact("rank_gap_mean", float(off[alive].median()), name, count=len(theirs), channels=_listed(off))
        yield Fact("rank_gap_variance", float(stretched[alive].median()), name, count=len(theirs))
        yield Fact("rank_gap_share", share, name, count=len(theirs))


def _listed(values: Tensor) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.asarray(values.numpy(), dtype=np.float64)


def _harm(patient: Patient, ranks: Sequence[Statistics]) -> Iterable[Fact]:
    """What each rank would answer on these batches, and what all of them together would."""
    tried = [*ranks[:MOST_RANKS], _merged(ranks)]
    if not patient.why_no_loss:
        yield from _losses(patient, tried)
        return
    outputs = []
    for statistics in tried:
        _put(patient, statistics)
        outputs.append(torch.cat([patient.outputs(batch) for batch in patient.batches]))
    spread = (outputs[-1] - outputs[-1].mean(0)).square().mean().sqrt()
    if float(spread) > 0:
        for number, one in enumerate(outputs[:-1]):
            away = (one - outputs[-1]).square().mean().sqrt() / spread
            yield Fact("rank_distance", float(away), call=number, place="output", count=len(one))


def _losses(patient: Patient, tried: Sequence[Statistics]) -> Iterable[Fact]:
    sizes = np.array([patient.samples(batch) for batch in patient.batches], dtype=np.float64)
    found = []
    for statistics in tried:
        _put(patient, statistics)
        found.append(np.array([patient.loss(batch) for batch in patient.batches]))
    means = [float(np.average(values, weights=sizes)) for values in found]
    for number, mean in enumerate(means[:-1]):
        yield Fact("rank_loss", mean, call=number, place="loss", count=sizes.size)
    yield Fact("merged_rank_loss", means[-1], place="loss", count=sizes.size)
    worst = int(np.argmax(means[:-1]))
    p_value = excess_test((found[worst] - found[-1]) * sizes / sizes.mean())
    yield Fact(
        "rank_excess", (means[worst] - means[-1]) / max(means[-1], LEAST_LOSS), place="loss", count=sizes.size,
        p_value=min(1.0, p_value * (len(means) - 1)),  # the worst of so many
    )  # fmt: skip


def _merged(ranks: Sequence[Statistics]) -> Statistics:
    """Of all ranks' samples together, as if each had as many."""
    found: Statistics = {}
    for name in ranks[0]:
        some = [one[name] for one in ranks if name in one]
        means, variances = torch.stack([mean for mean, _ in some]), torch.stack([variance for _, variance in some])
        found[name] = (means.mean(0), variances.mean(0) + means.var(0, correction=0))
    return found


def _put(patient: Patient, statistics: Statistics) -> None:
    patient.origin.rewind()
    set_modes(patient, "stored")
    for site in patient.tracked:
        if site.name in statistics:
            module: Any = site.module
            with torch.no_grad():
                module.running_mean.copy_(statistics[site.name][0])
                module.running_var.copy_(statistics[site.name][1])


def _weights(patient: Patient) -> Iterable[Fact]:
    """Largest relative difference of a parameter's tensors: averaged gradients keep them equal."""
    worst, seen = 0.0, False
    own = dict(patient.root.named_parameters())
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
