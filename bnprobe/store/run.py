"""A run directory as its user sees it: tidy frames, per-channel values, quantile grids, and what is wrong with it."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnprobe.errors import RunError
from bnprobe.records import PHASES, PLACES, Layer
from bnprobe.store import frames
from bnprobe.store.manifest import RUN_JSON, Manifest, is_locked, read_manifest
from bnprobe.store.parts import Parts, Rows, Wanted
from bnprobe.store.table import CHANNEL_ERRORS, CHANNELS, ERROR, GRID, SOURCE

__all__ = ["Grid", "Run", "load"]

Names = str | Collection[str]


@dataclass(frozen=True)
class Grid:
    """Quantile functions of R records.

    Attributes:
        keys: R rows: step, phase, layer, call, place, count.
        levels: ``[Q]`` probabilities.
        values: ``[R, Q]`` quantiles.
        error: ``[R]`` bound on the error in probability; NaN where none is known, 0 where exact.
    """

    keys: pd.DataFrame
    levels: NDArray[np.float64]
    values: NDArray[np.float64]
    error: NDArray[np.float64]


def load(directory: str | os.PathLike[str]) -> "Run":
    """Open a run directory for reading; no torch is needed.

    Raises:
        RunError: it is no run directory, or its ``run.json`` cannot be read.
    """
    return Run(directory)


class Run:
    """A recorded run. Every call looks at the directory again, so a run can be followed while it is written.

    Args:
        directory: with ``run.json`` and ``parts/``.

    Raises:
        RunError: it is no run directory, or its ``run.json`` cannot be read.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = Path(directory)
        self._parts = Parts(self.path)
        self._cached: tuple[tuple[int, ...], Manifest] | None = None
        self._manifest  # noqa: B018 - reads run.json, so that a wrong directory is refused here

    # -- what the run is --------------------------------------------------------------------------------------------

    @property
    def layers(self) -> pd.DataFrame:
        """The inventory: a row a layer, the columns of `bnprobe.records.Layer`."""
        rows = [[getattr(layer, each.name) for each in fields(Layer)] for layer in self._manifest.layers]
        table = pd.DataFrame(rows, columns=[each.name for each in fields(Layer)])
        return table.astype({"channels": "Int64", "eps": "float64", "momentum": "float64", "observed": "bool"})

    @property
    def steps(self) -> NDArray[np.int64]:
        """The recorded steps, sorted."""
        return self._parts.steps(self._manifest.sessions)

    @property
    def statistics(self) -> list[str]:
        """Names of the recorded statistics, in the order in which they were first recorded."""
        return self._parts.statistics()

    @property
    def levels(self) -> tuple[float, ...]:
        """Probabilities of the quantile grids."""
        return self._manifest.levels

    @property
    def settings(self) -> dict[str, Any]:
        """What the latest session was told to measure."""
        return dict(self._manifest.sessions[-1].settings)

    @property
    def closed(self) -> bool:
        """Whether the latest writer said that nothing more would come."""
        return self._manifest.sessions[-1].closed

    @property
    def status(self) -> str:
        """``closed``, ``still being written (pid ...)`` or ``not closed`` (its writer was killed or has let go)."""
        if self.closed:
            return "closed"
        return f"still being written (pid {self._manifest.sessions[-1].pid})" if is_locked(self.path) else "not closed"

    @property
    def problems(self) -> list[str]:
        """What a reader should know before trusting the run, one sentence each; empty where all is well."""
        live = not self.closed and is_locked(self.path)
        return self._parts.problems(live) + self._interruptions(live)

    # -- what was measured ------------------------------------------------------------------------------------------

    def frame(
        self,
        statistic: Names | None = None,
        layer: Names | None = None,
        place: Names | None = None,
        phase: Names | None = None,
    ) -> pd.DataFrame:
        """The layers' values as a tidy table; what was not measured has no row.

        Args:
            statistic: one name or several; None takes all. ``quantile`` gives a row a level.
            layer: one name or several; None takes all.
            place: likewise; ``output`` is not ``output.1``, the second tensor of a structured output.
            phase: likewise.

        Returns:
            The columns of `bnprobe.records.FRAME_COLUMNS`, by step, phase (train first), layer (as in the inventory),
            call, place, statistic (as in `statistics`), level. ``level`` is NaN but for quantiles; ``exact`` says that
            the value is not an estimate from a sample.

        Raises:
            RunError: the run has no such layer or statistic, or there is no such place or phase.
        """
        known = self.statistics
        chosen = known if statistic is None else _names(statistic)
        if known:  # of a run that has recorded nothing yet, every statistic is as yet empty
            self._check("statistic", chosen, known)
        chosen = [name for name in known if name in set(chosen)]
        columns = [name + suffix for name in chosen for suffix in ("", GRID, ERROR, SOURCE)]
        return frames.tidy(self._read(columns, layer, place, phase), chosen, self.levels)

    def channels(
        self,
        layer: str,
        statistic: str,
        place: str = "input",
        phase: str = "train",
        call: int = 0,
        *,
        error: bool = False,
    ) -> pd.DataFrame:
        """Per-channel values of one statistic: a row a step, a column a channel.

        Args:
            layer: one layer.
            statistic: one statistic that has channel values.
            place: where its tensor was seen.
            phase: ``train`` or ``eval``.
            call: the how many-eth call of the layer in a forward.
            error: give the values' standard errors instead: 0 where they are exact.

        Returns:
            Index ``step``, columns ``channel`` 0..C-1; for a quantile function columns ``(channel, level)`` with the
            numbers of the channels that were chosen. NaN where a channel has no value.

        Raises:
            RunError: the run has no such channel values; the message says where it has some.
        """
        self._check("statistic", [statistic], self.statistics)
        columns = [statistic + suffix for suffix in (CHANNELS, CHANNEL_ERRORS, GRID)]
        rows = self._read(columns, layer, None, None)
        quantile = statistic + GRID in self._parts.columns()
        at = (phase, call, place)
        result, there = frames.channels(rows, statistic + CHANNELS, at, self.levels if quantile else None)
        if result is None:
            others = [name for name in self.statistics if name + CHANNELS in self._parts.columns()]
            elsewhere = "; ".join(_at(*each) for each in there) or "nowhere"
            raise RunError(
                f"layer {layer!r} has no channel values of {statistic!r} at {_at(*at)}; it has them at: "
                f"{elsewhere}; statistics with channel values: {_listed(others)}"
            )
        if error:
            errors, _ = frames.channels(rows, statistic + CHANNEL_ERRORS, at, None)
            exact = result * 0.0
            return exact if errors is None else errors.reindex(result.index).combine_first(exact)
        chosen = self.settings.get("quantile_channels")
        if isinstance(result.columns, pd.MultiIndex) and chosen and len(chosen) == len(result.columns.levels[0]):
            result.columns = result.columns.set_levels(chosen, level="channel")
        return result

    def records(
        self, *columns: str, layer: Names | None = None, place: Names | None = None, phase: Names | None = None
    ) -> pd.DataFrame:
        """The records as they lie on disk: a row a record, keys and count, and the given physical columns.

        Args:
            columns: such as ``mean``, ``mean.error``, ``mean.channels``; one that was never recorded is all null.
            layer: one name or several; None takes all.
            place: likewise.
            phase: likewise.

        Raises:
            RunError: the run has no such layer, or there is no such place or phase.
        """
        return frames.wide(self._read(columns, layer, place, phase), columns)

    def grid(self, layer: Names | None = None, place: Names | None = None, phase: Names | None = None) -> Grid:
        """The quantile functions of all records that have one.

        Args:
            layer: one name or several; None takes all.
            place: likewise.
            phase: likewise.

        Raises:
            RunError: the run has no such layer, or there is no such place or phase.
        """
        rows = self._read(["quantile" + GRID, "quantile" + ERROR], layer, place, phase)
        keys, values, error = frames.grids(rows, "quantile", len(self.levels))
        return Grid(keys, np.array(self.levels, dtype=np.float64), values, error)

    def __repr__(self) -> str:
        steps = self.steps
        span = f" ({steps[0]} to {steps[-1]})" if steps.size else ""
        return f"Run({str(self.path)!r}: {len(self._manifest.layers)} layers, {steps.size} steps{span}, {self.status})"

    # -- helpers ----------------------------------------------------------------------------------------------------

    @property
    def _manifest(self) -> Manifest:
        try:
            status = (self.path / RUN_JSON).stat()
        except OSError:
            return read_manifest(self.path)  # says what is wrong
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if self._cached is None or self._cached[0] != stamp:
            self._cached = stamp, read_manifest(self.path)
        return self._cached[1]

    def _read(self, columns: Sequence[str], layer: Names | None, place: Names | None, phase: Names | None) -> Rows:
        manifest = self._manifest
        inventory = [each.name for each in manifest.layers]
        wanted = Wanted(*(None if each is None else frozenset(_names(each)) for each in (layer, place, phase)))
        if not set(wanted.layer or ()) <= set(inventory):
            recorded = self._parts.read([], manifest.sessions, inventory).names["layer"]
            self._check("layer", _names(layer or ()), list(dict.fromkeys([*inventory, *recorded])))
        for each in wanted.place or ():
            if each.split(".")[0] not in PLACES:
                raise RunError(f"place must be one of {', '.join(PLACES)} (or a part such as 'output.1'); got {each!r}")
        for each in wanted.phase or ():
            if each not in PHASES:
                raise RunError(f"phase must be one of {', '.join(PHASES)}; got {each!r}")
        return self._parts.read(columns, manifest.sessions, inventory, wanted)

    def _check(self, what: str, asked: Collection[str], known: Sequence[str]) -> None:
        for name in asked:
            if name not in known:
                near = get_close_matches(name, known, n=3, cutoff=0.5)
                hint = f"; near: {_listed(near)}" if near else ""
                raise RunError(f"{str(self.path)!r} has no {what} {name!r}{hint}; there is: {_listed(known)}")

    def _interruptions(self, live: bool) -> list[str]:
        """Sessions that ended without closing, and what may be missing therefore."""
        sessions = self._manifest.sessions
        last = self._parts.last_steps(sessions)
        found = []
        for session, after in zip(sessions, [*sessions[1:], None], strict=True):
            recorded = [step for number, step in last.items() if number <= session.session]
            if session.closed or (after is None and live):
                continue
            if after is None:
                which = f"steps after {max(recorded)}, if any, are missing" if recorded else "no step was recorded"
                found.append(f"the run was not closed: {which}")
            elif after.first_step > (first := max([*recorded, session.first_step - 1]) + 1):
                found.append(
                    f"session {session.session} was not closed: steps {first} to {after.first_step - 1} may be missing"
                )
        return found


def _names(value: Names) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _at(phase: str, call: int, place: str) -> str:
    return f"place {place!r} in phase {phase!r}, call {call}"


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more if names else "none"
