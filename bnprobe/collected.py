"""What a collector held at some moment, by record, and the parts of a table that come of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.records import COMPUTED, PHASES, Measured
from bnprobe.statistics.measurement import Readings
from bnprobe.statistics.weights import ShardedNorm
from bnprobe.store import Placed, RecordKeys

__all__ = [
    "Entry",
    "Key",
    "Keyed",
    "Number",
    "Numbers",
    "Taken",
    "Taking",
    "distinct",
    "place_numbers",
    "place_readings",
    "record_keys",
]

Number = Tensor | float | ShardedNorm
Numbers = dict[int, dict[str, list[tuple[Sequence[str], Sequence[Number]]]]]  # by step and statistic, of some layers


class Keyed(Protocol):
    """What knows the key of a record, all but the step."""

    @property
    def phase(self) -> str:
        """Training or evaluation."""

    @property
    def layer(self) -> str:
        """The layer's name."""

    @property
    def call(self) -> int:
        """The how many-eth call."""

    @property
    def place(self) -> str:
        """Input, output, ..."""


class Key(NamedTuple):
    """Which record: the columns of :data:`bnprobe.records.KEYS`."""

    step: int
    phase: str
    layer: str
    call: int
    place: str


@dataclass
class Entry:
    """One record made of several observations: how many values, and the state of each statistic."""

    count: int = 0
    states: dict[int, Any] = field(default_factory=dict)


class Taking(NamedTuple):
    """What a measurement found out, and when."""

    step: int
    phase: str
    readings: Readings


@dataclass
class Taken:
    """What a collector had seen at some moment.

    Counts and the statistics' states by key, single numbers, and what measurements found out.
    """

    entries: dict[Key, Entry] = field(default_factory=dict)
    numbers: dict[Key, dict[str, Number]] = field(default_factory=dict)
    readings: list[Taking] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.entries) + len(self.numbers) + len(self.readings)

    def split(self, last: int) -> "Taken":
        """Remove and return everything up to step ``last``."""
        early = Taken(
            {key: entry for key, entry in self.entries.items() if key.step <= last},
            {key: row for key, row in self.numbers.items() if key.step <= last},
            [one for one in self.readings if one.step <= last],
        )
        self.readings = [one for one in self.readings if one.step > last]
        for mine, gone in ((self.entries, early.entries), (self.numbers, early.numbers)):
            for key in gone:
                del mine[key]
        return early

    def add_numbers(self, numbers: Numbers) -> None:
        """Take numbers as a collector keeps them."""
        for step, columns in numbers.items():
            for statistic, groups in columns.items():
                for layers, values in groups:
                    for layer, value in zip(layers, values, strict=True):
                        key = Key(step, "train", layer, 0, "weight")
                        self.numbers.setdefault(key, {})[statistic] = value

    def as_numbers(self) -> Numbers:
        """The numbers as a collector keeps them."""
        numbers: Numbers = {}
        for key, row in self.numbers.items():
            for statistic, value in row.items():
                numbers.setdefault(key.step, {}).setdefault(statistic, []).append(([key.layer], [value]))
        return numbers


def distinct(things: Sequence[Any]) -> tuple[list[Any], NDArray[np.intp]]:
    """Each thing once, and for every one its place among them."""
    first: dict[int, int] = {}
    found: list[Any] = []
    which = []
    for one in things:
        place = first.setdefault(id(one), len(found))
        if place == len(found):
            found.append(one)
        which.append(place)
    return found, np.array(which, dtype=np.intp)


Weights = tuple[list[int], list[str]]


def _known(numbers: Mapping[int, Number]) -> dict[int, Tensor | float]:
    """Numbers without the norms of which only some shards are here."""
    whole = {row: one.whole() if isinstance(one, ShardedNorm) else one for row, one in numbers.items()}
    return {row: value for row, value in whole.items() if value is not None}


def place_numbers(numbers: Numbers, first: int) -> tuple[list[tuple[str, Placed]], Weights]:
    """Numbers of weights with their rows, which begin at ``first``; and each row's step and layer."""
    steps: list[int] = []
    layers: list[str] = []
    values: dict[str, dict[int, Number]] = {}
    for step, columns in numbers.items():
        base = first + len(steps)
        row_of: dict[str, int] = {}
        for statistic, groups in columns.items():
            for names, its_values in groups:  # of what was read twice in a step, the later is true
                places = [row_of.setdefault(name, base + len(row_of)) for name in names]
                values.setdefault(statistic, {}).update(zip(places, its_values, strict=True))
        layers += row_of
        steps += [step] * len(row_of)
    placed = []
    for name, some in values.items():
        whole = _known(some)
        if whole:
            measured = Measured(_to_host(list(whole.values())), COMPUTED, np.zeros(len(whole)))
            placed.append((name, Placed(np.array(list(whole)), measured)))
    return placed, (steps, layers)


def place_readings(
    readings: Sequence[Taking], first: int
) -> tuple[list[tuple[str, Placed]], list[tuple[Key, int, Entry]]]:
    """What measurements found out with its rows, which begin at ``first``; and each row's key, step and count."""
    placed: list[tuple[str, Placed]] = []
    keys: list[tuple[Key, int, Entry]] = []
    for step, phase, found in readings:
        rows = np.arange(len(found.layers)) + first + len(keys)
        placed += [(name, Placed(rows, measured)) for name, measured in found.values.items()]
        for layer, count in zip(found.layers, found.counts, strict=True):
            keys.append((Key(step, phase, layer, 0, found.place), step, Entry(count)))
    return placed, keys


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


def record_keys(
    singles: Sequence[tuple[Keyed, Sequence[Any]]], merged: Sequence[tuple[Keyed, int, Entry]], weights: Weights
) -> RecordKeys:
    """The keys of all records: single observations, merged ones, and the weights' numbers."""
    keyed = [lane for lane, _ in singles] + [lane for lane, *_ in merged]
    sizes = [len(rows) for _, rows in singles] + [1] * len(merged)
    steps, layers = weights
    names: dict[str, dict[str, int]] = {"phase": {phase: i for i, phase in enumerate(PHASES)}, "layer": {}, "place": {}}

    def codes(key: str, weight: Sequence[str]) -> NDArray[np.int32]:
        known = names[key]
        own = [known.setdefault(getattr(lane, key), len(known)) for lane in keyed]
        rest = [known.setdefault(text, len(known)) for text in weight]
        return np.concatenate([np.repeat(np.array(own, np.int32), sizes), np.array(rest, np.int32)])

    columns = {"phase": ["train"] * len(steps), "layer": layers, "place": ["weight"] * len(steps)}
    coded = {key: codes(key, texts) for key, texts in columns.items()}
    step = [seen.step for _, rows in singles for seen in rows] + [step for _, step, _ in merged] + steps
    count = [seen.count for _, rows in singles for seen in rows]
    count += [entry.count for *_, entry in merged] + [0] * len(steps)
    call = np.repeat(np.array([lane.call for lane in keyed], np.int32), sizes)
    return RecordKeys(
        np.array(step, np.int64),
        np.concatenate([call, np.zeros(len(steps), np.int32)]),
        np.array(count, np.int64),
        {key: (values, list(names[key])) for key, values in coded.items()},
    )
