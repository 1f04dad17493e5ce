"""What was seen since the last flush, and the table made of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.hooks.sites import Site
from bnprobe.records import COMPUTED, PHASES, Measured
from bnprobe.statistics.base import Observation, Statistic, spread
from bnprobe.store import Placed, RecordKeys, build_table

__all__ = ["UNMEASURABLE", "Collector", "Lane"]

# What a strange tensor or a user's own statistic may raise while it is read.
UNMEASURABLE = (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError)

_FOLD_AT = 16  # observations of one key (micro-batches, a validation pass) that wait before they are merged


@dataclass
class Entry:
    """One record made of several observations: how many values, and the state of each statistic."""

    count: int = 0
    states: dict[int, Any] = field(default_factory=dict)


class Lane:
    """Observations of one call of one layer at one place, in the order in which they came.

    Attributes:
        phase, layer, call, place: the key of its records, all but the step.
        wanted: statistics that apply, by position; ``reading`` those of them that read while the hook runs.
        samples: whether the others want a sample.
        rows: observations that wait.
        entries: by step, what has been merged already.
        repeats: how many of ``rows`` came in the same step as the one before.
    """

    __slots__ = ("call", "entries", "layer", "phase", "place", "reading", "repeats", "rows", "samples", "wanted")

    def __init__(self, phase: str, layer: str, call: int, place: str, applying: "_Applying") -> None:
        self.phase, self.layer, self.call, self.place = phase, layer, call, place
        self.wanted, self.reading = applying
        self.samples = len(self.wanted) > len(self.reading)
        self.rows: list[Observation] = []
        self.entries: dict[int, Entry] = {}
        self.repeats = 0


_Numbers = tuple[Sequence[str], Sequence[Tensor | float]]  # of some layers, one each


class _Applying(NamedTuple):
    wanted: tuple[int, ...]
    reading: tuple[int, ...]


class _Batch(NamedTuple):
    """What is made into one table: lanes with their observations, a record each, and the records that were merged."""

    singles: list[tuple[Lane, list[Observation]]]
    merged: list[tuple[Lane, int, Entry]]


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
        self._numbers: dict[int, dict[str, list[_Numbers]]] = {}
        self._wanted: dict[tuple[int, str], _Applying] = {}
        self.bytes = 0
        self.failures: dict[str, str] = {}
        self._broken: set[int] = set()

    def __len__(self) -> int:
        return sum(len(lane.rows) + len(lane.entries) for lane in self._lanes.values()) + len(self._numbers)

    def lane(self, phase: str, site: Site, call: int, place: str) -> Lane:
        """Where observations with this key go."""
        key = (phase, site.name, call, place)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(*key, self._applying(site, place))
        return lane

    def prepare(self, lane: Lane, seen: Observation) -> None:
        """Read of a tensor, while its hook runs, what the statistics will need."""
        if lane.reading:
            with torch.no_grad():
                for index in lane.reading:
                    self.bytes += _size(self._state(index, seen))
        if lane.samples:
            owner = seen if seen.same_as is None else seen.same_as
            if owner.drawn is None:
                self.bytes += seen.sample.nbytes + (0 if seen.moments is None else seen.moments.nbytes)

    def add(self, lane: Lane, step: int, seen: Observation) -> None:
        """One more tensor for a record."""
        if not lane.wanted:
            return
        seen.step, rows = step, lane.rows
        if rows and rows[-1].step == step:
            lane.repeats += 1
        rows.append(seen)
        if lane.repeats >= _FOLD_AT:
            lane.rows, lane.repeats = self._merge_repeats(lane, rows), 0

    def add_numbers(self, step: int, name: str, layers: Sequence[str], values: Sequence[Tensor | float]) -> None:
        """Single numbers of weights that need no statistic: norms and learning rates."""
        self._numbers.setdefault(step, {}).setdefault(name, []).append((layers, values))

    def table(self) -> pa.Table:
        """All records so far as one table; the collector is empty afterwards."""
        batch, numbers = self._take(), self._numbers
        self._numbers, self.bytes = {}, 0
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
        observed = sum(len(rows) for _, rows in batch.singles) + len(batch.merged)
        places, weights = _place_numbers(numbers, observed)
        for name, part in places:
            placed.setdefault(name, []).append(part)
        return build_table(_keys(batch, weights), placed)

    def _take(self) -> _Batch:
        """Everything that waits, taken out: another thread may go on listening, what it brings is the next table's."""
        singles, merged = [], []
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
        return _Batch(singles, merged)

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
        """A statistic whose states do not merge or finish is not taken again: half its rows would say nothing true."""
        self._broken.add(index)
        self.failures[type(self._statistics[index]).__name__] = f"{type(error).__name__}: {error}"

    def _applying(self, site: Site, place: str) -> _Applying:
        known = self._wanted.get((id(site), place))
        if known is None:
            wanted = tuple(i for i, statistic in enumerate(self._statistics) if statistic.applies(site, place))
            known = _Applying(wanted, tuple(i for i in wanted if self._statistics[i].reads_all))
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
                seen += some if statistic.knows_layers else [one.owner for one in some]
            first += len(some)
        for row, (lane, _, entry) in enumerate(batch.merged, start=first):
            if index in lane.wanted:
                state_rows.append(row)
                states.append(entry.states.get(index))
        if rows:
            distinct, which = _distinct(seen)
            for name, measured in statistic.measure(distinct).items():
                yield name, Placed(np.array(rows), spread(measured, which))
        there = [i for i, state in enumerate(states) if state is not None]
        if there:
            distinct, which = _distinct([states[i] for i in there])
            for name, measured in statistic.finish(distinct).items():
                yield name, Placed(np.array([state_rows[i] for i in there]), spread(measured, which))


def _distinct(things: Sequence[Any]) -> tuple[list[Any], NDArray[np.intp]]:
    """Each thing once, and for every one its place among them."""
    first: dict[int, int] = {}
    distinct: list[Any] = []
    which = []
    for one in things:
        place = first.setdefault(id(one), len(distinct))
        if place == len(distinct):
            distinct.append(one)
        which.append(place)
    return distinct, np.array(which, dtype=np.intp)


def _size(state: Any) -> int:
    """Bytes of the tensors that a state holds."""
    size = getattr(state, "nbytes", None)
    if size is not None:
        return int(size)
    return sum(map(_size, state)) if isinstance(state, tuple) else 0


_Weights = tuple[list[int], list[str]]


def _place_numbers(
    numbers: Mapping[int, Mapping[str, Sequence[_Numbers]]], first: int
) -> tuple[list[tuple[str, Placed]], _Weights]:
    """Numbers of weights with their rows, which begin at ``first``; and each row's step and layer."""
    steps: list[int] = []
    layers: list[str] = []
    values: dict[str, dict[int, Tensor | float]] = {}
    for step, columns in numbers.items():
        base = first + len(steps)
        row_of: dict[str, int] = {}
        for statistic, groups in columns.items():
            for names, its_values in groups:  # of what was read twice in a step, the later is true
                places = [row_of.setdefault(name, base + len(row_of)) for name in names]
                values.setdefault(statistic, {}).update(zip(places, its_values, strict=True))
        layers += row_of
        steps += [step] * len(row_of)
    placed = [
        (name, Placed(np.array(list(some)), Measured(_to_host(list(some.values())), COMPUTED, np.zeros(len(some)))))
        for name, some in values.items()
    ]
    return placed, (steps, layers)


def _to_host(values: Sequence[Tensor | float]) -> NDArray[np.float64]:
    """Numbers and 0-dimensional tensors, those of one device in one copy."""
    kinds = {(value.device, value.dtype) if isinstance(value, Tensor) else None for value in values}
    if kinds == {None}:
        return np.array(values, dtype=np.float64)
    result = np.empty(len(values))
    for kind in kinds:
        if kind is None:
            places = [i for i, value in enumerate(values) if not isinstance(value, Tensor)]
            result[places] = [values[i] for i in places]
        else:
            places = [i for i, v in enumerate(values) if isinstance(v, Tensor) and (v.device, v.dtype) == kind]
            some = [value.detach() for i in places if isinstance(value := values[i], Tensor)]
            result[places] = torch.stack(some).cpu().double().numpy()
    return result


def _keys(batch: _Batch, weights: _Weights) -> RecordKeys:
    """The keys of all records: observations, merged ones, and the weights' numbers."""
    lanes = [lane for lane, _ in batch.singles] + [lane for lane, *_ in batch.merged]
    sizes = [len(rows) for _, rows in batch.singles] + [1] * len(batch.merged)
    steps, layers = weights
    names: dict[str, dict[str, int]] = {"phase": {phase: i for i, phase in enumerate(PHASES)}, "layer": {}, "place": {}}

    def codes(key: str, weight: Sequence[str]) -> NDArray[np.int32]:
        known = names[key]
        own = [known.setdefault(getattr(lane, key), len(known)) for lane in lanes]
        rest = [known.setdefault(text, len(known)) for text in weight]
        return np.concatenate([np.repeat(np.array(own, np.int32), sizes), np.array(rest, np.int32)])

    columns = {"phase": ["train"] * len(steps), "layer": layers, "place": ["weight"] * len(steps)}
    coded = {key: codes(key, texts) for key, texts in columns.items()}
    step = [seen.step for _, rows in batch.singles for seen in rows] + [step for _, step, _ in batch.merged] + steps
    count = [seen.count for _, rows in batch.singles for seen in rows]
    count += [entry.count for *_, entry in batch.merged] + [0] * len(steps)
    call = np.repeat(np.array([lane.call for lane in lanes], np.int32), sizes)
    return RecordKeys(
        np.array(step, np.int64),
        np.concatenate([call, np.zeros(len(steps), np.int32)]),
        np.array(count, np.int64),
        {key: (values, list(names[key])) for key, values in coded.items()},
    )
