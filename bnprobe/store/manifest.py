"""What lies in a run directory under which name, and ``run.json``: who wrote the run, with what, of which layers."""

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bnprobe import __version__
from bnprobe.errors import ArgumentError, RunError
from bnprobe.records import Layer

__all__ = ["Manifest", "Session", "is_locked", "lock_of", "part_key", "part_name", "read_manifest", "write_manifest"]

FORMAT = 1
RUN_JSON, LOCK, PARTS, TEMPORARY = "run.json", "run.lock", "parts", ".tmp"
_PART = re.compile(r"(\d{4,9})-(\d{6,12})\.parquet", re.ASCII)


def part_name(session: int, sequence: int) -> str:
    """File name of a part below ``parts/``."""
    return f"{session:04d}-{sequence:06d}.parquet"


def part_key(name: str) -> tuple[int, int] | None:
    """Session and sequence of a part's file name, or None where the name is no part's."""
    match = _PART.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True)
class Session:
    """One writer's time on a run.

    Attributes:
        session: number, counted from 0; the first half of its parts' names.
        first_step: where its clock started; what earlier sessions recorded from here on is superseded.
        started: UTC time in ISO 8601.
        pid: the writing process, on the machine that it ran on.
        closed: whether the writer said that nothing more would come.
        next_step: where the clock stood at closing, if the writer said so.
        settings: what this session was told to measure.
        versions: of bnprobe, Python and the libraries that this session ran with.
    """

    session: int
    first_step: int
    started: str
    pid: int
    closed: bool = False
    next_step: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The contents of ``run.json``; settings and versions are those of the latest session.

    Attributes:
        levels: probabilities of the run's quantile grids, the same in every session.
        layers: the inventory, in the order of the model.
        sessions: oldest first, at least one.
    """

    levels: tuple[float, ...]
    layers: tuple[Layer, ...]
    sessions: tuple[Session, ...]

    def with_last(self, **changes: Any) -> "Manifest":
        """The same with changes to the latest session."""
        return replace(self, sessions=(*self.sessions[:-1], replace(self.sessions[-1], **changes)))


def current_versions() -> dict[str, str]:
    """Versions of what makes and writes measurements; a library that is not installed is left out."""
    versions = {"bnprobe": __version__, "python": platform.python_version()}
    for library in ("torch", "numpy", "pyarrow"):
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Replace ``run.json`` in one step: a reader sees the old one or the new one, never a half.

    Raises:
        ArgumentError: settings hold something that JSON does not know.
    """
    last = manifest.sessions[-1]
    head = {"format": FORMAT, "versions": last.versions, "settings": last.settings}
    try:
        text = json.dumps({**head, **asdict(manifest)}, indent=1)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"settings must be made of what JSON knows (dict, list, str, numbers); {error}") from None
    temporary = directory / (RUN_JSON + TEMPORARY)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # without run.json no part can be read, so this one survives a power cut too
    temporary.replace(directory / RUN_JSON)


def read_manifest(directory: Path) -> Manifest:
    """Read ``run.json``.

    Raises:
        RunError: there is none, it is damaged, or it comes from a newer bnprobe.
    """
    try:
        content = json.loads((directory / RUN_JSON).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{str(directory)!r} is not a run directory: it holds no {RUN_JSON}{_runs_below(directory)}"
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"{RUN_JSON} of {str(directory)!r} cannot be read: {error}") from None
    try:
        if content["format"] > FORMAT:
            raise RunError(
                f"{str(directory)!r} has format {content['format']}; this bnprobe {__version__} reads up to "
                f"{FORMAT}: install a newer one"
            )
        return Manifest(
            levels=tuple(float(level) for level in content["levels"]),
            layers=tuple(_known(Layer, {**layer, "feeds": tuple(layer["feeds"])}) for layer in content["layers"]),
            sessions=_sessions(content["sessions"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{RUN_JSON} of {str(directory)!r} is damaged: {type(error).__name__}: {error}") from None


def _sessions(content: Sequence[Mapping[str, Any]]) -> tuple[Session, ...]:
    sessions = tuple(_known(Session, each) for each in content)
    if not sessions:
        raise ValueError("no session")
    for each in sessions:
        if not all(isinstance(number, int) for number in (each.session, each.first_step, each.pid)):
            raise TypeError(f"session, first_step and pid must be ints; got {each}")
    return sessions


def _known(kind: Any, content: Mapping[str, Any]) -> Any:
    """A dataclass from the fields that this version knows; a later one may have added more."""
    names = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in content.items() if name in names})


def _runs_below(directory: Path) -> str:
    found = sorted(path.parent.name for path in directory.glob(f"*/{RUN_JSON}")) if directory.is_dir() else []
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"; runs inside it: {', '.join(found[:5])}{more}" if found else ""


def lock_of(directory: Path) -> FileLock:
    """The lock that a live writer holds; the system frees it when the process dies, however it dies."""
    # Not thread-local: a run may be flushed by one thread and closed by another.
    return FileLock(directory / LOCK, thread_local=False)


def is_locked(directory: Path) -> bool:
    """Whether a live writer holds the directory; False where it cannot be asked (a read-only copy)."""
    if not (directory / LOCK).exists():
        return False
    try:
        with lock_of(directory).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        return False
