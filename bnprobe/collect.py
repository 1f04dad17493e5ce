"""What was seen since the last flush, and the table made of it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from bnprobe.collected import (
    Entry,
    Key,
    Keyed,
    Number,
    Numbers,
    Taken,
    Taking,
    distinct,
    place_numbers,
    place_readings,
    record_keys,
)
from bnprobe.hooks.sites import Site
from bnprobe.statistics.base import Observation, Statistic, spread
from bnprobe.statistics.measurement import Readings
from bnprobe.statistics.weights import ShardedNorm
from bnprobe.store import Placed, build_table

__all__ = ["UNMEASURABLE", "Collector", "Lane"]

# What a strange tensor or a user's own statistic may raise while it is read.
UNMEASURABLE = (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError)

_FOLD_AT = 16  # observations of one key (micro-batches, a validation pass) that wait before they are merged


class Lane:
    """Observations of one call of one layer at one place, in the order in which they came.

    Attributes:
        phase, layer, call, place: the key of its records, all but the step.
        wanted: statistics that apply, by position; ``reading`` those of them that read while the hook runs.
        samples: whether the others want a sample.
        layered: whether any of them depends on the layer beside the tensor.
        rows: observations that wait.
        entries: by step, what has been merged already.
        repeats: how many of ``rows`` came in the same step as the one before.
    """

    __slots__ = (
        "call",
        "entries",
        "layer",
        "layered",
        "phase",
        "place",
        "reading",
        "repeats",
        "rows",
        "samples",
        "wanted",
    )

    def __init__(self, phase: str, layer: str, call: int, place: str, applying: "_Applying") -> None:
        self.phase, self.layer, self.call, self.place = phase, layer, call, place
        self.wanted, self.reading, self.layered = applying
        self.samples = len(self.wanted) > len(self.reading)
        self.rows: list[Observation] = []
        self.entries: dict[int, Entry] = {}
        self.repeats = 0


class _Applying(NamedTuple):
    wanted: tuple[int, ...]
    reading: tuple[int, ...]
    layered: bool


class _Batch(NamedTuple):
    """What is made into one table: lanes with their observations, a record each, and the records that were merged."""

    singles: list[tuple[Lane, list[Observation]]]
    merged: list[tuple[Keyed, int, Entry]]

    @property
    def rows(self) -> int:
        """Number of the records."""
        return sum(len(rows) for _, rows in self.singles) + len(self.merged)


class Collector:
    """Keeps observations until :meth:`table` turns them into rows.

    Args:
        statistics: what is taken of each observation.

    Attributes:
        bytes: size of what waits.
        failures: statistics whose ``finish`` failed, with the reason; their values are missing.
    """

    def __init__(self, statistics: Sequence[Statistic]) -> None:
        self._statistics = tuple(statistics)
        self._lanes: dict[tuple[str, str, int, str], Lane] = {}
        self._numbers: Numbers = {}
        self._readings: list[Taking] = []
        self._wanted: dict[tuple[int, str], _Applying] = {}
        self.bytes = 0
        self.failures: dict[str, str] = {}
        self._broken: dict[int, str] = {}

    def __len__(self) -> int:
        seen = sum(len(lane.rows) + len(lane.entries) for lane in self._lanes.values())
        return seen + len(self._numbers) + len(self._readings)

    def lane(self, phase: str, site: Site, call: int, place: str) -> Lane:
        """Where observations with this key go."""
        key = (phase, site.name, call, place)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(*key, self._applying(site, place))
        return lane

    def read(self, lane: Lane, seen: Observation) -> None:
        """Let the statistics read that must while the hook runs."""
        with torch.no_grad():
            for index in lane.reading:
                self.bytes += _size(self._state(index, seen))

    def add(self, lane: Lane, seen: Observation) -> None:
        """One more tensor for a record."""
        if not lane.wanted:
            return
        rows = lane.rows
        if rows and rows[-1].step == seen.step:
            lane.repeats += 1
        rows.append(seen)
        if lane.repeats >= _FOLD_AT:
            lane.rows, lane.repeats = self._merge_repeats(lane, rows), 0

    def add_numbers(self, step: int, name: str, layers: Sequence[str], values: Sequence[Number]) -> None:
        """Single numbers of weights that need no statistic: norms and learning rates."""
        self._numbers.setdefault(step, {}).setdefault(name, []).append((layers, values))

    def add_readings(self, step: int, phase: str, readings: Readings) -> None:
        """What a measurement has found out by passes of its own."""
        self._readings.append(Taking(step, phase, readings))

    def take(self) -> Taken:
        """Everything seen so far, for another process; the collector is empty afterwards."""
        batch, numbers, readings = self._take()
        taken = Taken(readings=readings)
        taken.add_numbers(numbers)
        for lane, rows in batch.singles:
            for seen in rows:
                entry = taken.entries[Key(seen.step, lane.phase, lane.layer, lane.call, lane.place)] = Entry()
                self._fold(entry, lane, seen)
        for keyed, step, entry in batch.merged:
            taken.entries[Key(step, keyed.phase, keyed.layer, keyed.call, keyed.place)] = entry
        return taken

    def join(self, parts: Iterable[Taken]) -> Taken:
        """What several processes saw, as if one had: states and shards merge, of other numbers the first stands."""
        whole = Taken()
        merged: dict[tuple[int, int, int], tuple[Any, Any, Any]] = {}  # of a tensor seen at two places, once
        with torch.no_grad():
            for part in parts:
                whole.readings += part.readings
                for key, entry in part.entries.items():
                    mine = whole.entries.setdefault(key, Entry())
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
        if taken is None:
            batch, numbers, readings = self._take()
        else:
            batch = _Batch([], [(key, key.step, entry) for key, entry in taken.entries.items()])
            numbers, readings = taken.as_numbers(), taken.readings
        placed: dict[str, list[Placed]] = {}
        with torch.no_grad():
            for index, statistic in enumerate(self._statistics):
                try:
                    finished = list(self._finish(index, statistic, batch)) if index not in self._broken else []
                except UNMEASURABLE as error:
                    self._fail(index, error)
                    continue
                for name, part in finished:
                    placed.setdefault(name, []).append(part)
        found, measured = place_readings(readings, batch.rows)
        places, weights = place_numbers(numbers, batch.rows + len(measured))
        for name, part in (*found, *places):
            placed.setdefault(name, []).append(part)
        return build_table(record_keys(batch.singles, [*batch.merged, *measured], weights), placed)

    @property
    def broken(self) -> dict[int, str]:
        """Statistics that failed, by their position, with the reason."""
        return dict(self._broken)

    def give_up(self, index: int, why: str) -> None:
        """A statistic that failed once is not taken again: half its rows would say nothing true."""
        if index not in self._broken:
            self._broken[index] = self.failures[type(self._statistics[index]).__name__] = why

    def _take(self) -> tuple[_Batch, Numbers, list[Taking]]:
        """Everything that waits, taken out: another thread may go on listening, what it brings is the next table's."""
        numbers, self._numbers, self.bytes = self._numbers, {}, 0
        readings, self._readings = self._readings, []
        singles: list[tuple[Lane, list[Observation]]] = []
        merged: list[tuple[Keyed, int, Entry]] = []
        for lane in list(self._lanes.values()):
            rows, lane.rows = lane.rows, []
            repeats, lane.repeats = lane.repeats, 0
            if lane.entries or repeats:
                with torch.no_grad():
                    rows = self._merge_repeats(lane, rows)
            entries, lane.entries = lane.entries, {}
            if rows:
                singles.append((lane, rows))
            merged += [(lane, step, entry) for step, entry in entries.items()]
        return _Batch(singles, merged), numbers, readings

    def _merge_repeats(self, lane: Lane, rows: list[Observation]) -> list[Observation]:
        """Merge observations of one step; those that are their step's only one are left over."""
        by_step: dict[int, list[Observation]] = {}
        for seen in rows:
            by_step.setdefault(seen.step, []).append(seen)
        left = []
        for step, some in by_step.items():
            if len(some) == 1 and step not in lane.entries:
                left += some
            else:
                entry = lane.entries.setdefault(step, Entry())
                for seen in some:
                    self._fold(entry, lane, seen)
        return left

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

    def _applying(self, site: Site, place: str) -> _Applying:
        known = self._wanted.get((id(site), place))
        if known is None:
            wanted = tuple(i for i, statistic in enumerate(self._statistics) if statistic.applies(site, place))
            reading = tuple(i for i in wanted if self._statistics[i].reads_all)
            known = _Applying(wanted, reading, any(self._statistics[i].knows_layers for i in wanted))
            self._wanted[id(site), place] = known
        return known

    def _fold(self, entry: Entry, lane: Lane, seen: Observation) -> None:
        entry.count += seen.count
        for index in lane.wanted:
            if index in self._broken:
                continue
            try:
                with torch.no_grad():
                    state = self._state(index, seen)
                    if index in entry.states:
                        state = self._statistics[index].merge(entry.states[index], state)
                entry.states[index] = state
            except UNMEASURABLE as error:
                self._fail(index, error)

    def _state(self, index: int, seen: Observation) -> Any:
        """The state of one observation; of a tensor seen at two places, the same object."""
        statistic = self._statistics[index]
        owner = seen if statistic.knows_layers else seen.owner
        if owner.states is None:
            owner.states = {}
        if index not in owner.states:
            owner.states[index] = statistic.update(statistic.start(), owner)
        return owner.states[index]

    def _finish(self, index: int, statistic: Statistic, batch: _Batch) -> Iterator[tuple[str, Placed]]:
        """Results of one statistic with their rows; tensors and states seen at two places are finished once."""
        rows: list[int] = []
        seen: list[Observation] = []
        state_rows: list[int] = []
        states: list[Any] = []
        first = 0
        for lane, some in batch.singles:
            if index in lane.reading:
                state_rows += range(first, first + len(some))
                states += [self._state(index, one) for one in some]
            elif index in lane.wanted:
                rows += range(first, first + len(some))
                seen += [one.owner for one in some] if lane.layered and not statistic.knows_layers else some
            first += len(some)
        for row, (_, _, entry) in enumerate(batch.merged, start=first):
            state_rows.append(row)
            states.append(entry.states.get(index))
        if rows:
            some_seen, which = distinct(seen)
            for name, measured in statistic.measure(some_seen).items():
                yield name, Placed(np.array(rows), spread(measured, which))
        there = [i for i, state in enumerate(states) if state is not None]
        if there:
            some_states, which = distinct([states[i] for i in there])
            for name, measured in statistic.finish(some_states).items():
                yield name, Placed(np.array([state_rows[i] for i in there]), spread(measured, which))


def _size(state: Any) -> int:
    """Bytes of the tensors that a state holds."""
    size = getattr(state, "nbytes", None)
    if size is not None:
        return int(size)
    return sum(map(_size, state)) if isinstance(state, tuple) else 0
