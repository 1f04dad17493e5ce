"""Trials: run, kept, resumed; what is half done is never taken for done."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from analyses.trials import Attempt, Trial, TrialsBusyError, _alone, run_trials
from bnprobe.errors import ArgumentError


def square(settings: Mapping[str, Any], attempt: Attempt) -> Mapping[str, Any]:
    (attempt.folder / "note.txt").write_text(str(settings["x"]))
    attempt.progress(1, 2)
    return {"y": settings["x"] ** 2, "pid": os.getpid(), "threads": torch.get_num_threads()}


def plan(*numbers: float) -> list[Trial]:
    return [Trial(f"x{x}", {"x": x}) for x in numbers]


def test_results_come_in_the_order_asked_with_their_files(tmp_path: Path) -> None:
    found = run_trials(square, plan(3, 1, 2), tmp_path)
    assert [f.result["y"] for f in found] == [9, 1, 4]
    assert [(f.folder / "note.txt").read_text() for f in found] == ["3", "1", "2"]
    assert all(f.folder.name.startswith(f"{f.trial.label}-") for f in found)
    assert not (found[0].folder / "progress").exists()


def test_finished_trials_are_not_run_again(tmp_path: Path) -> None:
    before = {f.folder: (f.folder / "trial.json").stat().st_mtime_ns for f in run_trials(square, plan(1, 2), tmp_path)}
    after = run_trials(square, plan(2, 1, 3), tmp_path)
    assert [f.result["y"] for f in after] == [4, 1, 9]
    for f in after[:2]:
        assert before[f.folder] == (f.folder / "trial.json").stat().st_mtime_ns


def test_other_settings_other_code_other_work_run_anew(tmp_path: Path) -> None:
    def cube(settings: Mapping[str, Any], attempt: Attempt) -> Mapping[str, Any]:
        return {"y": settings["x"] ** 3}

    plain = run_trials(square, [Trial("a", {"x": 2})], tmp_path)[0]
    changed = [
        run_trials(square, [Trial("a", {"x": 2, "z": 0})], tmp_path)[0],
        run_trials(square, [Trial("a", {"x": 2})], tmp_path, code=[json])[0],
        run_trials(square, [Trial("a", {"x": 2})], tmp_path, code=[textwrap])[0],
        run_trials(cube, [Trial("a", {"x": 2})], tmp_path)[0],
    ]
    assert len({f.folder for f in [plain, *changed]}) == 5
    assert changed[-1].result["y"] == 8


def test_several_processes_give_what_one_gives(tmp_path: Path) -> None:
    def local(settings: Mapping[str, Any], attempt: Attempt) -> Mapping[str, Any]:
        time.sleep(0.05)
        return {"pid": os.getpid(), "threads": torch.get_num_threads(), "y": settings["x"] ** 2}

    found = run_trials(local, plan(*range(6)), tmp_path, jobs=2)
    assert [f.result["y"] for f in found] == [x**2 for x in range(6)]
    assert os.getpid() not in {f.result["pid"] for f in found}
    assert {f.result["threads"] for f in found} == {1}


def test_one_thread_inside_a_trial_and_the_old_number_after(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert run_trials(square, plan(1), tmp_path)[0].result["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_failing_trial_keeps_the_finished_ones_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    def fails_on_two(settings: Mapping[str, Any], attempt: Attempt) -> Mapping[str, Any]:
        (attempt.folder / "half.txt").write_text("half")
        if settings["x"] == 2 and not (tmp_path / "mended").exists():
            raise RuntimeError("two")
        return {"y": settings["x"], "at": time.time()}

    with pytest.raises(RuntimeError, match="two"):
        run_trials(fails_on_two, plan(1, 2, 3), tmp_path)
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1
    started = time.time()
    (tmp_path / "mended").touch()
    found = run_trials(fails_on_two, plan(1, 2, 3), tmp_path)
    assert [f.result["at"] < started for f in found] == [True, False, False]


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    place = run_trials(square, plan(1), tmp_path)[0].folder
    left = tmp_path / f".unfinished-{place.name}"
    place.rename(left)
    assert run_trials(square, plan(1), tmp_path)[0].folder == place
    assert not left.exists()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with _alone(tmp_path), pytest.raises(TrialsBusyError, match="another process runs trials in"):
        run_trials(square, plan(1), tmp_path)
    assert run_trials(square, plan(1), tmp_path)[0].result["y"] == 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_control_c_keeps_finished_trials_and_the_next_call_goes_on(tmp_path: Path, jobs: int) -> None:
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from analyses.trials import Trial, run_trials

        def work(settings, attempt):
            (Path(sys.argv[1]) / "started").touch()
            time.sleep(0.2 if settings["x"] < 2 else float(sys.argv[3]))
            return {"x": settings["x"], "at": time.time()}

        if __name__ == "__main__":
            found = run_trials(work, [Trial(f"x{x}", {"x": x}) for x in range(4)], Path(sys.argv[1]) / "kept",
                               jobs=int(sys.argv[2]))
            print("finished", [f.result["x"] for f in found])
    """)
    file = tmp_path / "script.py"
    file.write_text(script)

    def start(pause: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(file), str(tmp_path), str(jobs), pause],
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    kept = tmp_path / "kept"
    first = start("60")
    deadline = time.time() + 60
    while len(list(kept.glob("x*"))) < 2 and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGINT)  # what a terminal does: the whole group
    _, errors = first.communicate(timeout=30)
    assert first.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert sorted(p.name[:2] for p in kept.glob("x*")) == ["x0", "x1"]
    assert not list(kept.glob(".unfinished-*"))
    marks = {p: (p / "trial.json").stat().st_mtime_ns for p in kept.glob("x*")}
    second = start("0")
    out, _ = second.communicate(timeout=60)
    assert "finished [0, 1, 2, 3]" in out
    assert marks == {p: (p / "trial.json").stat().st_mtime_ns for p in marks}
    assert not list(kept.glob(".unfinished-*"))


def test_the_bar_moves_within_a_trial(tmp_path: Path) -> None:
    from analyses.trials import _done

    place = tmp_path / "x1-abc"
    assert _done([place]) == 0
    scratch = tmp_path / ".unfinished-x1-abc"
    scratch.mkdir()
    attempt = Attempt(scratch)
    attempt.progress(1, 4)
    assert _done([place]) == 0.25
    attempt.progress(3, 4)  # within the same half second: not written
    assert _done([place]) == 0.25
    scratch.rename(place)
    assert _done([place]) == 1


def test_nothing_is_printed_without_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_trials(square, plan(1, 2), tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"x": {1, 2}}, "can not be written as JSON"), ({"x": (1, 2)}, "change in JSON"), ({1: 2}, "change in JSON")],
)
def test_settings_must_survive_json(settings: dict[Any, Any], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        Trial("a", settings)


@pytest.mark.parametrize("label", ["", "../up", "a b", ".hidden"])
def test_a_label_is_a_file_name(label: str) -> None:
    with pytest.raises(ArgumentError, match="label must consist of"):
        Trial(label, {})


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="jobs must be an int of at least 1; got 0"):
        run_trials(square, plan(1), tmp_path, jobs=0)
    with pytest.raises(ArgumentError, match="two trials have the same label and settings"):
        run_trials(square, plan(1, 1), tmp_path)
