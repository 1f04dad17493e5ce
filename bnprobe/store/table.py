"""From measurements to one wide Arrow table: a row a record, a group of columns a statistic.

This runs inside the training process at every flush, so it touches each array once and leaves loops over cells
to numpy and Arrow.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bnprobe.errors import ArgumentError
from bnprobe.records import KEYS, SOURCES, Measured, Record

__all__ = [
    "CHANNELS",
    "CHANNEL_ERRORS",
    "COUNT",
    "ERROR",
    "GRID",
    "KEY_TYPES",
    "SOURCE",
    "Placed",
    "RecordKeys",
    "build_table",
]

COUNT = "count"
ERROR, SOURCE, CHANNELS, CHANNEL_ERRORS, GRID = ".error", ".source", ".channels", ".channel_errors", ".grid"
_SUFFIXES = (ERROR, SOURCE, CHANNELS, CHANNEL_ERRORS, GRID)
_NAMES = pa.dictionary(pa.int32(), pa.string())
KEY_TYPES = {
    "step": pa.int64(),
    "phase": _NAMES,
    "layer": _NAMES,
    "call": pa.int32(),
    "place": _NAMES,
    COUNT: pa.int64(),
}

_SOURCE_CODE = {source: code for code, source in enumerate(SOURCES)}


@dataclass(frozen=True)
class Placed:
    """One statistic of some of the records of a table.

    Attributes:
        rows: ``[R]`` positions of the records that were measured, in any order.
        measured: what was measured of them, in the order of ``rows``.
    """

    rows: NDArray[np.integer[Any]]
    measured: Measured


@dataclass(frozen=True)
class RecordKeys:
    """The keys of R records by column, where making R :class:`Record` would take longer than measuring them.

    Attributes:
        step, call, count: ``[R]`` each.
        texts: for ``phase``, ``layer`` and ``place`` the codes ``[R]`` and the texts that they stand for.
    """

    step: NDArray[np.int64]
    call: NDArray[np.int32]
    count: NDArray[np.int64]
    texts: Mapping[str, tuple[NDArray[np.int32], Sequence[str]]]

    def __len__(self) -> int:
        return len(self.step)


def build_table(records: Sequence[Record] | RecordKeys, placed: Mapping[str, Sequence[Placed]]) -> pa.Table:
    """The wide table of some records, as `bnprobe.records` describes it.

    Columns are keys, count, then per statistic (in the order of ``placed``) its value or grid, ``.error``, ``.source``
    and, where at least one record has them, ``.channels`` and ``.channel_errors``. NaN becomes null: the statistic does
    not exist for that record. A NaN *inside* channel values or a grid stays, for a list has no other way to leave a
    place empty.

    Args:
        records: keys and counts, one a row.
        placed: statistic's name to what was measured of which rows. No row may be placed twice for one statistic.

    Raises:
        ArgumentError: a name cannot be a column group, rows are outside of ``records`` or placed twice, lengths do not
            fit, or a source is unknown.
    """
    columns = _keys(records)
    for name, groups in placed.items():
        _check_name(name)
        if any(len(group.rows) for group in groups):
            columns.update(_statistic(name, groups, len(records)))
    return pa.table(columns)


def _keys(records: Sequence[Record] | RecordKeys) -> dict[str, pa.Array]:
    if isinstance(records, RecordKeys):
        columns = {"step": records.step, "call": records.call, COUNT: records.count}
        arrays = {name: pa.array(values, KEY_TYPES[name]) for name, values in columns.items()}
        for name, (codes, texts) in records.texts.items():
            arrays[name] = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(texts, pa.string()))
        return {name: arrays[name] for name in (*KEYS, COUNT)}
    return {key: _key(list(map(attrgetter(key), records)), KEY_TYPES[key]) for key in (*KEYS, COUNT)}


def _key(values: list[int] | list[str], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.string()).dictionary_encode() if kind == _NAMES else pa.array(values, kind)


def _check_name(name: str) -> None:
    if not name or name in KEY_TYPES or name.endswith(_SUFFIXES):
        reserved = ", ".join([*KEY_TYPES, *(f"*{suffix}" for suffix in _SUFFIXES)])
        raise ArgumentError(f"a statistic cannot be named {name!r}: it must not be empty nor one of {reserved}")


def _statistic(name: str, groups: Sequence[Placed], size: int) -> dict[str, pa.Array]:
    measured = [group.measured for group in groups]
    rows = np.concatenate([np.asarray(group.rows, dtype=np.int64) for group in groups])
    position = _positions(name, rows, size)
    lengths = [len(group.rows) for group in groups]
    columns: dict[str, pa.Array] = {}
    if any(each.grid is not None for each in measured):
        columns[name + GRID], exists = _grid(name, measured, lengths, position)
    else:
        value = _scatter(_joined(name, "value", [each.value for each in measured], lengths), position)
        columns[name], exists = pa.array(value, from_pandas=True), ~np.isnan(value)
    error = _scatter(_joined(name, "error", [each.error for each in measured], lengths), position)
    columns[name + ERROR] = pa.array(np.where(exists, error, np.nan), from_pandas=True)
    channels = _channels(name, [each.channels for each in measured], lengths, position)
    if channels is not None:
        exists |= channels.is_valid().to_numpy(zero_copy_only=False)
    codes = np.concatenate([_source_codes(name, each.source, n) for each, n in zip(measured, lengths, strict=True)])
    columns[name + SOURCE] = pa.DictionaryArray.from_arrays(
        pa.array(codes[position], mask=~exists), pa.array(SOURCES, pa.string())
    )
    if channels is not None:
        columns[name + CHANNELS] = channels
    channel_errors = _channels(name, [each.channel_errors for each in measured], lengths, position)
    if channel_errors is not None:
        columns[name + CHANNEL_ERRORS] = channel_errors
    return columns


def _positions(name: str, rows: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """For each record the place of its measurement among the joined groups; -1 where it has none."""
    if rows.size and (rows.min() < 0 or rows.max() >= size):
        raise ArgumentError(f"rows of {name!r} must be positions in the {size} records; got {rows.min()}..{rows.max()}")
    position = np.full(size, -1, dtype=np.int64)
    position[rows] = np.arange(rows.size)
    if np.count_nonzero(position >= 0) != rows.size:
        twice = np.flatnonzero(np.bincount(rows) > 1)[0]
        raise ArgumentError(f"rows of {name!r} must be placed once each; record {twice} is placed more than once")
    return position


def _joined(
    name: str, what: str, arrays: Iterable[NDArray[np.float64] | None], lengths: Sequence[int]
) -> NDArray[np.float64]:
    """The groups' arrays one after the other; an error of None says exact, which is an error of 0."""
    pieces = [np.zeros(n) if each is None else np.asarray(each) for each, n in zip(arrays, lengths, strict=True)]
    for piece, n in zip(pieces, lengths, strict=True):
        if piece.shape != (n,):
            raise ArgumentError(f"{what} of {name!r} must have shape [{n}], one a row; got {list(piece.shape)}")
    return np.concatenate(pieces, dtype=np.float64, casting="unsafe")


def _scatter(values: NDArray[np.float64], position: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(position >= 0, values[position], np.nan)


def _source_codes(name: str, source: str | Sequence[str] | NDArray[np.int8], length: int) -> NDArray[np.int8]:
    try:
        if isinstance(source, np.ndarray) and source.dtype == np.int8 and source.shape == (length,):
            return source
        if isinstance(source, str):
            return np.full(length, _SOURCE_CODE[source], dtype=np.int8)
        codes = np.fromiter((_SOURCE_CODE[each] for each in source), dtype=np.int8)
    except KeyError as error:
        raise ArgumentError(f"source of {name!r} must be one of {', '.join(SOURCES)}; got {error}") from None
    if codes.size != length:
        raise ArgumentError(f"source of {name!r} must be one for all or {length}, one a row; got {codes.size}")
    return codes


def _grid(
    name: str, measured: Sequence[Measured], lengths: Sequence[int], position: NDArray[np.int64]
) -> tuple[pa.Array, NDArray[np.bool_]]:
    grids = [np.empty((0, 0)) if each.grid is None else np.asarray(each.grid) for each in measured]
    for grid, n in zip(grids, lengths, strict=True):
        if grid.ndim != 2 or len(grid) != n:
            raise ArgumentError(f"grid of {name!r} must have shape [{n}, levels]; got {list(grid.shape)}")
    rows: list[Any] = []
    for grid in grids:
        empty = np.isnan(grid).sum(axis=1) == grid.shape[1]
        rows += [None if empty[i] else row for i, row in enumerate(grid)]
    lists = _lists(rows, position)
    return lists, lists.is_valid().to_numpy(zero_copy_only=False)


def _channels(
    name: str,
    groups: Sequence[Sequence[NDArray[np.floating[Any]] | None] | None],
    lengths: Sequence[int],
    position: NDArray[np.int64],
) -> pa.Array | None:
    """Lists of per-channel numbers, or None where no record has any."""
    rows: list[Any] = []
    channels: Any
    for channels, n in zip(groups, lengths, strict=True):
        if channels is not None and len(channels) != n:
            raise ArgumentError(f"channels of {name!r} must be {n} arrays, one a row; got {len(channels)}")
        rows.extend([None] * n if channels is None else channels)
    return None if all(one is None for one in rows) else _lists(rows, position)


def _lists(rows: Sequence[NDArray[Any] | None], position: NDArray[np.int64]) -> pa.Array:
    """One list of float64 a record, null where it has none; ``rows`` in the order of the groups."""
    ordered = [rows[place] if place >= 0 else None for place in position.tolist()]
    pieces = [one for one in ordered if one is not None]
    values = np.concatenate(pieces, dtype=np.float64, casting="unsafe") if pieces else np.empty(0)
    offsets = np.zeros(len(ordered) + 1, dtype=np.int32)
    np.cumsum([0 if one is None else len(one) for one in ordered], out=offsets[1:])
    missing = np.array([one is None for one in ordered])
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values), mask=pa.array(missing) if missing.any() else None
    )
