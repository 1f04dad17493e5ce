"""How far each layer's distribution has moved from a reference, over training."""

from collections.abc import Collection, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnprobe.distances import Distance, Summary, Wasserstein
from bnprobe.errors import ArgumentError, RunError
from bnprobe.records import KEYS, PHASES

if TYPE_CHECKING:
    from bnprobe.store import Run

__all__ = ["drift"]

Names = str | Collection[str]
Index = NDArray[np.int64]
Reference = Literal["first", "previous"]

_SERIES = ["layer", "call", "place"]
_MOMENTS = ("mean", "variance")
_DEFAULT = Wasserstein()


def drift(
    run: "Run",
    distance: Distance = _DEFAULT,
    reference: "Reference | int | Run" = "first",
    *,
    layer: Names | None = None,
    place: Names | None = None,
    phase: str = "train",
    standardize: bool = False,
) -> pd.DataFrame:
    """The distance of every record from its reference record of the same layer, call and place.

    Args:
        run: what was recorded.
        distance: called as ``distance(reference, record)``. Wasserstein-1 by default: it is in the units of the
            values, and sees a shift also where distributions do not overlap.
        reference: with which record each is compared. A record without the needed statistics is none.

            - ``"first"``: the first of its series;
            - ``"previous"``: the latest before it; the first of a series has none;
            - a step: the record of exactly that step;
            - another run: that run's record of the same step or, where it has none, of the nearest earlier one.
        layer: one name or several; None takes all.
        place: likewise. None takes every place that has what the distance needs.
        phase: ``train`` or ``eval``, of both sides.
        standardize: in units of the reference's standard deviation: both sides are divided by it. NaN where the
            reference is constant. The unit's own error is not counted.

    Returns:
        A row a measured record: ``layer``, ``call``, ``place``, ``step``, ``reference_step`` (the step compared with;
        missing where there is none), ``distance`` (its name), ``value``, ``error`` (`Distance.resolution`), ordered
        by layer, call, place (as they first appear in the run) and step. Value and error are NaN where there is no
        reference.

    Raises:
        ArgumentError: an argument is not usable.
        RunError: the run has no such layer or place, or lacks what the distance needs, or nothing to compare with.
    """
    _check_arguments(distance, reference, phase)
    needs = distance.needs | ({"variance"} if standardize else set())
    own = _read(run, needs, layer, place, phase)
    _check_measured(own, needs, {"layer": layer, "place": place}, f"phase {phase!r} of {run!r}", run.statistics)
    if isinstance(reference, str | int | np.integer):
        other, rows = own, _within(own, reference)
    else:
        other = _read(reference, needs, layer, place, phase)
        rows = _across(own, other, reference)
    return _compare(distance, own, other, rows, standardize)


@dataclass(frozen=True, eq=False)
class _Records:
    """Records that have all that is needed, in order of series and step.

    Attributes:
        keys: a row a record, with step, layer, call and place.
        series: ``[R]`` number of each record's series: one layer, call and place.
        step: ``[R]`` of each record.
        summary: what was measured of each.
    """

    keys: pd.DataFrame
    series: Index
    step: Index
    summary: Summary


# -- reading ---------------------------------------------------------------------------------------------------------


def _read(run: "Run", needs: Set[str], layer: Names | None, place: Names | None, phase: str) -> _Records:
    moments = [name for name in _MOMENTS if name in needs]
    columns = [name + suffix for name in moments for suffix in ("", ".error")]
    fields: dict[str, NDArray[np.float64]] = {}
    if "quantiles" in needs:
        grid = run.grid(layer, place, phase)
        table = grid.keys
        if len(table):  # without any grid a run may have no levels
            fields = {"levels": grid.levels, "quantiles": grid.values, "rank_error": grid.error}  # noqa: PD011 - no pandas
        if columns:
            records = run.records(*columns, layer=layer, place=place, phase=phase).drop(columns="count")
            table = table.merge(records, on=list(KEYS), how="left", validate="one_to_one")
    else:
        table = run.records(*columns, layer=layer, place=place, phase=phase)
    for name in (*columns, "count"):
        fields[name.replace(".", "_")] = table[name].to_numpy(dtype=np.float64, na_value=np.nan)
    try:
        return _ordered(table, Summary(**fields))
    except ArgumentError as error:
        raise RunError(f"{run!r} has quantiles that no distance can be computed from: {error}") from error


def _ordered(table: pd.DataFrame, summary: Summary) -> _Records:
    measured = np.ones(len(table), dtype=bool)
    for name in summary.given:
        values = getattr(summary, name)
        measured &= np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    rows = np.flatnonzero(measured)
    keys = table[["step", *_SERIES]].iloc[rows]
    step = keys["step"].to_numpy(dtype=np.int64)
    series = keys.groupby(_SERIES, sort=False, observed=True).ngroup().to_numpy().astype(np.int64)
    order = np.lexsort([step, series])
    return _Records(keys.iloc[order], series[order], step[order], _take(summary, rows[order]))


def _take(summary: Summary, rows: Index) -> Summary:
    fields = {name: getattr(summary, name)[rows] for name in [*summary.given, "count"]}
    for name in summary.given:
        error = "rank_error" if name == "quantiles" else name + "_error"
        fields[error] = getattr(summary, error)[rows]
    if "quantiles" in summary.given:
        fields["levels"] = summary.levels
    return Summary(**fields)


# -- pairing ---------------------------------------------------------------------------------------------------------


def _within(own: _Records, reference: str | int | np.integer[Any]) -> Index:
    """Position of each record's reference among the run's own records; -1 for none."""
    if reference == "first":
        return np.searchsorted(own.series, own.series).astype(np.int64)
    if reference == "previous":
        return _latest(own, own.series, own.step - 1)
    rows = _latest(own, own.series, np.full_like(own.step, int(reference)))
    rows = np.where((rows >= 0) & (own.step[rows] == reference), rows, -1)
    if (rows < 0).all():
        steps = np.unique(own.step)
        near = np.sort(steps[np.argsort(np.abs(steps - int(reference)), kind="stable")[:4]])
        raise RunError(
            f"reference is step {reference}, at which nothing that the distance needs was recorded; "
            f"the nearest recorded steps are {', '.join(map(str, near))}"
        )
    return rows


def _across(own: _Records, other: _Records, run: "Run") -> Index:
    """Position of each record's reference among another run's records; -1 for none."""
    numbers = _numbers(other)
    found = np.array([numbers.get(name, -1) for name in _numbers(own)], dtype=np.int64)
    rows = _latest(other, found[own.series], own.step)
    if (rows < 0).all():
        raise RunError(
            f"reference {run!r} has no record to compare with: none of the same layer, call and place, of the same "
            "step or an earlier one, has what the distance needs"
        )
    return rows


def _numbers(records: _Records) -> dict[tuple[Any, ...], int]:
    """Number of each series by its layer, call and place, in the order of numbers."""
    first = np.unique(records.series, return_index=True)[1]
    names = records.keys[_SERIES].iloc[first].itertuples(index=False, name=None)
    return {name: number for number, name in enumerate(names)}


def _latest(records: _Records, series: Index, step: Index) -> Index:
    """Position of each ``series``' latest record up to ``step``; -1 for none."""
    if not records.step.size:
        return np.full(series.shape, -1, dtype=np.int64)
    # One rising number for series and step finds all positions in one search. Steps are not negative.
    span = int(max(records.step.max(), step.max())) + 2
    rows = np.searchsorted(records.series * span + records.step + 1, series * span + step + 1, side="right") - 1
    inside = (rows >= 0) & (records.series[rows] == series)
    return np.where(inside, rows, -1).astype(np.int64)


# -- comparing -------------------------------------------------------------------------------------------------------


def _compare(distance: Distance, own: _Records, other: _Records, rows: Index, standardize: bool) -> pd.DataFrame:
    before, after = _take(other.summary, rows), own.summary
    if standardize:
        deviation = np.sqrt(before.variance)
        unit = np.divide(1.0, deviation, out=np.full_like(deviation, np.nan), where=deviation > 0)
        before, after = before.scaled(unit), after.scaled(unit)
    paired = rows >= 0
    step = pd.array(other.step[rows], dtype="Int64")
    step[~paired] = pd.NA
    frame = own.keys[[*_SERIES, "step"]].reset_index(drop=True)
    return frame.assign(
        reference_step=step,
        distance=distance.name,
        value=np.where(paired, distance(before, after), np.nan),
        error=np.where(paired, distance.resolution(before, after), np.nan),
    )


# -- checks ----------------------------------------------------------------------------------------------------------


def _check_arguments(distance: Any, reference: Any, phase: Any) -> None:
    if not isinstance(distance, Distance):
        hint = " (write it with brackets)" if isinstance(distance, type) and issubclass(distance, Distance) else ""
        raise ArgumentError(f"distance must be one of bnprobe.distances, such as Wasserstein(); got {distance!r}{hint}")
    is_step = isinstance(reference, int | np.integer) and not isinstance(reference, bool) and reference >= 0
    if not (is_step or reference in ("first", "previous") or hasattr(reference, "grid")):
        raise ArgumentError(
            f"reference must be 'first', 'previous', a step (an int from 0) or a Run; got {reference!r}"
        )
    if phase not in PHASES:
        raise ArgumentError(f"phase must be one of {', '.join(PHASES)}; got {phase!r}")


def _check_measured(
    own: _Records, needs: Set[str], asked: dict[str, Names | None], where: str, statistics: list[str]
) -> None:
    """Refuses what was asked for by name and has nothing that was measured."""
    for what, names in asked.items():
        found = set(own.keys[what].unique())
        for name in [names] if isinstance(names, str) else names or ():
            if name not in found:
                raise RunError(_missing(needs, f"{what} {name!r} in {where}", statistics))
    if own.keys.empty:
        raise RunError(_missing(needs, where, statistics))


def _missing(needs: Set[str], where: str, statistics: list[str]) -> str:
    return (
        f"the distance needs {' and '.join(sorted(needs))}, which no record of {where} has; "
        f"the run has the statistics {', '.join(statistics) or 'none'}"
    )
