"""Trials (seeds x conditions), run side by side, kept on disk, resumed after an interruption.

A trial is a function of its settings alone. Its result lies in a folder whose name ends with a key made from
everything that decides it: the settings, the code, the versions. Whoever asks for the same trial again gets the folder;
whoever changes any of these gets a new one. A folder appears under its name only once the trial is finished, so what a
killed analysis leaves behind can not be mistaken for a result.

Trials run through joblib: by default in processes on this machine, and inside ``joblib.parallel_config(backend=...)``
on whatever cluster joblib knows, as long as it sees the same file system.
"""

import hashlib
import inspect
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from bnprobe import __version__
from bnprobe.errors import ArgumentError, BnprobeError

__all__ = ["Attempt", "Finished", "Trial", "TrialsBusyError", "available_jobs", "run_trials"]

_RESULT = "trial.json"
_PROGRESS = "progress"
_UNFINISHED = ".unfinished-"
_INTERVAL = 0.5  # seconds between two progress messages: slow enough to cost nothing, fast enough for a bar


class TrialsBusyError(BnprobeError):
    """Another process runs trials in the same folder."""


@dataclass(frozen=True)
class Trial:
    """One trial to run.

    Attributes:
        label: readable beginning of its folder's name.
        settings: everything that decides its result; must survive a round trip through JSON.
    """

    label: str
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.label) or self.label.startswith("."):
            raise ArgumentError(f"label must consist of letters, digits and _ . + -; got {self.label!r}")
        try:
            kept = json.loads(json.dumps(self.settings))
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"settings of trial {self.label!r} can not be written as JSON: {error}") from error
        if kept != self.settings:
            raise ArgumentError(
                f"settings of trial {self.label!r} change in JSON (tuples? int keys?): {self.settings!r}"
            )


@dataclass(frozen=True)
class Finished:
    """A finished trial: its result and the folder with what it wrote."""

    trial: Trial
    folder: Path
    result: Mapping[str, Any]


@dataclass
class Attempt:
    """What a trial in progress may use: a folder of its own, and a way to say how far it is."""

    folder: Path
    _last: float = field(default=0.0, repr=False)

    def progress(self, done: float, total: float) -> None:
        """Say how far the trial is; cheap enough to call at every step."""
        now = time.monotonic()
        if now - self._last >= _INTERVAL:
            self._last = now
            (self.folder / _PROGRESS).write_text(f"{done / total:.4f}")


Work = Callable[[Mapping[str, Any], Attempt], Mapping[str, Any]]


def available_jobs() -> int:
    """How many processes this machine runs side by side, containers and CPU masks looked through."""
    return int(joblib.cpu_count())


def run_trials(
    work: Work,
    trials: Sequence[Trial],
    folder: Path,
    *,
    jobs: int = 1,
    code: Sequence[ModuleType] = (),
    title: str = "trials",
) -> list[Finished]:
    """Run what is not finished yet, and return all.

    Each trial runs with one thread, so that results do not depend on ``jobs``.

    Args:
        work: ``(settings, attempt) -> result``; the result must be writable as JSON, files go to ``attempt.folder``.
        trials: what to run.
        folder: where finished trials lie.
        jobs: processes side by side; 1 runs them in this process.
        code: modules whose source decides the results: after a change in one of them, trials run anew.
        title: of the progress bar.

    Returns:
        The finished trials in the order of ``trials``.

    Raises:
        ArgumentError: ``jobs`` is no positive int, or two trials are the same.
        TrialsBusyError: another process runs trials in ``folder``.
    """
    if not isinstance(jobs, int) or jobs < 1:
        raise ArgumentError(f"jobs must be an int of at least 1; got {jobs!r}")
    stamp = _stamp(work, code)
    places = [folder / f"{trial.label}-{_key(trial, stamp)}" for trial in trials]
    if len(set(places)) < len(places):
        raise ArgumentError("two trials have the same label and settings")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _sweep(folder)
        open_ = [(trial, place) for trial, place in zip(trials, places, strict=True) if not place.exists()]
        if open_:
            _run(work, open_, min(jobs, len(open_)), _bar(places, title))
    return [Finished(trial, place, _read(place)) for trial, place in zip(trials, places, strict=True)]


def _run(work: Work, open_: Sequence[tuple[Trial, Path]], jobs: int, bar: AbstractContextManager[None]) -> None:
    try:
        with bar:
            joblib.Parallel(n_jobs=jobs, prefer="processes")(
                joblib.delayed(_finish)(work, trial, place) for trial, place in open_
            )
    finally:  # after Ctrl-C joblib ends its processes at once, and they can not tidy up
        _sweep(open_[0][1].parent)


def _finish(work: Work, trial: Trial, place: Path) -> None:
    scratch = place.with_name(f"{_UNFINISHED}{place.name}")
    scratch.mkdir()
    try:
        with _one_thread():
            result = work(trial.settings, Attempt(scratch))
        (scratch / _PROGRESS).unlink(missing_ok=True)
        (scratch / _RESULT).write_text(json.dumps({"settings": dict(trial.settings), "result": dict(result)}, indent=1))
        scratch.rename(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read(place: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((place / _RESULT).read_text())["result"]
    return found


def _stamp(work: Work, code: Sequence[ModuleType]) -> list[str]:
    sources = [hashlib.sha256(inspect.getsource(module).encode()).hexdigest() for module in code]
    return [work.__qualname__, __version__, version("torch"), version("numpy"), *sources]


def _key(trial: Trial, stamp: Sequence[str]) -> str:
    text = json.dumps([stamp, trial.settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise TrialsBusyError(
            f"another process runs trials in {folder}; wait for it, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _sweep(folder: Path) -> None:
    """Remove what a killed process left; the lock says that nobody is at work on it."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch  # here, so that planning and reading trials needs no torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _bar(places: Sequence[Path], title: str) -> Iterator[None]:
    """A progress bar over all trials that moves within each of them; silent where there is no terminal."""
    over = threading.Event()
    shape = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
    finished = sum(place.exists() for place in places)
    bar = tqdm(desc=title, total=len(places), initial=finished, disable=None, bar_format=shape)

    def watch() -> None:
        while not over.wait(_INTERVAL):
            bar.update(max(0.0, _done(places) - bar.n))

    watcher = threading.Thread(target=watch, daemon=True)
    if not bar.disable:
        watcher.start()
    try:
        yield
    finally:
        over.set()
        if not bar.disable:
            watcher.join()
            bar.update(max(0.0, _done(places) - bar.n))
        bar.close()


def _done(places: Sequence[Path]) -> float:
    return sum(1.0 if place.exists() else _fraction(place) for place in places)


def _fraction(place: Path) -> float:
    try:
        return float((place.with_name(f"{_UNFINISHED}{place.name}") / _PROGRESS).read_text())
    except (OSError, ValueError):  # not started, or being written at this moment
        return 0.0
