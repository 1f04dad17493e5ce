"""One writer at a time, parts that are whole or not there, and runs that are resumed."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_run import LAYERS, LEVELS, table_of, value_of

import bnprobe
from bnprobe.errors import ArgumentError, BnprobeError, RunBusyError, RunError
from bnprobe.records import Layer, Measured, Record
from bnprobe.store import Placed, Writer, build_table, load
from bnprobe.store.manifest import lock_of


def open_writer(directory: Path, **changes: Any) -> Writer:
    return Writer(directory, **{"settings": {"every": 1}, "layers": LAYERS, "levels": LEVELS, **changes})


def names_in(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def test_what_lies_in_a_run_directory(tmp_path: Path) -> None:
    with open_writer(tmp_path / "deep" / "run") as writer:
        writer.append(table_of([0]))
        writer.append(table_of([1]))
        writer.append(table_of([]))  # nothing to keep makes no part
    assert names_in(writer.path) == [
        "parts",
        "parts/0000-000000.parquet",
        "parts/0000-000001.parquet",
        "run.json",
        "run.lock",
    ]


def test_run_json(tmp_path: Path) -> None:
    layers = [Layer("a", "Linear", "linear", 3, feeds=("b",)), Layer("b", "BatchNorm1d", "batch_norm", why="no input")]
    with open_writer(tmp_path, settings={"seed": 7, "which": ["mean"]}, layers=layers) as writer:
        content = json.loads((tmp_path / "run.json").read_text())
        assert content["format"] == 1
        assert content["settings"] == {"seed": 7, "which": ["mean"]}
        assert content["levels"] == list(LEVELS)
        assert content["versions"]["bnprobe"] == bnprobe.__version__
        assert {"python", "numpy", "pyarrow"} <= set(content["versions"])
        assert content["layers"][0]["name"] == "a"
        assert content["layers"][0]["feeds"] == ["b"]
        session = content["sessions"][0]
        assert (session["session"], session["first_step"], session["closed"]) == (0, 0, False)
        assert session["pid"] == os.getpid()
        assert session["started"].endswith("+00:00")
        writer.update_layers(layers[:1])
        assert len(json.loads((tmp_path / "run.json").read_text())["layers"]) == 1
    assert json.loads((tmp_path / "run.json").read_text())["sessions"][0]["closed"] is True


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with open_writer(tmp_path) as writer:
        for _ in range(2):
            with pytest.raises(RunBusyError) as caught:
                open_writer(tmp_path)
            assert str(caught.value) == (
                f"{str(tmp_path)!r} is being written by process {os.getpid()}; "
                "wait for it to end, or give another directory"
            )
        writer.append(table_of([0]))  # the first one is not disturbed
    with open_writer(tmp_path) as writer:
        assert writer.session == 1


def test_a_lock_without_a_run_names_no_process(tmp_path: Path) -> None:
    with lock_of(tmp_path), pytest.raises(RunBusyError, match=r"is being written by process \(unknown\)"):
        open_writer(tmp_path)
    open_writer(tmp_path).close()
    with lock_of(tmp_path), pytest.raises(RunBusyError, match=r"is being written by process \(unknown\)"):
        open_writer(tmp_path)


def test_an_instant_of_the_lock_does_not_keep_a_writer_out(tmp_path: Path) -> None:
    """A reader that asks whether a run is being written holds the lock that long."""
    lock = lock_of(tmp_path)
    lock.acquire()
    timer = threading.Timer(0.05, lock.release)
    timer.start()
    open_writer(tmp_path).close()
    timer.join()


def test_a_writer_that_could_not_open_holds_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ArgumentError, match=r"settings must be made of what JSON knows .* set is not JSON"):
            open_writer(tmp_path, settings={"layers": {1}})
    open_writer(tmp_path).close()


def test_resuming_appends(tmp_path: Path) -> None:
    with open_writer(tmp_path) as writer:
        writer.append(table_of(range(3)))
    with open_writer(tmp_path, settings={"every": 2}) as writer:
        assert (writer.session, writer.first_step) == (1, 3)
        writer.append(table_of(range(3, 5), session=1))
    run = load(tmp_path)
    assert run.frame("mean", layer="late")["value"].tolist() == [0, 1, 2, value_of(3, 1), value_of(4, 1)]
    assert run.settings == {"every": 2}
    sessions = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert [each["settings"] for each in sessions] == [{"every": 1}, {"every": 2}]
    assert run.problems == []


def test_resuming_earlier_supersedes_and_rewrites_nothing(tmp_path: Path) -> None:
    with open_writer(tmp_path) as writer:
        writer.append(table_of(range(4)))
    before = (tmp_path / "parts" / "0000-000000.parquet").read_bytes()
    with open_writer(tmp_path, start=2) as writer:
        assert writer.first_step == 2
        assert load(tmp_path).steps.tolist() == [0, 1]
        writer.append(table_of([2], session=1))
    run = load(tmp_path)
    assert run.frame("mean", layer="late")["value"].tolist() == [0, 1, value_of(2, 1)]
    assert run.channels("late", "mean").to_numpy().tolist() == [
        [-1, 1],
        [0, 2],
        [value_of(2, 1) - 1, value_of(2, 1) + 1],
    ]
    assert run.grid(layer="late").values[-1].tolist() == [value_of(2, 1) + level for level in LEVELS]
    assert run.records("mean", layer="late")["step"].tolist() == [0, 1, 2]
    assert (tmp_path / "parts" / "0000-000000.parquet").read_bytes() == before


def test_the_clock_goes_on_where_it_was_closed(tmp_path: Path) -> None:
    """Recorded every hundredth step, closed in between: the next session must not count those steps again."""
    with open_writer(tmp_path) as writer:
        writer.append(table_of([0, 100]))
        writer.close(next_step=150)
    with open_writer(tmp_path) as writer:
        assert writer.first_step == 150
    assert open_writer(tmp_path).first_step == 150  # a session without records does not turn the clock back


def test_resuming_with_other_levels(tmp_path: Path) -> None:
    open_writer(tmp_path).close()
    with pytest.raises(RunError) as caught:
        open_writer(tmp_path, levels=(0.5,))
    assert str(caught.value) == (
        f"{str(tmp_path)!r} cannot be resumed: its quantiles have 3, levels now are 1 others; "
        "use the same levels or another directory"
    )
    open_writer(tmp_path).close()


def test_leftovers_of_a_killed_writer_go(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    writer.append(table_of([0]))
    writer._lock.release()  # as the system does for a killed process
    ours = [tmp_path / "run.json.tmp", tmp_path / "parts" / "0000-000001.parquet.tmp"]
    other = tmp_path / "parts" / "notes.tmp"
    for path in (*ours, other):
        path.write_bytes(b"PAR1")
    with open_writer(tmp_path):
        assert [path.exists() for path in (*ours, other)] == [False, False, True]


def test_a_run_killed_before_its_run_json_can_begin_again(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "run.lock").touch()
    (tmp_path / "run.json.tmp").write_text("{")
    with open_writer(tmp_path) as writer:
        assert (writer.session, writer.first_step) == (0, 0)


def test_session_numbers_are_never_used_twice(tmp_path: Path) -> None:
    with open_writer(tmp_path) as writer:
        writer.append(table_of([0]))
    (tmp_path / "parts" / "0000-000000.parquet").rename(tmp_path / "parts" / "0004-000000.parquet")
    assert open_writer(tmp_path).session == 5


def test_an_append_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_writer(tmp_path)

    def half(table: pa.Table, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"PAR1")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", half)
        with pytest.raises(OSError, match="no space left"):
            writer.append(table_of([0]))
    assert list((tmp_path / "parts").iterdir()) == []
    writer.append(table_of([0]))
    writer.close()
    assert load(tmp_path).steps.tolist() == [0]
    assert load(tmp_path).problems == []


def test_closing(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    writer.close()
    writer.close()
    for action in (lambda: writer.append(table_of([0])), lambda: writer.update_layers(LAYERS)):
        with pytest.raises(RunError, match=r"the writer of .* is closed: open a new one to resume the run"):
            action()
    with pytest.raises(ZeroDivisionError), open_writer(tmp_path):
        _ = 1 / 0
    assert load(tmp_path).closed


def test_an_abandoned_writer_frees_the_directory_but_is_not_closed(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    writer.append(table_of([0]))
    del writer
    assert load(tmp_path).problems == ["the run was not closed: steps after 0, if any, are missing"]
    assert not list(tmp_path.rglob("*.tmp"))
    with open_writer(tmp_path) as writer:
        assert writer.first_step == 1


def test_a_forked_child_writes_and_closes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of a data loader inherit the writer."""
    writer = open_writer(tmp_path)
    parent = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: parent + 1)
        writer.close()
        with pytest.raises(RunError, match=f"belongs to process {parent}, this is {parent + 1}"):
            writer.append(table_of([0]))
    assert not load(tmp_path).closed
    writer.append(table_of([0]))


def test_directories_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="holds no run, but other things \\('file'\\); give an empty or a new directory"):
        open_writer(tmp_path)
    assert names_in(tmp_path) == ["file"]
    with pytest.raises(RunError, match="file' is a file; a run needs a directory"):
        open_writer(tmp_path / "file")


def test_other_things_beside_a_run_are_left_alone(tmp_path: Path) -> None:
    open_writer(tmp_path).close()
    (tmp_path / "checkpoint.pt").write_text("x")
    open_writer(tmp_path).close()
    assert (tmp_path / "checkpoint.pt").read_text() == "x"


@pytest.mark.parametrize("start", [-1, 1.0, True, "3"])
def test_start_must_be_a_step(tmp_path: Path, start: object) -> None:
    with pytest.raises(ArgumentError, match=f"start must be None or a step, an int of at least 0; got {start!r}"):
        open_writer(tmp_path, start=start)


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    writer = open_writer(tmp_path, start=5)
    with pytest.raises(ArgumentError, match=r"table must have the columns step, .*; missing: phase, layer, call"):
        writer.append(pa.table({"step": [5], "place": ["input"], "count": [1]}))
    with pytest.raises(ArgumentError, match="table must have steps from 5, where this session starts; got 4"):
        writer.append(table_of([6, 4]))
    grid = Placed(np.arange(1), Measured(np.empty(0), "sampled", grid=np.zeros((1, 2))))
    with pytest.raises(ArgumentError, match=r"quantile.grid must have 3 values a record, one a level; got 2 to 2"):
        writer.append(build_table([Record(5, "train", "late", 0, "input")], {"quantile": [grid]}))
    assert list((tmp_path / "parts").iterdir()) == []


def test_errors_are_of_the_family() -> None:
    assert issubclass(RunBusyError, RunError)
    assert issubclass(RunError, BnprobeError)


def test_repr(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    writer.append(table_of([0]))
    assert repr(writer) == f"Writer({str(tmp_path)!r}, session 0, 1 parts)"
