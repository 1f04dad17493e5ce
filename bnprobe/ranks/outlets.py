"""Where a probe's records go: to a run directory, to one for several processes, or to the process that has it."""

import os
import shutil
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from bnprobe.collect import Collector
from bnprobe.collected import Taken
from bnprobe.errors import RunError
from bnprobe.ranks.mail import Inbox, Outbox, Store, decode, encode, until
from bnprobe.ranks.meeting import Answer
from bnprobe.records import Layer
from bnprobe.store import Run, Writer
from bnprobe.store.manifest import read_manifest

__all__ = ["Alone", "Leader", "Member", "OpenWriter", "Outlet"]

FINAL_SECONDS = 30.0  # ours: what ranks do between their last common step and the end of the training, and more
_GRACE_SECONDS = 2.0  # after an exception, in which the others may share
_PENDING_BYTES = 256 * 2**20  # ours: steps that wait in rank 0's memory for a rank that reports nothing

OpenWriter = Callable[[Path], Writer]
_ALL = sys.maxsize  # a rank that has ended has completed every step


class Outlet(Protocol):
    """Takes what a collector holds.

    Attributes:
        path: the run directory.
        first_step: where the clock starts.
    """

    path: Path
    first_step: int

    @property
    def run(self) -> Run:
        """What has been written so far."""

    def write(self, collector: Collector, complete: int) -> None:
        """Take what the collector holds; this process brings nothing more for steps up to ``complete``."""

    def update_layers(self, layers: Sequence[Layer]) -> None:
        """Take this process' inventory."""

    def close(self, next_step: int | None = None) -> None:
        """Nothing more will come from this process."""


class Alone:
    """One process, one run directory."""

    def __init__(self, out: str | os.PathLike[str] | None, open_writer: OpenWriter) -> None:
        self.path = Path(out if out is not None else tempfile.mkdtemp(prefix="bnprobe-"))
        self.writer = open_writer(self.path)
        self.first_step = self.writer.first_step
        self.run = Run(self.path)
        if out is None:
            weakref.finalize(self.run, shutil.rmtree, self.path, ignore_errors=True)

    def write(self, collector: Collector, complete: int) -> None:  # noqa: ARG002 - nobody else has to complete it
        """Write everything."""
        if len(collector):
            self.writer.append(collector.table())

    def update_layers(self, layers: Sequence[Layer]) -> None:
        """Write the inventory."""
        self.writer.update_layers(layers)

    def close(self, next_step: int | None = None) -> None:
        """Close the run."""
        self.writer.close(next_step)


@dataclass
class Post:
    """What a rank sends.

    Attributes:
        complete: last step for which nothing more will come.
        taken: what it saw.
        broken: statistics that failed there, by position, with the reason.
        layers: its inventory, where it changed.
        next_step: where its clock stands, once it has ended.
        lost: last step of which something was not sent, for nobody read; -1 where all was.
    """

    complete: int
    taken: Taken
    broken: dict[int, str] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    next_step: int | None = None
    lost: int = -1


class Member:
    """A rank whose records rank 0 writes. It posts and goes on; it waits for nobody."""

    def __init__(self, store: Store, name: str, answer: Answer) -> None:
        self._box, self._answer, self._pid = Outbox(store, name), answer, os.getpid()
        self.path, self.first_step = Path(answer.path), answer.first_step
        self._layers: tuple[Layer, ...] = ()
        self._complete, self._lost, self._deaf = -1, -1, ""

    @property
    def run(self) -> Run:
        """What rank 0 has written so far.

        Raises:
            RunError: rank 0's run directory is not to be seen from here.
        """
        here, number = str(self.path), self._answer.session
        try:
            sessions = read_manifest(self.path).sessions
            if any(one.session == number and one.pid == self._answer.pid for one in sessions):
                return Run(self.path)
        except RunError:
            pass
        raise RunError(
            f"this rank's records are merged into rank 0's run, {here!r}, which cannot be read from here "
            "(another file system, or a run in memory that has ended): ask rank 0's probe for the run"
        )

    def write(self, collector: Collector, complete: int) -> None:
        """Post everything."""
        _check_process(self._pid, self.path)
        if len(collector) or complete > self._complete:
            self._complete = complete
            self._post(Post(complete, collector.take(), collector.broken), collector)

    def update_layers(self, layers: Sequence[Layer]) -> None:
        """Keep the inventory for the next post."""
        self._layers = tuple(layers)

    def close(self, next_step: int | None = None) -> None:
        """Post that this was all."""
        self._post(Post(_ALL, Taken(), next_step=next_step))

    def _post(self, post: Post, collector: Collector | None = None) -> None:
        if self._deaf:
            return
        try:
            if self._box.closed():
                self._stop("rank 0 has closed the run")
                return
            if collector is not None and self._box.full():
                if self._lost < 0:
                    _warn("rank 0 has not read this rank's records for long; until it does, they are left out")
                self._lost = post.complete
                return
            post = replace(post, layers=self._layers, lost=self._lost)
            self._box.post(encode(post) if collector is None else _encoded(post, collector))
            self._layers, self._lost = (), -1
        except Exception as error:  # whatever became of the store, it is not worth somebody's training
            self._stop(f"the job's store cannot be reached ({error})")

    def _stop(self, why: str) -> None:
        self._deaf = why
        _warn(f"{why}: what this rank sees from now on is not recorded")


class Leader:
    """Rank 0 of a run to which several ranks bring their records; it writes the steps that all have completed."""

    def __init__(self, store: Store, members: dict[int, str], alone: Alone) -> None:
        self._alone, self.path, self.first_step = alone, alone.path, alone.first_step
        self._boxes = {rank: Inbox(store, members[rank]) for rank in sorted(members)}
        self._complete = dict.fromkeys((0, *self._boxes), -1)
        self._next_steps: dict[int, int | None] = {}
        self._pending: dict[int, list[tuple[int, Taken]]] = {rank: [] for rank in self._complete}
        self._layers: dict[int, tuple[Layer, ...]] = {}
        self._written: list[Layer] = []
        self._collector: Collector | None = None
        self._pid = os.getpid()
        self._told_of_slow = False

    @property
    def run(self) -> Run:
        """What has been written so far."""
        return self._alone.run

    def write(self, collector: Collector, complete: int) -> None:
        """Keep everything, take what the others have posted, and write the steps that all have completed."""
        _check_process(self._pid, self.path)
        self._collector = collector
        if len(collector):
            data = _encoded(Post(complete, collector.take()), collector)
            self._pending[0].append((len(data), decode(data).taken))  # a copy on the CPU, as the others' are
        self._complete[0] = max(self._complete[0], complete)
        self._read()
        last = min(self._complete[rank] for rank in (0, *self._boxes))
        if last < complete and sum(size for parts in self._pending.values() for size, _ in parts) > _PENDING_BYTES:
            self._tell_slow(last, complete)
            last = complete
        self._write(last)
        self._write_layers()

    def update_layers(self, layers: Sequence[Layer]) -> None:
        """Write the inventory of all ranks."""
        self._layers[0] = tuple(layers)
        self._write_layers()

    def close(self, next_step: int | None = None) -> None:
        """Wait a little for the others to end, write everything, and close the run."""
        self._complete[0] = _ALL
        try:
            if self._collector is not None:
                try:
                    self._wait_for_ends()
                finally:  # also when the user has no patience
                    self._write(_ALL)
                    self._write_layers()
        finally:
            self._part()
            steps = [step for step in (next_step, *self._next_steps.values()) if step is not None]
            self._alone.close(max(steps, default=None))

    def _wait_for_ends(self) -> None:
        leaving = sys.exc_info()[0] is not None or getattr(sys, "last_value", None) is not None
        seconds = min(_GRACE_SECONDS, FINAL_SECONDS) if leaving else FINAL_SECONDS
        if not until(self._all_ended, seconds):
            self._tell_missing(seconds)

    def _all_ended(self) -> bool:
        self._read()
        return all(self._complete[rank] == _ALL for rank in self._boxes)

    def _tell_slow(self, last: int, complete: int) -> None:
        if not self._told_of_slow:
            self._told_of_slow = True
            slow = [rank for rank, step in self._complete.items() if step < complete]
            _warn(
                f"{_ranks(slow)} reported nothing after step {last} for long: later steps are written without, "
                "and what comes of them stands in records beside; `count` tells what went in"
            )

    def _tell_missing(self, seconds: float) -> None:
        for rank, step in self._complete.items():
            if step < _ALL:
                after = f"after step {step}" if step >= 0 else "in the whole run"
                _warn(f"rank {rank} did not report its end within {seconds:g} s: what it saw {after} is missing")

    def _read(self) -> None:
        """Take what has been posted."""
        for rank, box in list(self._boxes.items()):
            try:
                while self._complete[rank] < _ALL and (data := box.take()) is not None:
                    self._receive(rank, decode(data), len(data))
            except Exception as error:  # the store is gone, or what came is not what was sent
                del self._boxes[rank]
                _warn(f"what rank {rank} saw after step {self._complete[rank]} is missing: it cannot be read ({error})")

    def _receive(self, rank: int, post: Post, size: int) -> None:
        self._pending[rank].append((size, post.taken))
        self._complete[rank] = max(self._complete[rank], post.complete)
        if post.layers:
            self._layers[rank] = post.layers
        if post.next_step is not None:
            self._next_steps[rank] = post.next_step
        if post.lost >= 0:
            _warn(f"some of what rank {rank} saw up to step {post.lost} is missing: rank 0 read too slowly")
        for index, why in post.broken.items():
            if self._collector is not None:
                self._collector.give_up(index, f"on rank {rank}: {why}")

    def _write(self, last: int) -> None:
        """Write all steps up to ``last``, ranks merged in their order, so that the result does not depend on time."""
        early = [taken.split(last) for parts in self._pending.values() for _, taken in parts]
        self._pending = {rank: [one for one in parts if len(one[1])] for rank, parts in self._pending.items()}
        if self._collector is not None and any(map(len, early)):
            self._alone.writer.append(self._collector.table(self._collector.join(early)))

    def _write_layers(self) -> None:
        """An inventory's line comes from the first rank that observed the layer."""
        lines = [next((one for one in same if one.observed), same[0]) for same in zip(*self._in_order(), strict=True)]
        if lines and lines != self._written:
            self._written = lines
            self._alone.update_layers(lines)

    def _in_order(self) -> list[tuple[Layer, ...]]:
        return [self._layers[rank] for rank in sorted(self._layers)]

    def _part(self) -> None:
        for box in self._boxes.values():
            try:
                box.close()
            except Exception as error:
                _warn(f"a rank could not be told that the run is closed: {error}")


def _check_process(pid: int, path: Path) -> None:
    """A fork shares the store's connection: two processes that use it would read each other's answers."""
    if os.getpid() != pid:
        raise RunError(f"the probe that records in {str(path)!r} belongs to process {pid}, this is {os.getpid()}")


def _encoded(post: Post, collector: Collector) -> bytes:
    """The post as bytes, without the statistics whose states cannot travel."""
    try:
        return encode(post)
    except Exception:
        _give_up_untransportable(post.taken, collector)
        return encode(replace(post, broken=collector.broken))


def _give_up_untransportable(taken: Taken, collector: Collector) -> None:
    for index in {index for entry in taken.entries.values() for index in entry.states}:
        states = [entry.states[index] for entry in taken.entries.values() if index in entry.states]
        try:
            encode(states)
        except Exception as error:  # a user's own state may fail in its own way
            collector.give_up(index, f"its state cannot be sent to another process: {error}")
            for entry in taken.entries.values():
                entry.states.pop(index, None)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _warn(message: str) -> None:
    warnings.warn(f"bnprobe: {message}", RuntimeWarning, stacklevel=4)
