"""Writes a run directory: one Parquet part a flush, renamed when whole, never touched again."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from bnprobe.errors import ArgumentError, RunBusyError, RunError
from bnprobe.records import Layer
from bnprobe.store.manifest import (
    LOCK,
    PARTS,
    RUN_JSON,
    TEMPORARY,
    Manifest,
    Session,
    current_versions,
    lock_of,
    part_key,
    part_name,
    read_manifest,
    write_manifest,
)
from bnprobe.store.parts import Parts
from bnprobe.store.table import GRID, KEY_TYPES

__all__ = ["Writer"]

# A reader that asks whether the run is being written holds the lock for an instant; a new writer outwaits that.
_PATIENCE_SECONDS = 0.25


class Writer:
    """Appends measurements to a run directory; one writer at a time, from one thread at a time.

    Args:
        directory: made where it does not exist; a run's own directory is resumed as a new session.
        settings: what was asked to be measured, as JSON can hold it.
        layers: the inventory.
        levels: probabilities of the quantile grids.
        start: step at which this session's clock starts. None: 0 for a new run, else the step after the last recorded
            one (or after the one at which the last session was closed). Earlier records from there on are superseded.

    Attributes:
        path: the directory.
        session: number of this session.
        first_step: where this session's clock starts.

    Raises:
        ArgumentError: ``start`` is no step, or ``settings`` are not for JSON.
        RunBusyError: another live writer holds the directory.
        RunError: the directory holds other things, or a run with other quantile levels.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        settings: Mapping[str, Any],
        layers: Sequence[Layer],
        levels: Sequence[float],
        start: int | None = None,
    ) -> None:
        _check_start(start)
        self.path = Path(directory)
        _prepare(self.path)
        self._pid = os.getpid()
        self._lock = _acquire(self.path)
        try:
            self._manifest = self._open(settings, tuple(layers), tuple(float(level) for level in levels), start)
        except BaseException:
            self._lock.release()
            raise
        self.session = self._manifest.sessions[-1].session
        self.first_step = self._manifest.sessions[-1].first_step
        self._sequence = 0
        self._closed = False

    def append(self, table: pa.Table) -> None:
        """Write one part from what `build_table` made; when this returns, a reader sees it and a kill cannot take it.

        Raises:
            RunError: the writer is closed, or this is a forked child of the process that opened it.
            ArgumentError: the table lacks a key column, has steps before ``first_step``, or grids of another length
                than the run's levels.
        """
        self._check_usable()
        self._check_table(table)
        if table.num_rows == 0:
            return
        path = self.path / PARTS / part_name(self.session, self._sequence)
        temporary = path.with_name(path.name + TEMPORARY)
        try:
            _write_part(table, temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._sequence += 1

    def update_layers(self, layers: Sequence[Layer]) -> None:
        """Replace the inventory, e.g. once it is known what was observed."""
        self._check_usable()
        self._manifest = replace(self._manifest, layers=tuple(layers))
        write_manifest(self.path, self._manifest)

    def close(self, next_step: int | None = None) -> None:
        """Say that nothing more will come and free the directory; a second call does nothing.

        Args:
            next_step: where the clock stands, if it moved beyond the last recorded step: there the next session starts.
        """
        if self._closed or os.getpid() != self._pid:  # a forked child (a data loader's worker) ends nothing
            return
        self._closed = True
        try:
            self._manifest = self._manifest.with_last(closed=True, next_step=next_step)
            write_manifest(self.path, self._manifest)
        finally:
            self._lock.release()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Writer({str(self.path)!r}, session {self.session}, {self._sequence} parts)"

    def _check_usable(self) -> None:
        if self._closed:
            raise RunError(f"the writer of {str(self.path)!r} is closed: open a new one to resume the run")
        if os.getpid() != self._pid:
            raise RunError(f"the writer of {str(self.path)!r} belongs to process {self._pid}, this is {os.getpid()}")

    def _check_table(self, table: pa.Table) -> None:
        missing = [name for name in KEY_TYPES if name not in table.column_names]
        if missing:
            raise ArgumentError(f"table must have the columns {', '.join(KEY_TYPES)}; missing: {', '.join(missing)}")
        first = pc.min(table["step"]).as_py()
        if first is not None and first < self.first_step:  # an earlier session may have that step already
            raise ArgumentError(f"table must have steps from {self.first_step}, where this session starts; got {first}")
        for name in table.column_names:
            widths = pc.list_value_length(table[name]) if name.endswith(GRID) else None
            if widths is not None and pc.any(pc.not_equal(widths, len(self._manifest.levels))).as_py():
                raise ArgumentError(
                    f"{name} must have {len(self._manifest.levels)} values a record, one a level; "
                    f"got {pc.min(widths)} to {pc.max(widths)}"
                )

    def _open(
        self, settings: Mapping[str, Any], layers: tuple[Layer, ...], levels: tuple[float, ...], start: int | None
    ) -> Manifest:
        old = read_manifest(self.path) if (self.path / RUN_JSON).exists() else None
        if old is not None and old.levels != levels:
            raise RunError(
                f"{str(self.path)!r} cannot be resumed: its quantiles have {len(old.levels)}, "
                f"levels now are {len(levels)} others; use the same levels or another directory"
            )
        (self.path / PARTS).mkdir(exist_ok=True)
        _remove_leftovers(self.path)
        session = Session(
            session=_next_session(self.path, old),
            first_step=start if start is not None else _resume_step(self.path, old),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            pid=self._pid,
            settings=dict(settings),
            versions=current_versions(),
        )
        manifest = Manifest(levels=levels, layers=layers, sessions=(*(old.sessions if old else ()), session))
        write_manifest(self.path, manifest)
        return manifest


def _write_part(table: pa.Table, path: Path) -> None:
    """Write one table as Parquet, fast, for the training loop waits.

    Floating numbers are split into byte streams: values that were float32 have bytes that are all zero, and exponents
    are alike. Against pyarrow's defaults this took a quarter of the time and half of the space; a dictionary of floats
    is work for nothing. Checksums cost 3 % and let a
    reader tell a damaged part from a sound one.
    """
    texts = [each.name for each in table.schema if pa.types.is_dictionary(each.type)]
    floats = [each.name for each in table.schema if pa.types.is_floating(each.type)]
    lists = [f"{each.name}.list.element" for each in table.schema if pa.types.is_list(each.type)]
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=1,
        use_dictionary=texts,
        use_byte_stream_split=floats + lists,
        write_statistics=False,
        write_page_checksum=True,
    )


def _check_start(start: Any) -> None:
    if start is not None and (not isinstance(start, int) or isinstance(start, bool) or start < 0):
        raise ArgumentError(f"start must be None or a step, an int of at least 0; got {start!r}")


def _prepare(directory: Path) -> None:
    """Make the directory, or see that it is ours to write in."""
    if directory.exists() and not directory.is_dir():
        raise RunError(f"{str(directory)!r} is a file; a run needs a directory")
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / RUN_JSON).exists():
        return
    ours = {LOCK, PARTS, RUN_JSON + TEMPORARY}  # a writer killed before its first run.json leaves no more than these
    others = sorted(entry.name for entry in directory.iterdir() if entry.name not in ours)
    if others:
        raise RunError(
            f"{str(directory)!r} holds no run, but other things ({others[0]!r}); give an empty or a new directory"
        )


def _acquire(directory: Path) -> FileLock:
    lock = lock_of(directory)
    try:
        lock.acquire(timeout=_PATIENCE_SECONDS, poll_interval=0.02)
    except Timeout:
        raise RunBusyError(
            f"{str(directory)!r} is being written by process {_holder(directory)}; "
            "wait for it to end, or give another directory"
        ) from None
    return lock


def _holder(directory: Path) -> str:
    try:
        last = read_manifest(directory).sessions[-1]
    except RunError:
        return "(unknown)"
    return "(unknown)" if last.closed else str(last.pid)  # it has the lock, but has not written run.json yet


def _remove_leftovers(directory: Path) -> None:
    """A killed writer may have left one part half-written; with the lock in hand nobody else is writing it."""
    (directory / (RUN_JSON + TEMPORARY)).unlink(missing_ok=True)
    for path in (directory / PARTS).iterdir():
        if path.name.endswith(TEMPORARY) and part_key(path.name.removesuffix(TEMPORARY)):
            path.unlink(missing_ok=True)


def _next_session(directory: Path, old: Manifest | None) -> int:
    known = [session.session for session in old.sessions] if old else []
    named = [key[0] for path in (directory / PARTS).iterdir() if (key := part_key(path.name))]
    return max([*known, *named], default=-1) + 1


def _resume_step(directory: Path, old: Manifest | None) -> int:
    if old is None:
        return 0
    last = old.sessions[-1]
    recorded = Parts(directory).steps(old.sessions)
    return max(last.first_step, last.next_step or 0, int(recorded[-1]) + 1 if recorded.size else 0)
