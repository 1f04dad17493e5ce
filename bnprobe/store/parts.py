"""Reads the Parquet parts of a run directory: which there are, which can be read, and the rows that are asked for."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bnprobe.records import KEYS, PHASES, PLACES
from bnprobe.store.manifest import PARTS, TEMPORARY, Session, part_key, part_name
from bnprobe.store.table import COUNT, KEY_TYPES, SOURCE

__all__ = ["Parts", "Rows", "Wanted"]

_TEXTS = ("phase", "layer", "place")


@dataclass(frozen=True)
class Wanted:
    """Which records to keep; None keeps all."""

    layer: Collection[str] | None = None
    place: Collection[str] | None = None
    phase: Collection[str] | None = None


@dataclass(frozen=True)
class Rows:
    """Records in the order of a run: by step, phase, layer (as in the inventory), call, place.

    Attributes:
        numbers: ``step``, ``call`` and ``count``, ``[R]`` each.
        codes: ``phase``, ``layer`` and ``place`` as positions in ``names``, ``[R]`` each.
        names: the distinct phases, layers and places, each in its order.
        columns: ``count`` and the other columns that were asked for, ``[R]`` rows; those that no part has are missing.
    """

    numbers: Mapping[str, NDArray[np.int64]]
    codes: Mapping[str, NDArray[np.int64]]
    names: Mapping[str, Sequence[str]]
    columns: pa.Table

    def __len__(self) -> int:
        return len(self.numbers["step"])


@dataclass(frozen=True)
class _Part:
    """One readable part: what its footer says."""

    name: str
    session: int
    columns: tuple[str, ...]


@dataclass
class _Piece:
    """The kept rows of one part, before parts are joined; ``names`` are this part's own."""

    numbers: dict[str, NDArray[np.int64]]
    codes: dict[str, NDArray[np.int64]]
    names: dict[str, list[str]]
    columns: pa.Table


@dataclass
class Parts:
    """The parts below a run directory. Every method looks again, so a reader follows a writer.

    Footers of readable parts are remembered, for a part is never rewritten; values are not.
    """

    directory: Path
    _known: dict[str, _Part] = field(default_factory=dict, repr=False)
    _unreadable: dict[str, str] = field(default_factory=dict, repr=False)

    def columns(self) -> list[str]:
        """Names of all columns, in the order in which they were first recorded."""
        return list(dict.fromkeys(name for part in self._scan() for name in part.columns))

    def statistics(self) -> list[str]:
        """Names of all statistics, in the order in which they were first recorded."""
        return [name.removesuffix(SOURCE) for name in self.columns() if name.endswith(SOURCE)]

    def steps(self, sessions: Sequence[Session]) -> NDArray[np.int64]:
        """The recorded steps, sorted, without those that a later session superseded."""
        steps = [table["step"].to_numpy() for _, table in self._tables(["step"], _ends(sessions))]
        return np.unique(np.concatenate(steps)) if steps else np.empty(0, dtype=np.int64)

    def last_steps(self, sessions: Sequence[Session]) -> dict[int, int]:
        """Session number to the last step that counts of it, for those that have one."""
        last: dict[int, int] = {}
        for part, table in self._tables(["step"], _ends(sessions)):
            if len(table):
                last[part.session] = max(last.get(part.session, 0), int(table["step"].to_numpy().max()))
        return last

    def read(
        self, columns: Iterable[str], sessions: Sequence[Session], layers: Sequence[str], wanted: Wanted = Wanted()
    ) -> Rows:
        """The wanted records that no later session superseded, in order, with some of their columns.

        Args:
            columns: physical columns beside keys and count; a part without one has nulls there.
            sessions: of the run.
            layers: the inventory's order; layers that are not in it come after, by name.
            wanted: which records.
        """
        read = self._tables(list(dict.fromkeys([*KEYS, COUNT, *columns])), _ends(sessions))
        pieces = [piece for _, table in read if (piece := _piece(table, wanted)) is not None]
        names = {
            "phase": _ordered(pieces, "phase", PHASES),
            "layer": _ordered(pieces, "layer", layers),
            "place": sorted(_union(pieces, "place"), key=_place_rank),
        }
        numbers = {name: _concatenate([piece.numbers[name] for piece in pieces]) for name in ("step", "call", COUNT)}
        codes = {text: _concatenate([_recode(piece, text, names[text]) for piece in pieces]) for text in _TEXTS}
        payload = pa.concat_tables([p.columns for p in pieces], promote_options="default") if pieces else pa.table({})
        order = np.lexsort((codes["place"], numbers["call"], codes["layer"], codes["phase"], numbers["step"]))
        if not np.array_equal(order, np.arange(order.size)):
            numbers = {name: values[order] for name, values in numbers.items()}
            codes = {name: values[order] for name, values in codes.items()}
            payload = payload.take(pa.array(order))
        return Rows(numbers, codes, names, payload)

    def problems(self, live: bool) -> list[str]:
        """What is wrong with the parts, one sentence each; of a live writer a temporary file is no problem."""
        parts = self._scan()
        found = [
            f"{PARTS}/{name} cannot be read and is ignored: {why}" for name, why in sorted(self._unreadable.items())
        ]
        if not live:
            leftovers = [
                name for name in self._names() if part_key(name.removesuffix(TEMPORARY)) and not part_key(name)
            ]
            found += [f"{PARTS}/{name} is half-written and is ignored" for name in leftovers]
        return found + [f"{PARTS}/{name} is missing" for name in self._gaps(parts)]

    def _gaps(self, parts: Sequence[_Part]) -> list[str]:
        """Parts are numbered without gaps, so a number that is not there has been taken away."""
        there = {part.name for part in parts} | set(self._unreadable)
        last: dict[int, int] = {}
        for session, sequence in filter(None, map(part_key, there)):
            last[session] = max(last.get(session, 0), sequence)
        wanted = (part_name(session, k) for session in sorted(last) for k in range(last[session]))
        return [name for name in wanted if name not in there]

    def _names(self) -> list[str]:
        folder = self.directory / PARTS
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def _scan(self) -> list[_Part]:
        """The readable parts in the order of writing."""
        keys = {name: key for name in self._names() if (key := part_key(name)) is not None}
        for gone in (set(self._known) | set(self._unreadable)) - set(keys):
            self._known.pop(gone, None)
            self._unreadable.pop(gone, None)
        for name, key in keys.items():
            if name not in self._known and name not in self._unreadable:
                self._look(name, key[0])
        return [self._known[name] for name in sorted(keys, key=keys.__getitem__) if name in self._known]

    def _look(self, name: str, session: int) -> None:
        try:
            schema = pq.read_schema(self.directory / PARTS / name)
            lacking = [
                key for key, kind in KEY_TYPES.items() if key not in schema.names or schema.field(key).type != kind
            ]
        except (OSError, pa.ArrowException) as error:
            self._unreadable[name] = _first_line(error)
            return
        if lacking:
            self._unreadable[name] = f"it has no proper column {lacking[0]!r}"
            return
        self._known[name] = _Part(name, session, tuple(n for n in schema.names if n not in KEY_TYPES))

    def _tables(self, columns: Sequence[str], ends: Mapping[int, int]) -> Iterator[tuple[_Part, pa.Table]]:
        """Part by part the rows that count, so that no more than one part's other rows are ever in memory."""
        for part in self._scan():
            try:
                with pq.ParquetFile(self.directory / PARTS / part.name, page_checksum_verification=True) as file:
                    table = file.read(columns=[name for name in columns if name in KEY_TYPES or name in part.columns])
            except (OSError, pa.ArrowException) as error:  # the footer was sound, the values are not
                self._known.pop(part.name, None)
                self._unreadable[part.name] = _first_line(error)
                continue
            end = ends.get(part.session)
            step = table["step"].to_numpy()
            if end is not None and (step >= end).any():
                table = table.filter(pa.array(step < end))
            yield part, table


def _ends(sessions: Sequence[Session]) -> dict[int, int]:
    """For each session but the last the step from which a later one superseded it."""
    return {
        each.session: min(later.first_step for later in sessions[k + 1 :])
        for k, each in enumerate(sessions)
        if k + 1 < len(sessions)
    }


def _piece(table: pa.Table, wanted: Wanted) -> _Piece | None:
    table = table.unify_dictionaries().combine_chunks()
    codes, names = {}, {}
    keep = np.ones(len(table), dtype=np.bool_)
    for text in _TEXTS:
        column = table[text].combine_chunks()
        names[text] = column.dictionary.to_pylist()
        codes[text] = column.indices.to_numpy().astype(np.int64)
        allowed = getattr(wanted, text)
        if allowed is not None:
            keep &= np.array([name in allowed for name in names[text]], dtype=np.bool_)[codes[text]]
    if not keep.any():
        return None
    numbers = {name: table[name].to_numpy().astype(np.int64) for name in ("step", "call", COUNT)}
    payload = table.drop_columns(list(KEYS))  # count stays: not every operation keeps the rows of an empty table
    if keep.all():
        return _Piece(numbers, codes, names, payload)
    return _Piece(
        {name: values[keep] for name, values in numbers.items()},
        {name: values[keep] for name, values in codes.items()},
        names,
        payload.filter(pa.array(keep)),
    )


def _union(pieces: Sequence[_Piece], text: str) -> list[str]:
    """Names that occur; a part's dictionary may hold more than its kept rows use."""
    used = (piece.names[text][code] for piece in pieces for code in np.unique(piece.codes[text]))
    return list(dict.fromkeys(used))


def _ordered(pieces: Sequence[_Piece], text: str, order: Sequence[str]) -> list[str]:
    rank = {name: k for k, name in enumerate(order)}
    return sorted(_union(pieces, text), key=lambda name: (rank.get(name, len(rank)), name))


def _place_rank(place: str) -> tuple[int, list[tuple[int, str]]]:
    """Places in the order of `PLACES`; ``output.10`` after ``output.9``."""
    base, *keys = place.split(".")
    rank = PLACES.index(base) if base in PLACES else len(PLACES)
    return rank, [(int(key) if key.isdecimal() else -1, key) for key in ([base] if rank == len(PLACES) else []) + keys]


def _recode(piece: _Piece, text: str, names: Sequence[str]) -> NDArray[np.int64]:
    """A part's own codes as positions in the joined names."""
    rank = {name: k for k, name in enumerate(names)}
    lookup = np.array([rank.get(name, -1) for name in piece.names[text]], dtype=np.int64)
    return lookup[piece.codes[text]]


def _concatenate(arrays: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
