"""One record over the processes of a distributed job.

Every rank attaches with the same arguments. Rank 0 has the run directory; the others post their merged states (never
activations) to the job's key-value store, and rank 0 merges and writes the steps that all have completed. There is no
collective in it: a rank that attaches alone, flushes alone, or dies keeps nobody waiting beyond a bound.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bnprobe.ranks import mail, meeting
from bnprobe.ranks.meeting import Answer, Gathered, Hello
from bnprobe.ranks.outlets import Alone, Leader, Member, Outlet
from bnprobe.store import Writer

__all__ = ["Outlet", "leads", "open_outlet", "seed_of_rank"]

Out = str | os.PathLike[str] | None


def seed_of_rank(seed: int) -> int:
    """A seed of this rank's own, so that ranks look at different places; rank 0 keeps the seed."""
    rank, _ = mail.world()
    return int(np.random.SeedSequence([seed % 2**63, rank]).generate_state(1, np.uint64)[0] >> 1) if rank else seed


def leads(outlet: Outlet) -> bool:
    """Whether this process writes the run itself; where several share one, what need not be done twice is done here."""
    return not isinstance(outlet, Member)


def open_outlet(
    out: Out, open_writer: Callable[[Path, Mapping[str, Any]], Writer], settings: Mapping[str, Any], layers: list[str]
) -> Outlet:
    """Where the records of a probe in this process go.

    Args:
        out: the run directory that was asked for, or None for a temporary one.
        open_writer: opens a run directory, given it and what its settings say beside ``settings``.
        settings: what is measured; ranks whose settings, layers and ``out`` equal rank 0's form one run.
        layers: names of the layers.
    """
    rank, size = mail.world()
    if size < 2:
        return Alone(out, lambda path: open_writer(path, {}))
    hello = Hello.of(out, settings, layers)
    try:
        store = mail.shared_store()
    except Exception as error:  # a process group of another make; meetings there fail, and say so
        store = mail.NoStore(str(error))
    return _lead(out, open_writer, size, store, hello) if rank == 0 else _join(out, open_writer, rank, store, hello)


def _lead(
    out: Out, open_writer: Callable[[Path, Mapping[str, Any]], Writer], size: int, store: mail.Store, hello: Hello
) -> Outlet:
    try:
        gathered = meeting.gather(store, size, hello)
    except Exception as error:
        gathered = Gathered(missing=dict.fromkeys(range(1, size), f"the job's store cannot be reached: {error}"))
    for why in sorted(set(gathered.missing.values())):
        ranks = [str(rank) for rank, reason in sorted(gathered.missing.items()) if reason == why]
        _warn(f"rank 0's records do not include rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}: {why}")
    reply = Answer(refused="rank 0 could not open its run directory")
    try:
        taking_part = {"ranks": [0, *sorted(gathered.members)]}
        alone = Alone(out, lambda path: open_writer(path, taking_part))
        writer = alone.writer
        reply = Answer("", False, str(alone.path.absolute()), writer.first_step, writer.session, os.getpid())
    finally:
        for name in gathered.members.values():
            _answer(store, name, reply)
    return Leader(store, gathered.members, alone) if gathered.members else alone


def _join(
    out: Out, open_writer: Callable[[Path, Mapping[str, Any]], Writer], rank: int, store: mail.Store, hello: Hello
) -> Outlet:
    try:
        name, answer = meeting.call(store, rank, hello)
    except Exception as error:
        name, answer = "", Answer(refused=f"the job's store cannot be reached: {error}")
    if not answer.refused:
        return Member(store, name, answer)
    # Rank 0 has the directory that was asked for, or will have it.
    mine = out if out is None or answer.elsewhere else Path(f"{os.fspath(out)}-rank{rank}")
    where = "in memory" if mine is None else f"in {str(mine)!r}"
    _warn(f"rank {rank} is not part of rank 0's run: {answer.refused}; its records are its own, {where}")
    return Alone(mine, lambda path: open_writer(path, {"ranks": [rank]}))


def _answer(store: mail.Store, name: str, reply: Answer) -> None:
    try:
        meeting.answer(store, name, reply)
    except Exception as error:
        _warn(f"rank {name.split('/')[0]} could not be told of rank 0's run: {error}")


def _warn(message: str) -> None:
    warnings.warn(f"bnprobe: {message}", RuntimeWarning, stacklevel=5)
