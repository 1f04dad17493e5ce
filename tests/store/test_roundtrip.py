"""What is written is what is read: random records through table, writer and run, against a loop over records."""

import math
import random
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import LAYERS, LEVELS, table_of, value_of

from bnprobe.records import FRAME_COLUMNS, Layer, Measured, Record
from bnprobe.store import Placed, Run, Writer, build_table

INVENTORY = ("b", "<script>", "层.0", "")  # not in alphabetical order, and "unlisted" is not in it
PLACE_ORDER = ("input", "input.1", "output", "output.2", "output.10", "grad_output", "weight")
STATISTICS = ("mean", "zeros", "own statistic")
KEYS = ["step", "phase", "layer", "call", "place"]

numbers = st.floats(allow_nan=False) | st.floats(allow_nan=False, width=32)


@dataclass(frozen=True)
class Cell:
    """One statistic of one record."""

    value: float  # NaN: does not exist
    source: str
    error: float
    channels: tuple[float, ...] | None


@dataclass(frozen=True)
class Line:
    """One record with all that was measured of it."""

    record: Record
    cells: dict[str, Cell]
    grid: tuple[float, ...] | None
    chosen: int  # channels with quantiles of their own


cells = st.builds(
    Cell,
    numbers | st.just(math.nan),
    st.sampled_from(["saved", "computed", "sampled"]),
    st.floats(0, 1) | st.just(math.nan),
    st.none() | st.lists(numbers | st.just(math.nan), max_size=3).map(tuple),
)
keys = st.tuples(
    st.integers(0, 4),
    st.sampled_from(["train", "eval"]),
    st.sampled_from([*INVENTORY, "unlisted"]),
    st.integers(0, 2),
    st.sampled_from(PLACE_ORDER),
)
lines = st.builds(
    Line,
    st.builds(lambda key, count: Record(*key, count), keys, st.integers(0, 2**40)),
    st.dictionaries(st.sampled_from(STATISTICS), cells),
    st.none() | st.tuples(numbers, numbers, numbers),
    st.integers(0, 2),
)


def key_of(line: Line) -> tuple[object, ...]:
    return tuple(getattr(line.record, key) for key in KEYS)


runs = st.lists(lines, max_size=12, unique_by=key_of)


def place(lines: list[Line]) -> dict[str, list[Placed]]:
    placed: dict[str, list[Placed]] = {}
    for name in STATISTICS:
        has = [k for k, line in enumerate(lines) if name in line.cells]
        groups = [has[0::2], has[1::2]]
        placed[name] = [Placed(np.array(rows, int), measured([lines[k].cells[name] for k in rows])) for rows in groups]
    rows = np.array([k for k, line in enumerate(lines) if line.grid is not None], int)
    with_grid = [lines[k] for k in rows]
    grid = np.array([line.grid for line in with_grid]).reshape(-1, len(LEVELS))
    channels = [np.tile(g, line.chosen) if line.chosen else None for g, line in zip(grid, with_grid, strict=True)]
    quantiles = Measured(np.empty(0), "sampled", np.full(len(rows), 0.25), channels, grid)
    return {**placed, "quantile": [Placed(rows, quantiles)] if len(rows) else []}


def measured(cells: list[Cell]) -> Measured:
    return Measured(
        np.array([cell.value for cell in cells]),
        [cell.source for cell in cells],
        np.array([cell.error for cell in cells]),
        [None if cell.channels is None else np.array(cell.channels) for cell in cells],
    )


def written(directory: str, lines: list[Line], seed: int) -> Run:
    """In parts and within parts in any order."""
    shuffled = random.Random(seed).sample(lines, len(lines))
    inventory = [Layer(name, "Linear", "linear") for name in INVENTORY]
    with Writer(directory, settings={}, layers=inventory, levels=LEVELS) as writer:
        for part in (shuffled[:5], shuffled[5:6], shuffled[6:]):
            writer.append(build_table([line.record for line in part], place(part)))
    return Run(directory)


def in_order(lines: Iterable[Line]) -> list[Line]:
    layers = [*INVENTORY, "unlisted"]
    return sorted(
        lines,
        key=lambda line: (
            line.record.step,
            line.record.phase != "train",
            layers.index(line.record.layer),
            line.record.call,
            PLACE_ORDER.index(line.record.place),
        ),
    )


def naive_frame(lines: Iterable[Line], statistics: list[str]) -> list[dict[str, object]]:
    rows = []
    for line in in_order(lines):
        head = {**dict(zip(KEYS, key_of(line), strict=True)), "count": line.record.count}
        for name in statistics:
            cell = line.cells.get(name)
            if name == "quantile" and line.grid is not None:
                tail = {"statistic": name, "error": 0.25, "exact": False, "source": "sampled"}
                rows += [{**head, **tail, "level": q, "value": v} for q, v in zip(LEVELS, line.grid, strict=True)]
            elif cell is not None and not math.isnan(cell.value):
                tail = {"statistic": name, "error": cell.error, "exact": cell.source != "sampled"}
                rows.append({**head, **tail, "level": math.nan, "value": cell.value, "source": cell.source})
    return rows


def assert_rows(frame: pd.DataFrame, rows: list[dict[str, object]], columns: Iterable[str]) -> None:
    assert list(frame.columns) == list(columns)
    np.testing.assert_equal(frame.to_dict("list"), {name: [row[name] for row in rows] for name in columns})


@settings(max_examples=60, deadline=None)
@given(runs, st.integers(0, 100))
def test_frame_records_grid_and_channels(lines: list[Line], seed: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        run = written(directory, lines, seed)
        statistics = run.statistics
        assert set(statistics) == {n for line in lines for n in line.cells} | {"quantile" for x in lines if x.grid}
        assert_rows(run.frame(), naive_frame(lines, statistics), FRAME_COLUMNS)
        assert run.steps.tolist() == sorted({line.record.step for line in lines})
        check_selections(run, lines, statistics)
        check_records(run, in_order(lines))
        check_grid(run, [line for line in in_order(lines) if line.grid is not None])
        check_channels(run, in_order(lines))
        assert run.problems == []


def check_selections(run: Run, lines: list[Line], statistics: list[str]) -> None:
    for name in statistics[:1]:
        assert_rows(run.frame(name), naive_frame(lines, [name]), FRAME_COLUMNS)
    kept = [x for x in lines if x.record.layer in ("<script>", "") and x.record.place == "output"]
    assert_rows(run.frame(layer=["<script>", ""], place="output"), naive_frame(kept, statistics), FRAME_COLUMNS)
    kept = [line for line in lines if line.record.phase == "eval"]
    assert_rows(run.frame(phase="eval"), naive_frame(kept, statistics), FRAME_COLUMNS)


def check_records(run: Run, lines: list[Line]) -> None:
    columns = ("mean", "mean.source", "mean.channels", "never recorded")
    rows = []
    for line in lines:
        cell = line.cells.get("mean", Cell(math.nan, "", math.nan, None))
        there = not math.isnan(cell.value) or cell.channels is not None
        head = {**dict(zip(KEYS, key_of(line), strict=True)), "count": line.record.count}
        channels = None if cell.channels is None else np.array(cell.channels)
        tail = {"mean": cell.value, "mean.source": cell.source if there else None, "mean.channels": channels}
        rows.append({**head, **tail, "never recorded": math.nan})
    table = run.records(*columns, "step", "count", "mean")  # what is there already does not come twice
    table["mean.source"] = table["mean.source"].astype(object).where(table["mean.source"].notna(), None)
    assert_rows(table, rows, [*KEYS, "count", *columns])


def check_grid(run: Run, lines: list[Line]) -> None:
    grid = run.grid()
    rows = [{**dict(zip(KEYS, key_of(line), strict=True)), "count": line.record.count} for line in lines]
    assert_rows(grid.keys, rows, [*KEYS, "count"])
    assert grid.levels.tolist() == list(LEVELS)
    values = grid.values  # noqa: PD011 - a Grid's
    assert values.shape == (len(lines), len(LEVELS))
    assert values.tolist() == [list(line.grid or ()) for line in lines]
    assert grid.error.tolist() == [0.25] * len(lines)


def check_channels(run: Run, lines: list[Line]) -> None:
    for line in lines[:3]:
        _, phase, layer, call, place = key_of(line)
        same = [each for each in lines if key_of(each)[1:] == (phase, layer, call, place)]
        cells = [(x.record.step, x.cells["mean"].channels) for x in same if "mean" in x.cells]
        having = [(step, channels) for step, channels in cells if channels is not None]
        if having:
            table = run.channels(layer, "mean", place, phase, call)
            width = max(len(channels) for _, channels in having)
            padded = [[*channels, *[math.nan] * (width - len(channels))] for _, channels in having]
            assert (table.index.name, table.columns.name) == ("step", "channel")
            assert table.index.tolist() == [step for step, _ in having]
            np.testing.assert_array_equal(table.to_numpy(), np.array(padded).reshape(len(having), width))
        chosen = [(x.record.step, np.tile(x.grid, x.chosen)) for x in same if x.grid is not None and x.chosen]
        if chosen:
            table = run.channels(layer, "quantile", place, phase, call)
            widest = max(len(values) for _, values in chosen) // len(LEVELS)
            assert table.columns.tolist() == [(c, level) for c in range(widest) for level in LEVELS]
            for step, values in chosen:
                np.testing.assert_array_equal(table.loc[step].to_numpy()[: len(values)], values)


sessions = st.lists(st.tuples(st.none() | st.integers(0, 9), st.integers(0, 4), st.booleans()), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(sessions)
def test_later_sessions_supersede_earlier_ones(sessions: list[tuple[int | None, int, bool]]) -> None:
    """Against a dict: starting at a step forgets everything from there on."""
    kept: dict[int, float] = {}
    begin = 0
    with tempfile.TemporaryDirectory() as directory:
        for number, (start, length, closed) in enumerate(sessions):
            writer = Writer(directory, settings={}, layers=LAYERS, levels=LEVELS, start=start)
            begin = start if start is not None else max([begin, *(step + 1 for step in kept)])
            assert (writer.session, writer.first_step) == (number, begin)
            kept = {step: value for step, value in kept.items() if step < begin}
            for step in range(begin, begin + length):
                writer.append(table_of([step], session=number))
                kept[step] = value_of(step, number)
            if closed:
                writer.close()
            else:
                writer._lock.release()  # as the system does for a killed process
        run = Run(directory)
        frame = run.frame("mean", layer="late")
        assert dict(zip(frame["step"], frame["value"], strict=True)) == kept
        assert len(frame) == len(kept)
        assert run.steps.tolist() == sorted(kept)
        assert run.grid(layer="late").keys["step"].tolist() == sorted(kept)
