"""From rows on disk to pandas."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from bnprobe.errors import RunError
from bnprobe.records import COMPUTED, FRAME_COLUMNS, KEYS, SAMPLED, SAVED
from bnprobe.store.parts import Rows
from bnprobe.store.table import COUNT, ERROR, GRID, SOURCE

__all__ = ["channels", "grids", "tidy", "wide"]

Index = NDArray[np.int64]
Values = NDArray[np.float64]


class _Block(NamedTuple):
    """One statistic's part of a tidy table, all ``[T]``: ``row`` says of which record, ``source`` is a code."""

    row: Index
    statistic: Index
    level: Values
    value: Values
    error: Values
    source: Index


def tidy(rows: Rows, statistics: Sequence[str], levels: Sequence[float]) -> pd.DataFrame:
    """One row a record, statistic and level that has a value, with the columns of `FRAME_COLUMNS`."""
    sources = [SAVED, COMPUTED, SAMPLED]
    blocks = [_block(rows, name, code, np.array(levels), sources) for code, name in enumerate(statistics)]
    block = _joined(blocks)
    if len(blocks) > 1:  # blocks lie one after the other; stable, so that statistics and levels stay in order
        order = np.argsort(block.row, kind="stable")
        block = _Block._make(values[order] for values in block)
    source = _texts([*sources, None], block.source)
    data = {
        **_keys(rows, block.row),
        "statistic": _texts(statistics, block.statistic),
        "level": block.level,
        "value": block.value,
        "error": block.error,
        "exact": (block.source >= 0) & (block.source != sources.index(SAMPLED)),
        "source": source,
    }
    return pd.DataFrame({name: data[name] for name in FRAME_COLUMNS}, copy=False)


def wide(rows: Rows, columns: Sequence[str]) -> pd.DataFrame:
    """One row a record: keys, count, then ``columns`` as they lie on disk; lists become arrays."""
    data = _keys(rows, None)
    data |= {name: _physical(rows, name) for name in columns if name not in data}
    return pd.DataFrame(data)


def channels(
    rows: Rows, column: str, where: tuple[str, int, str], levels: Sequence[float] | None
) -> tuple[pd.DataFrame | None, list[tuple[str, int, str]]]:
    """A list column at one (phase, call, place) of one layer as step x channel; None where it has none there.

    Returns:
        The table, and all (phase, call, place) that have values.
    """
    filled, lengths, values = _lists(rows, column)
    keys = _keys(rows, filled)
    at = pd.MultiIndex.from_arrays([keys["phase"], keys["call"], keys["place"]])
    here = np.asarray(at == where, dtype=np.bool_) if len(at) else np.empty(0, dtype=np.bool_)
    if not here.any():
        return None, list(at.unique())
    width = int(lengths[here].max())
    table = np.full((int(here.sum()), width), np.nan)
    table[np.arange(width) < lengths[here][:, None]] = values[np.repeat(here, lengths)]
    names: pd.Index = pd.RangeIndex(width, name="channel")
    if levels is not None:
        names = pd.MultiIndex.from_product([range(width // len(levels)), levels], names=["channel", "level"])
    return pd.DataFrame(table, index=pd.Index(keys["step"][here], name="step"), columns=names), []


def grids(rows: Rows, statistic: str, levels: int) -> tuple[pd.DataFrame, NDArray[np.float64], NDArray[np.float64]]:
    """Keys, ``[R, Q]`` values and ``[R]`` errors of the records that have a grid."""
    filled, values = _grid(rows, statistic + GRID, levels)
    return pd.DataFrame(_keys(rows, filled)), values, _numbers(rows, statistic + ERROR)[filled]


def _block(rows: Rows, name: str, code: int, levels: Values, sources: list[str]) -> _Block:
    if name + GRID in rows.columns.column_names:
        filled, grid = _grid(rows, name + GRID, levels.size)
        row, level, value = np.repeat(filled, levels.size), np.tile(levels, filled.size), grid.reshape(-1)
    else:
        value = _numbers(rows, name)
        row, level = np.arange(len(rows)), np.full(len(rows), np.nan)
    measured = ~np.isnan(value)
    if not measured.all():
        row, level, value = row[measured], level[measured], value[measured]
    error, source = _numbers(rows, name + ERROR)[row], _source(rows, name + SOURCE, sources)[row]
    return _Block(row, np.full(row.size, code), level, value, error, source)


def _joined(blocks: Sequence[_Block]) -> _Block:
    nothing, none = np.empty(0, dtype=np.int64), np.empty(0)
    empty = _Block(nothing, nothing, none, none, none, nothing)
    return _Block._make(np.concatenate(parts) for parts in zip(empty, *blocks, strict=True))


def _keys(rows: Rows, at: Index | None) -> dict[str, Any]:
    """Keys and count of some rows (None: of all), as columns."""
    everything = slice(None)
    numbers = {name: values[everything if at is None else at] for name, values in rows.numbers.items()}
    texts = {
        name: _texts(rows.names[name], code[everything if at is None else at]) for name, code in rows.codes.items()
    }
    return {name: numbers[name] if name in numbers else texts[name] for name in (*KEYS, COUNT)}


def _texts(names: Sequence[str | None], codes: Index) -> pd.Index:
    return pd.Index(list(names), dtype=None if names else "str").take(codes)


def _numbers(rows: Rows, column: str) -> Values:
    """A float column; NaN where it is null, or was never recorded."""
    if column not in rows.columns.column_names:
        return np.full(len(rows), np.nan)
    values: Values = rows.columns[column].to_numpy()
    return values


def _source(rows: Rows, column: str, sources: list[str]) -> Index:
    """Codes into ``sources``, which grows by names that it lacks; -1 where there is none."""
    if column not in rows.columns.column_names:
        return np.full(len(rows), -1, dtype=np.int64)
    encoded = rows.columns[column].unify_dictionaries().combine_chunks()
    names = encoded.dictionary.to_pylist()
    sources += [name for name in names if name not in sources]
    lookup = np.array([*map(sources.index, names), -1], dtype=np.int64)
    codes: Index = encoded.indices.fill_null(len(names)).to_numpy()
    return lookup[codes]


def _lists(rows: Rows, column: str) -> tuple[Index, Index, Values]:
    """Which rows have a list, how long each is, and all their values one after the other."""
    if column not in rows.columns.column_names:
        nothing = np.empty(0, dtype=np.int64)
        return nothing, nothing, np.empty(0)
    lists = rows.columns[column].combine_chunks()
    filled = np.flatnonzero(lists.is_valid().to_numpy(zero_copy_only=False))
    lengths = lists.value_lengths().drop_null().to_numpy().astype(np.int64)
    return filled, lengths, lists.flatten().to_numpy(zero_copy_only=False)


def _grid(rows: Rows, column: str, width: int) -> tuple[Index, Values]:
    filled, lengths, values = _lists(rows, column)
    if (lengths != width).any():
        raise RunError(f"{column} must have {width} values a record, one a level; there are some with {lengths.max()}")
    return filled, values.reshape(filled.size, width)


def _physical(rows: Rows, column: str) -> Any:
    if column in rows.columns.column_names:
        values = rows.columns[column]
        return values.cast(pa.string()).to_pandas() if pa.types.is_dictionary(values.type) else values.to_pandas()
    holds_numbers = not column.endswith((SOURCE, ".channels", GRID))
    return np.full(len(rows), np.nan) if holds_numbers else np.full(len(rows), None, dtype=object)
