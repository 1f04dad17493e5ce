"""A writer killed at a random moment takes nothing with it that it had appended."""

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from synthetic_run import LAYERS, LEVELS, table_of, value_of

from bnprobe.errors import RunBusyError
from bnprobe.store import Writer, load

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork to start writers quickly")


class Appender:
    """The process that forks writers, see ``appender.py``."""

    def __init__(self) -> None:
        root = str(Path(__file__).parents[2])
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("appender.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
        )
        self.pending = b""

    def start(self, directory: Path) -> int:
        """Start a writer; its process id."""
        self.process.stdin.write(f"{directory}\n".encode())
        return int(self.line())

    def line(self) -> str:
        while b"\n" not in self.pending:
            self.pending += self.read()
        line, _, self.pending = self.pending.partition(b"\n")
        return line.decode()

    def read(self) -> bytes:
        received = os.read(self.process.stdout.fileno(), 65536)
        assert received, "the appender ended by itself"
        return received

    def lines_until_gone(self) -> list[str]:
        return list(iter(self.line, "gone"))

    def listen(self, seconds: float) -> None:
        """Let the writer write, keeping what it says."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.process.stdout], [], [], left)[0]:
                self.pending += self.read()


@pytest.fixture(scope="module")
def appender() -> Iterator[Appender]:
    appender = Appender()
    yield appender
    appender.process.stdin.close()
    appender.process.wait(timeout=10)
    appender.process.stdout.close()


def kill(appender: Appender, pid: int) -> list[int]:
    """Kill the writer; the steps that it said were appended."""
    os.kill(pid, signal.SIGKILL)
    return [int(line) for line in appender.lines_until_gone()]


def test_twenty_kills_lose_no_appended_step(appender: Appender, tmp_path: Path) -> None:
    rng = random.Random(20)
    survived = []
    for attempt in range(20):
        directory = tmp_path / str(attempt)
        pid = appender.start(directory)
        appender.listen(rng.uniform(0.0, 0.1))  # from "not even a run.json" to a few dozen parts
        survived.append(check_survivors(directory, said=kill(appender, pid), pid=pid))
        check_resumes(directory, steps=survived[-1])
    assert len(set(survived)) > 5, "the kills all came at the same moment"
    assert max(survived) > 3, "no kill came while parts were being written"


def check_survivors(directory: Path, said: list[int], pid: int) -> int:
    """Everything said is there, at most one more, nothing else; the number of steps that are there."""
    if not (directory / "run.json").exists():
        assert said == []
        return 0
    run = load(directory)
    steps = run.steps
    assert steps.tolist() == list(range(len(steps)))
    assert len(said) <= len(steps) <= len(said) + 1
    for path in (directory / "parts").glob("*.parquet"):
        assert pq.read_table(path).num_rows == len(LAYERS)
    frame = run.frame("mean") if len(steps) else run.frame()
    assert frame["value"].tolist() == [value_of(step) for step in steps for _ in LAYERS]
    leftovers = sorted(path.name for path in (directory / "parts").glob("*.tmp"))
    assert len(leftovers) <= 1
    missing = f"steps after {steps[-1]}, if any, are missing" if len(steps) else "no step was recorded"
    assert run.problems == [f"parts/{name} is half-written and is ignored" for name in leftovers] + [
        f"the run was not closed: {missing}"
    ]
    assert run.status == "not closed"
    assert not run.closed
    return len(steps)


def check_resumes(directory: Path, steps: int) -> None:
    """The dead writer's lock is free, its leftovers go, and the run goes on after its last step."""
    with Writer(directory, settings={}, layers=LAYERS, levels=LEVELS) as writer:
        assert writer.first_step == steps
        assert list(directory.rglob("*.tmp")) == []
        writer.append(table_of([steps], session=writer.session))
    run = load(directory)
    np.testing.assert_array_equal(run.steps, np.arange(steps + 1))
    assert run.problems == []


def test_a_writer_in_another_process_is_refused_and_followed(appender: Appender, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    pid = appender.start(directory)
    assert appender.line() == "0"
    with pytest.raises(RunBusyError) as caught:
        Writer(directory, settings={}, layers=LAYERS, levels=LEVELS)
    assert str(caught.value) == (
        f"{str(directory)!r} is being written by process {pid}; wait for it to end, or give another directory"
    )
    run = load(directory)
    assert run.status == f"still being written (pid {pid})"
    assert run.problems == []
    before = len(run.steps)
    while int(appender.line()) < before:
        pass
    assert len(run.steps) > before
    said = kill(appender, pid)
    assert run.steps[-1] >= (said[-1] if said else before)
    assert run.status == "not closed"
