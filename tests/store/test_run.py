"""What a reader sees: inventory, selections and their errors, damage, and a run that is still being written."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_run import LAYERS, LEVELS, records_of, table_of

from bnprobe.errors import RunError
from bnprobe.records import FRAME_COLUMNS, Layer, Measured
from bnprobe.store import Placed, Run, Writer, build_table, load


def write(directory: Path, *tables: pa.Table, layers: Any = LAYERS) -> Run:
    with Writer(directory, settings={"seed": 1}, layers=layers, levels=LEVELS) as writer:
        for table in tables:
            writer.append(table)
    return load(directory)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write(tmp_path / "run", table_of([0]), table_of([1]), table_of([2]))


def part(run: Run, sequence: int) -> Path:
    return run.path / "parts" / f"0000-{sequence:06d}.parquet"


def test_what_the_run_is(run: Run) -> None:
    assert run.steps.tolist() == [0, 1, 2]
    assert run.statistics == ["mean", "quantile"]
    assert run.levels == LEVELS
    assert run.settings == {"seed": 1}
    assert (run.closed, run.status, run.problems) == (True, "closed", [])
    assert repr(run) == f"Run({str(run.path)!r}: 2 layers, 3 steps (0 to 2), closed)"


def test_inventory(tmp_path: Path) -> None:
    layers = [Layer("a", "Linear", "linear", 3, feeds=("b",)), Layer("b", "ReLU", "nonlinearity", why="bool output")]
    table = write(tmp_path, layers=layers).layers
    assert list(table.columns) == ["name", "kind", "family", "channels", "eps", "momentum", "feeds", "observed", "why"]
    assert table["name"].tolist() == ["a", "b"]
    assert table["channels"].tolist() == [3, pd.NA]
    assert table["feeds"].tolist() == [("b",), ()]
    assert math.isnan(table["eps"][0])
    assert table["why"].tolist() == ["", "bool output"]
    assert table["observed"].dtype == bool


def test_frame_types(run: Run) -> None:
    frame = run.frame()
    assert list(frame.columns) == list(FRAME_COLUMNS)
    kinds = {name: frame[name].dtype.kind for name in ("step", "call", "count", "level", "value", "error", "exact")}
    assert kinds == {"step": "i", "call": "i", "count": "i", "level": "f", "value": "f", "error": "f", "exact": "b"}
    assert all(pd.api.types.is_string_dtype(frame[name]) for name in ("phase", "layer", "place", "statistic", "source"))


def test_a_run_without_records(tmp_path: Path) -> None:
    run = write(tmp_path)
    assert run.steps.tolist() == []
    assert run.statistics == []
    for frame in (run.frame(), run.frame("mean", layer="late")):
        assert (list(frame.columns), len(frame)) == (list(FRAME_COLUMNS), 0)
    assert run.records("mean").columns.tolist() == ["step", "phase", "layer", "call", "place", "count", "mean"]
    grid = run.grid()
    assert (len(grid.keys), np.shape(grid.values), grid.error.shape) == (0, (0, 3), (0,))
    assert repr(run) == f"Run({str(tmp_path)!r}: 2 layers, 0 steps, closed)"
    with pytest.raises(RunError, match="has no statistic 'mean'; there is: none"):
        run.channels("late", "mean")
    with pytest.raises(RunError, match="has no layer 'lat'; near: 'late'; there is: 'late', 'early'"):
        run.frame(layer="lat")


def test_a_layer_of_which_nothing_was_recorded_has_no_rows(tmp_path: Path) -> None:
    run = write(tmp_path, table_of([0], layers=LAYERS[:1]))
    assert len(run.frame(layer="early")) == 0
    assert len(run.grid(layer="early").keys) == 0


def test_a_layer_that_is_in_no_inventory_can_be_asked_for(tmp_path: Path) -> None:
    run = write(tmp_path, table_of([0]), layers=LAYERS[:1])
    assert run.frame("mean", layer="early")["layer"].tolist() == ["early"]
    with pytest.raises(RunError, match="has no layer 'x'; there is: 'late', 'early'"):
        run.frame(layer="x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"statistic": "men"}, "has no statistic 'men'; near: 'mean'; there is: 'mean', 'quantile'"),
        ({"statistic": ["mean", "median"]}, "has no statistic 'median'; near: 'mean'; there is: 'mean', 'quantile'"),
        ({"layer": "lat"}, "has no layer 'lat'; near: 'late'; there is: 'late', 'early'"),
        ({"layer": ["early", "x"]}, "has no layer 'x'; there is: 'late', 'early'"),
        (
            {"place": "in"},
            r"place must be one of input, output, .*, jacobian, .* \(or .* 'output.1'\); got 'in'",
        ),
        ({"phase": "training"}, "phase must be one of train, eval; got 'training'"),
    ],
)
def test_selections_that_name_nothing(run: Run, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        run.frame(**arguments)


def test_a_long_list_of_layers_is_cut(tmp_path: Path) -> None:
    run = write(tmp_path, layers=[Layer(f"layer.{k}", "Linear", "linear") for k in range(30)])
    with pytest.raises(RunError, match=r"'layer\.18', 'layer\.19', \.\.\. \(30 in all\)"):
        run.frame(layer="nothing like it")


def test_channel_values_that_are_not_there(run: Run) -> None:
    with pytest.raises(RunError) as caught:
        run.channels("late", "mean", place="output")
    assert str(caught.value) == (
        "layer 'late' has no channel values of 'mean' at place 'output' in phase 'train', call 0; it has them at: "
        "place 'input' in phase 'train', call 0; statistics with channel values: 'mean'"
    )
    with pytest.raises(
        RunError, match=r"has no channel values of 'quantile' .* it has them at: nowhere; statistics with"
    ):
        run.channels("late", "quantile")
    with pytest.raises(RunError, match="has no layer 'lat'"):
        run.channels("lat", "mean")
    with pytest.raises(RunError, match="has no statistic 'meen'; near: 'mean'"):
        run.channels("late", "meen")


def test_a_value_of_unknown_source_is_not_called_exact(tmp_path: Path) -> None:
    table = table_of([0])
    index = table.column_names.index("mean.source")
    run = write(tmp_path, table.set_column(index, "mean.source", pa.array([None, "asked"]).dictionary_encode()))
    frame = run.frame("mean")
    assert frame["exact"].tolist() == [False, True]
    assert frame["source"].isna().tolist() == [True, False]
    assert frame["source"][1] == "asked"


def test_a_statistic_that_some_parts_lack(tmp_path: Path) -> None:
    run = write(tmp_path, table_of([0]), table_of([1], statistics=("mean", "zeros")), table_of([2], statistics=()))
    assert run.statistics == ["mean", "quantile", "zeros"]
    assert run.frame("mean")["step"].tolist() == [0, 0, 1, 1]
    assert run.frame("zeros")["step"].tolist() == [1, 1]
    assert run.channels("late", "zeros").index.tolist() == [1]
    table = run.records("zeros", "zeros.source", "zeros.channels", layer="late")
    assert table["zeros"].isna().tolist() == [True, False, True]
    assert table["zeros.source"].isna().tolist() == [True, False, True]
    assert [each is None for each in table["zeros.channels"]] == [True, False, True]
    assert len(run.grid(layer="late").keys) == 3


def test_columns_that_no_part_has_are_null(run: Run) -> None:
    table = run.records("dead", "dead.source", "dead.channels", "quantile.grid")
    assert table["dead"].isna().all()
    assert table["dead.source"].tolist() == table["dead.channels"].tolist() == [None] * 6
    np.testing.assert_array_equal(table["quantile.grid"][5], [2.0, 2.5, 3.0])


@pytest.mark.parametrize("odd", ["lr=0.1", "<script>alert(1)</script>", "层 ü", "a%20b c", "'\"", "..."])
def test_odd_names(tmp_path: Path, odd: str) -> None:
    odd_directory = odd.replace("/", "_")
    layers = [Layer(odd, "Linear", "linear"), Layer(f"{odd}.1", "Linear", "linear"), Layer("", "Net", "other")]
    table = table_of([0, 1], layers=layers, statistics=(odd,))
    run = write(tmp_path / odd_directory, table, layers=layers)
    assert run.statistics == [odd, "quantile"]
    assert run.layers["name"].tolist() == [odd, f"{odd}.1", ""]
    frame = run.frame(odd, layer=odd)
    assert list(frame.columns) == list(FRAME_COLUMNS)  # a directory's name such as lr=0.1 adds no column
    assert frame["value"].tolist() == [0, 1]
    assert run.frame(odd, layer="")["layer"].tolist() == ["", ""]
    assert run.channels(odd, odd).shape == (2, 2)


# -- damage -----------------------------------------------------------------------------------------------------------


def test_a_half_written_part_is_ignored_and_reported(run: Run) -> None:
    part(run, 3).with_suffix(".parquet.tmp").write_bytes(part(run, 2).read_bytes()[:100])
    assert run.problems == ["parts/0000-000003.parquet.tmp is half-written and is ignored"]
    assert run.steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"<script>alert(1)</script>" * 9])
def test_an_unreadable_part_is_ignored_and_reported(run: Run, content: bytes) -> None:
    part(run, 1).write_bytes(content)
    assert run.steps.tolist() == [0, 2]
    assert run.frame("mean", layer="late")["step"].tolist() == [0, 2]
    (problem,) = run.problems
    assert problem.startswith("parts/0000-000001.parquet cannot be read and is ignored: ")


def test_damaged_values_are_found_by_their_checksum(run: Run) -> None:
    path = part(run, 1)
    sound, metadata = path.read_bytes(), pq.read_metadata(path).row_group(0)
    column = next(c for k in range(metadata.num_columns) if (c := metadata.column(k)).path_in_schema == "mean")
    for position in reversed(range(column.data_page_offset, column.data_page_offset + column.total_compressed_size)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        if reads_as_another_number(path):
            break
    else:
        pytest.fail("no bit was found whose flip goes unnoticed without a checksum")
    assert run.steps.tolist() == [0, 1, 2]  # that column is sound
    assert run.frame("mean", layer="late")["step"].tolist() == [0, 2]
    (problem,) = run.problems
    assert problem.startswith("parts/0000-000001.parquet cannot be read and is ignored: ")


def reads_as_another_number(path: Path) -> bool:
    try:
        return pq.read_table(path, columns=["mean"])["mean"].to_pylist() != [1.0, 1.0]
    except (OSError, pa.ArrowException):
        return False


def test_a_part_of_something_else_is_ignored_and_reported(run: Run) -> None:
    pq.write_table(pa.table({"step": [9]}), part(run, 3))
    assert run.problems == ["parts/0000-000003.parquet cannot be read and is ignored: it has no proper column 'phase'"]
    assert run.steps.tolist() == [0, 1, 2]


def test_a_part_that_was_taken_away_is_missed(run: Run) -> None:
    part(run, 1).unlink()
    assert run.problems == ["parts/0000-000001.parquet is missing"]
    assert run.frame("mean", layer="late")["step"].tolist() == [0, 2]


def test_files_that_are_no_parts_are_not_looked_at(run: Run) -> None:
    for name in ("notes.txt", "0000-000003.parquet.bak", "x0000-000003.parquet", "٠٠٠٠-٠٠٠٠٠٣.parquet"):
        (run.path / "parts" / name).write_text("x")
    assert run.problems == []
    assert run.steps.tolist() == [0, 1, 2]


def test_grids_of_another_length_are_refused(run: Run) -> None:
    content = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**content, "levels": [0.5]}))
    for read in (run.grid, run.frame):
        with pytest.raises(
            RunError, match=r"quantile.grid must have 1 values a record, one a level; there are some with 3"
        ):
            read()


def test_a_run_without_parts_folder(run: Run) -> None:
    for path in (run.path / "parts").iterdir():
        path.unlink()
    (run.path / "parts").rmdir()
    assert len(run.frame()) == 0


def test_sessions_that_were_killed(tmp_path: Path) -> None:
    for start, steps in ((None, range(3)), (5, range(5, 7)), (7, range(7, 9))):
        writer = Writer(tmp_path, settings={}, layers=LAYERS, levels=LEVELS, start=start)
        writer.append(table_of(steps))
        writer._lock.release()  # as the system does for a killed process
    assert load(tmp_path).problems == [
        "session 0 was not closed: steps 3 to 4 may be missing",
        "the run was not closed: steps after 8, if any, are missing",
    ]


# -- following --------------------------------------------------------------------------------------------------------


def test_a_reader_follows_a_live_writer(tmp_path: Path) -> None:
    with Writer(tmp_path, settings={}, layers=(), levels=LEVELS) as writer:
        run = load(tmp_path)
        assert run.status == f"still being written (pid {os.getpid()})"
        assert len(run.frame("mean")) == 0
        for step in range(3):
            writer.append(table_of([step], statistics=["mean", "zeros"][: step + 1]))
            (tmp_path / "parts" / f"0000-{step + 1:06d}.parquet.tmp").touch()  # the next part has been begun
            assert run.steps.tolist() == list(range(step + 1))
            assert run.frame("mean")["step"].max() == step
            assert run.problems == []
        assert run.statistics == ["mean", "quantile", "zeros"]
        writer.update_layers(LAYERS)
        assert run.layers["name"].tolist() == ["late", "early"]
        assert run.frame("mean")["layer"].tolist()[:2] == ["late", "early"]
    assert run.closed


def test_asking_for_the_status_makes_no_files(run: Run) -> None:
    (run.path / "run.lock").unlink()
    content = (run.path / "run.json").read_text().replace('"closed": true', '"closed": false')
    (run.path / "run.json").write_text(content)
    assert run.status == "not closed"
    assert not (run.path / "run.lock").exists()


def test_a_run_can_be_sent_to_another_process(run: Run) -> None:
    run.frame()
    assert pickle.loads(pickle.dumps(run)).steps.tolist() == [0, 1, 2]


# -- directories that are no runs -------------------------------------------------------------------------------------


def test_directories_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        load(tmp_path / "nowhere")
    assert str(caught.value) == f"{str(tmp_path / 'nowhere')!r} is not a run directory: it holds no run.json"
    for name in ("b", "a"):
        write(tmp_path / name)
    with pytest.raises(RunError, match=r"it holds no run.json; runs inside it: a, b$"):
        load(tmp_path)
    with pytest.raises(RunError, match=r"run.json' is not a run directory: it holds no run.json$"):
        load(tmp_path / "a" / "run.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2; this bnprobe .* reads up to 1: install a newer one"),
        ({"format": None}, "run.json of .* is damaged: TypeError"),
        ({"sessions": []}, "run.json of .* is damaged: ValueError: no session"),
        ({"sessions": [{"session": 0, "first_step": "0", "started": "", "pid": 1}]}, "must be ints; got"),
        ({"levels": 3}, "run.json of .* is damaged: TypeError"),
        ({"layers": [{"kind": "x"}]}, "run.json of .* is damaged: KeyError: 'feeds'"),
    ],
)
def test_damaged_run_json(run: Run, change: dict[str, Any], message: str) -> None:
    content = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(RunError, match=message):
        load(run.path)


@pytest.mark.parametrize("content", ["", "{", "[" * 9])
def test_run_json_that_is_no_json(run: Run, content: str) -> None:
    (run.path / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run.json of .* cannot be read: "):
        load(run.path)


def test_what_a_later_version_adds_to_run_json_does_no_harm(run: Run) -> None:
    content = json.loads((run.path / "run.json").read_text())
    content["sessions"][0]["weather"] = content["layers"][0]["colour"] = content["mood"] = "fine"
    (run.path / "run.json").write_text(json.dumps(content))
    assert load(run.path).layers.equals(load(run.path).layers)


def test_reading_needs_no_torch(run: Run) -> None:
    code = (
        "import sys, bnprobe\n"
        f"bnprobe.load({str(run.path)!r}).frame()\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)


def test_values_of_a_statistic_without_channels_or_value(tmp_path: Path) -> None:
    """Channels alone have no row in the tidy table, for the layer has no value, but can be asked for."""
    only = Placed(np.arange(2), Measured(np.full(2, np.nan), "computed", channels=np.ones((2, 3))))
    run = write(tmp_path, build_table(records_of([0]), {"gap": [only]}))
    assert len(run.frame("gap")) == 0
    assert run.channels("late", "gap").to_numpy().tolist() == [[1, 1, 1]]
