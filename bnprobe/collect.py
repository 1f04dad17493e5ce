"""What was seen since the last flush, and the table made of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from bnprobe.records import COMPUTED, Measured, Record
from bnprobe.statistics.base import Observation, Statistic
from bnprobe.statistics.sample import Sample
from bnprobe.statistics.weights import ShardedNorm
from bnprobe.store import Placed, build_table

__all__ = ["UNMEASURABLE", "Collector", "Key", "Taken"]

# What a strange tensor or a user's own statistic may raise while it is read.
UNMEASURABLE = (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError)

_FOLD_AT = 16  # observations of one key (micro-batches, a validation pass) that wait before they are merged


class Key(NamedTuple):
    """Which record: the columns of :data:`bnprobe.records.KEYS`."""

    step: int
    phase: str
    layer: str
    call: int
    place: str


@dataclass
class _Entry:
    """One record in the making."""

    count: int = 0
    waiting: list[Observation] = field(default_factory=list)
    states: dict[int, Any] = field(default_factory=dict)


Number = Tensor | float | ShardedNorm


@dataclass
class Taken:
    """What a collector had seen at some moment: counts and the statistics' states by key, and single numbers."""

    entries: dict[Key, _Entry] = field(default_factory=dict)
    numbers: dict[Key, dict[str, Number]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.entries) + len(self.numbers)

    def split(self, last: int) -> "Taken":
        """Remove and return everything up to step ``last``."""
        early = Taken(
            {key: entry for key, entry in self.entries.items() if key.step <= last},
            {key: row for key, row in self.numbers.items() if key.step <= last},
        )
        for mine, gone in ((self.entries, early.entries), (self.numbers, early.numbers)):
            for key in gone:
                del mine[key]
        return early


class Collector:
    """Keeps observations until :meth:`table` turns them into rows.

    Args:
        statistics: what is taken of each observation.

    Attributes:
        bytes: size of the samples that wait.
        failures: statistics whose ``finish`` failed, with the reason; their values are missing.
    """

    def __init__(self, statistics: Sequence[Statistic]) -> None:
        self._statistics = tuple(statistics)
        self._entries: dict[Key, _Entry] = {}
        self._numbers: dict[Key, dict[str, Number]] = {}
        self._wanted: dict[tuple[int, str], tuple[int, ...]] = {}
        self.bytes = 0
        self.failures: dict[str, str] = {}
        self._broken: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._entries) + len(self._numbers)

    def prepare(self, seen: Observation) -> bool:
        """Read of a tensor, while its hook runs, what the statistics will need; whether any wants it."""
        wanted = self._applying(seen.site, seen.place)
        for index in wanted:
            if self._statistics[index].reads_all:
                with torch.no_grad():
                    self.bytes += _size(self._state(index, seen))
            elif "sample" not in seen.__dict__:
                self.bytes += seen.sample.values.nbytes if seen.same_as is None else 0
        return bool(wanted)

    def add(self, key: Key, seen: Observation) -> None:
        """One more tensor for a record."""
        if not self._applying(seen.site, seen.place):
            return
        entry = self._entries.setdefault(key, _Entry())
        entry.count += seen.count
        entry.waiting.append(seen)
        if len(entry.waiting) >= _FOLD_AT:
            with torch.no_grad():
                self._fold(entry)

    def add_numbers(self, key: Key, numbers: Mapping[str, Number]) -> None:
        """Single numbers that need no statistic: norms and learning rates."""
        self._numbers.setdefault(key, {}).update(numbers)

    def take(self) -> Taken:
        """Everything seen so far; the collector is empty afterwards."""
        # Another thread may go on listening: what it brings belongs to the next one.
        entries, numbers = self._entries, self._numbers
        self._entries, self._numbers, self.bytes = {}, {}, 0
        with torch.no_grad():
            for entry in entries.values():
                self._fold(entry)
        return Taken(entries, numbers)

    def join(self, parts: Iterable[Taken]) -> Taken:
        """What several processes saw, as if one had: states and shards merge, of other numbers the first stands."""
        whole = Taken()
        merged: dict[tuple[int, int, int], tuple[Any, Any, Any]] = {}  # of a tensor seen at two places, once
        with torch.no_grad():
            for part in parts:
                for key, entry in part.entries.items():
                    mine = whole.entries.setdefault(key, _Entry())
                    mine.count += entry.count
                    for index, state in entry.states.items():
                        before = mine.states.get(index)
                        mine.states[index] = state if before is None else self._merge(index, before, state, merged)
                for key, row in part.numbers.items():
                    numbers = whole.numbers.setdefault(key, {})
                    for name, value in row.items():
                        first = numbers.setdefault(name, value)
                        if first is not value and isinstance(first, ShardedNorm) and isinstance(value, ShardedNorm):
                            numbers[name] = first.merge(value)
        return whole

    def table(self, taken: Taken | None = None) -> pa.Table:
        """Records as one table: of ``taken``, else of everything so far, after which the collector is empty."""
        taken = self.take() if taken is None else taken
        entries, numbers = taken.entries, {key: _known(row) for key, row in taken.numbers.items()}
        numbers = {key: row for key, row in numbers.items() if row}
        placed: dict[str, list[Placed]] = {}
        with torch.no_grad():
            for index, statistic in enumerate(self._statistics):
                states = [entry.states.get(index) for entry in entries.values()]
                try:
                    finished = list(_finish(statistic, states)) if index not in self._broken else []
                except UNMEASURABLE as error:
                    self._fail(index, error)
                    continue
                for name, part in finished:
                    placed.setdefault(name, []).append(part)
        for name, part in _place_numbers(numbers, offset=len(entries)):
            placed.setdefault(name, []).append(part)
        records = [Record(*key, entry.count) for key, entry in entries.items()]
        records += [Record(*key, 0) for key in numbers]
        return build_table(records, placed)

    @property
    def broken(self) -> dict[int, str]:
        """Statistics that failed, by their position, with the reason."""
        return dict(self._broken)

    def give_up(self, index: int, why: str) -> None:
        """A statistic that failed once is not taken again: half its rows would say nothing true."""
        if index not in self._broken:
            self._broken[index] = self.failures[type(self._statistics[index]).__name__] = why

    def _fail(self, index: int, error: Exception) -> None:
        self.give_up(index, f"{type(error).__name__}: {error}")

    def _merge(self, index: int, a: Any, b: Any, merged: dict[tuple[int, int, int], tuple[Any, Any, Any]]) -> Any:
        known = merged.get((index, id(a), id(b)))
        if known is None:
            result = a
            try:
                result = self._statistics[index].merge(a, b) if index not in self._broken else a
            except UNMEASURABLE as error:
                self._fail(index, error)
            known = merged[index, id(a), id(b)] = a, b, result  # ids are good while their objects live
        return known[2]

    def _applying(self, site: Any, place: str) -> tuple[int, ...]:
        known = self._wanted.get((id(site), place))
        if known is None:
            known = tuple(i for i, statistic in enumerate(self._statistics) if statistic.applies(site, place))
            self._wanted[id(site), place] = known
        return known

    def _fold(self, entry: _Entry) -> None:
        waiting, entry.waiting = entry.waiting, []
        for seen in waiting:
            for index in self._applying(seen.site, seen.place):
                if index in self._broken:
                    continue
                try:
                    state = self._state(index, seen)
                    if index in entry.states:
                        state = self._statistics[index].merge(entry.states[index], state)
                    entry.states[index] = state
                except UNMEASURABLE as error:
                    self._fail(index, error)

    def _state(self, index: int, seen: Observation) -> Any:
        """The state of one observation; of a tensor seen at two places, the same object."""
        statistic, owner = self._statistics[index], seen
        while owner.same_as is not None and not statistic.knows_layers:
            owner = owner.same_as
        if index not in owner.states:
            owner.states[index] = statistic.update(statistic.start(), seen)
        return owner.states[index]


def _size(state: Any) -> int:
    """Bytes of the tensors that a state holds."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Sample):
        return state.values.nbytes
    return sum(map(_size, state)) if isinstance(state, tuple) else 0


def _finish(statistic: Statistic, states: Sequence[Any]) -> Iterable[tuple[str, Placed]]:
    """Results of one statistic for its rows; equal states (tensors seen at two places) are finished once."""
    unique: dict[int, int] = {}
    rows: list[int] = []
    which: list[int] = []
    distinct: list[Any] = []
    for row, state in enumerate(states):
        if state is None:
            continue
        if id(state) not in unique:
            unique[id(state)] = len(distinct)
            distinct.append(state)
        rows.append(row)
        which.append(unique[id(state)])
    if not rows:
        return
    for name, measured in statistic.finish(distinct).items():
        yield name, Placed(np.array(rows), _spread(measured, np.array(which)))


def _spread(measured: Measured, which: np.ndarray[Any, np.dtype[np.intp]]) -> Measured:
    """The results of distinct states, repeated for every row that has them."""
    if len(which) == len(measured.value) and np.array_equal(which, np.arange(len(which))):
        return measured
    pick: Callable[[Any], Any] = lambda values: None if values is None else [values[i] for i in which]  # noqa: E731
    source = measured.source if isinstance(measured.source, str) else np.asarray(measured.source)[which].tolist()
    return Measured(
        value=measured.value[which],
        source=source,
        error=None if measured.error is None else measured.error[which],
        channels=pick(measured.channels),
        grid=None if measured.grid is None else measured.grid[which],
        channel_errors=pick(measured.channel_errors),
    )


def _known(numbers: Mapping[str, Number]) -> dict[str, Tensor | float]:
    """Numbers without the norms of which only some shards are here."""
    whole = {name: value.whole() if isinstance(value, ShardedNorm) else value for name, value in numbers.items()}
    return {name: value for name, value in whole.items() if value is not None}


def _place_numbers(numbers: Mapping[Key, Mapping[str, Tensor | float]], offset: int) -> Iterable[tuple[str, Placed]]:
    names = dict.fromkeys(name for row in numbers.values() for name in row)
    for name in names:
        rows = [offset + i for i, row in enumerate(numbers.values()) if name in row]
        values = [row[name] for row in numbers.values() if name in row]
        yield name, Placed(np.array(rows), Measured(_to_host(values), COMPUTED, np.zeros(len(rows))))


def _to_host(values: Sequence[Tensor | float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers and 0-dimensional tensors, those of one device in one copy."""
    result = np.empty(len(values))
    by_device: dict[torch.device, list[int]] = {}
    for i, value in enumerate(values):
        if isinstance(value, Tensor):
            by_device.setdefault(value.device, []).append(i)
        else:
            result[i] = value
    for rows in by_device.values():
        some = [value for i in rows if isinstance(value := values[i], Tensor)]
        result[rows] = torch.stack(some).detach().cpu().double().numpy()
    return result
