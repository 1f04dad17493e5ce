import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bnprobe
from bnprobe import drift
from bnprobe.distances import Distance, Hellinger, KullbackLeibler, Summary, Wasserstein
from bnprobe.errors import ArgumentError, RunError
from bnprobe.records import KEYS, Layer, Measured, Record
from bnprobe.store import Grid, Placed, Run, Writer, build_table

COLUMNS = ["layer", "call", "place", "step", "reference_step", "distance", "value", "error"]
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHAPE = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])  # of mean 0 and, as a grid, of variance 4/3


@dataclass
class Made:
    """Stands for a run that was recorded: rows of (step, phase, layer, call, place, location, width)."""

    rows: Sequence[tuple[int, str, str, int, str, float, float]]
    statistics: tuple[str, ...] = ("mean", "variance", "quantile")
    levels: tuple[float, ...] = LEVELS
    rank_error: float = 0.0

    def __repr__(self) -> str:
        return "Made()"

    def grid(self, layer: Any = None, place: Any = None, phase: Any = None) -> Grid:
        rows = self._selected(layer, place, phase)
        has = rows["width"].notna() & ("quantile" in self.statistics)
        rows = rows[has]
        values = rows["location"].to_numpy()[:, None] + rows["width"].to_numpy()[:, None] * SHAPE[: len(self.levels)]
        keys = rows[[*KEYS, "count"]].reset_index(drop=True)
        return Grid(keys, np.array(self.levels), values, np.full(len(rows), self.rank_error))

    def records(self, *columns: str, layer: Any = None, place: Any = None, phase: Any = None) -> pd.DataFrame:
        rows = self._selected(layer, place, phase).reset_index(drop=True)
        known = {"mean": rows["location"], "variance": rows["width"] ** 2 * 4 / 3}
        known |= {"mean.error": rows["location"] * 0, "variance.error": rows["location"] * 0}
        nothing = pd.Series(np.nan, index=rows.index)
        table = rows[[*KEYS, "count"]]
        return table.assign(
            **{name: known[name] if name.split(".")[0] in self.statistics else nothing for name in columns}
        )

    def _selected(self, layer: Any, place: Any, phase: Any) -> pd.DataFrame:
        table = pd.DataFrame(self.rows, columns=[*KEYS, "location", "width"]).assign(count=1000)
        for name, wanted in {"layer": layer, "place": place, "phase": phase}.items():
            if wanted is not None:
                table = table[table[name].isin([wanted] if isinstance(wanted, str) else list(wanted))]
        return table


def series(
    places: dict[int, float],
    layer: str = "a",
    call: int = 0,
    place: str = "input",
    width: float = 1.0,
    phase: str = "train",
) -> list[tuple[int, str, str, int, str, float, float]]:
    """One series that lies at a location at each step."""
    return [(step, phase, layer, call, place, location, width) for step, location in places.items()]


def against(frame: pd.DataFrame) -> list[tuple[int, int | None, float]]:
    """(step, reference step, value) of each row."""
    steps = [None if pd.isna(step) else int(step) for step in frame["reference_step"]]
    return list(zip(frame["step"].tolist(), steps, frame["value"].round(9).tolist(), strict=True))


WALK = {0: 0.0, 10: 1.0, 20: 3.0, 30: 2.5}


def test_against_the_first_record() -> None:
    frame = drift(Made(series(WALK)))
    assert list(frame.columns) == COLUMNS
    assert against(frame) == [(0, 0, 0.0), (10, 0, 1.0), (20, 0, 3.0), (30, 0, 2.5)]
    assert set(frame["distance"]) == {"wasserstein"}
    assert frame["reference_step"].dtype == "Int64"


def test_against_the_previous_record() -> None:
    frame = drift(Made(series(WALK)), reference="previous")
    assert against(frame)[1:] == [(10, 0, 1.0), (20, 10, 2.0), (30, 20, 0.5)]
    first = frame.iloc[0]
    assert pd.isna(first["reference_step"])
    assert np.isnan(first["value"])
    assert np.isnan(first["error"])


@pytest.mark.parametrize("step", [10, np.int64(10)])
def test_against_a_step(step: int) -> None:
    run = Made([*series(WALK), *series({0: 0.0, 20: 5.0}, layer="b")])
    frame = drift(run, reference=step)
    assert against(frame[frame["layer"] == "a"]) == [(0, 10, 1.0), (10, 10, 0.0), (20, 10, 2.0), (30, 10, 1.5)]
    # A layer that was not called at that step has no reference; no other step stands in for it.
    assert frame[frame["layer"] == "b"][["reference_step", "value", "error"]].isna().all(axis=None)


def test_against_another_run_at_the_same_step_or_the_nearest_earlier() -> None:
    other = Made([*series({5: 1.0, 20: 10.0}), *series({0: 7.0}, layer="b")])
    frame = drift(Made([*series(WALK), *series({20: 0.0}, layer="c")]), reference=other)
    assert against(frame[frame["layer"] == "a"])[1:] == [(10, 5, 0.0), (20, 20, 7.0), (30, 20, 7.5)]
    assert np.isnan(frame["value"].iloc[0])  # step 0 is before the other run's first
    assert frame[frame["layer"] == "c"]["value"].isna().all()  # which the other run does not have


def test_another_run_may_have_other_levels() -> None:
    other = Made(series({0: -2.0}), levels=(0.0, 1.0))  # SHAPE[:2]: uniform on [-4, -3]
    assert drift(Made(series({0: 0.0})), reference=other)["value"].item() == pytest.approx(3.5)


def test_series_are_kept_apart_and_in_order() -> None:
    rows = [
        *series({0: 0.0, 1: 1.0}, layer="z"),
        *series({0: 0.0, 1: 2.0}, layer="a", call=1),
        *series({0: 0.0, 1: 3.0}, layer="a", call=0),
        *series({0: 0.0, 1: 4.0}, layer="a", place="output.1"),
        *series({0: 9.0, 1: 0.0}, layer="a", phase="eval"),
    ]
    rows.sort(key=lambda row: row[0])  # by step, as a run gives them
    frame = drift(Made(rows))
    assert frame[["layer", "call", "place", "step", "value"]].to_numpy().tolist() == [
        ["z", 0, "input", 0, 0.0],
        ["z", 0, "input", 1, 1.0],
        ["a", 1, "input", 0, 0.0],
        ["a", 1, "input", 1, 2.0],
        ["a", 0, "input", 0, 0.0],
        ["a", 0, "input", 1, 3.0],
        ["a", 0, "output.1", 0, 0.0],
        ["a", 0, "output.1", 1, 4.0],
    ]
    previous = drift(Made(rows), reference="previous")
    assert previous["reference_step"].isna().tolist() == [True, False] * 4
    assert previous["value"].dropna().tolist() == [1.0, 2.0, 3.0, 4.0]


def test_selection_and_phase() -> None:
    run = Made(
        [*series(WALK), *series(WALK, layer="b"), *series(WALK, place="output"), *series({0: 1.0}, phase="eval")]
    )
    assert set(drift(run, layer="b")["layer"]) == {"b"}
    assert set(drift(run, layer=["a", "b"], place="input")["place"]) == {"input"}
    assert len(drift(run, phase="eval")) == 1


def test_the_distance_is_called_with_the_reference_first() -> None:
    run = Made([(0, "train", "a", 0, "input", 0.0, 1.0), (1, "train", "a", 0, "input", 1.0, 2.0)])
    p, q = Summary(mean=0.0, variance=4 / 3), Summary(mean=1.0, variance=16 / 3)
    for distance in (KullbackLeibler(), KullbackLeibler(reverse=True)):
        frame = drift(run, distance)
        assert frame["value"].iloc[1] == pytest.approx(float(distance(p, q)))
        assert set(frame["distance"]) == {distance.name}


def test_error_is_the_resolution() -> None:
    frame = drift(Made(series({0: 0.0, 1: 1.0}), rank_error=0.03))
    side = Summary(LEVELS, SHAPE, count=1000.0, rank_error=0.03)
    assert frame["error"].to_numpy() == pytest.approx(float(Wasserstein().resolution(side, side)))


@pytest.mark.parametrize("width", [0.5, 1.0, 4.0])
def test_standardized_drift_does_not_depend_on_the_unit(width: float) -> None:
    run = Made(series({0: 3.0, 1: 3.0 + width}, width=width))
    frame = drift(run, standardize=True)
    assert frame["value"].iloc[1] == pytest.approx(1 / np.sqrt(4 / 3))
    assert frame["error"].iloc[1] == pytest.approx(drift(run)["error"].iloc[1] / np.sqrt(4 / 3) / width)


def test_a_constant_reference_has_no_unit() -> None:
    frame = drift(Made(series({0: 3.0, 1: 4.0}, width=0.0)), standardize=True)
    assert frame["value"].isna().all()
    assert frame["error"].isna().all()
    assert frame["reference_step"].tolist() == [0, 0]
    assert drift(Made(series({0: 3.0, 1: 4.0}, width=0.0)))["value"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("distance", [Wasserstein(), Hellinger()], ids=repr)
def test_what_was_not_measured_has_no_row_and_is_no_reference(distance: Distance) -> None:
    rows = series({1: 0.0, 3: 2.0})
    holes = [(step, "train", "a", 0, "input", np.nan, np.nan) for step in (0, 2)]
    never = [(step, "train", "a", 0, "weight", np.nan, np.nan) for step in (0, 1)]
    run = Made(sorted([*rows, *holes, *never]))
    frame = drift(run, distance)
    assert frame[["step", "reference_step"]].to_numpy().tolist() == [[1, 1], [3, 1]]
    assert drift(run, distance, "previous")["reference_step"].tolist() == [pd.NA, 1]


# -- errors ----------------------------------------------------------------------------------------------------------


def test_lacking_what_the_distance_needs() -> None:
    run = Made(series(WALK), statistics=("mean",))
    with pytest.raises(RunError) as caught:
        drift(run)
    assert str(caught.value) == (
        "the distance needs quantiles, which no record of phase 'train' of Made() has; the run has the statistics mean"
    )
    with pytest.raises(RunError, match="needs mean and variance, which no record"):
        drift(run, Hellinger())
    with pytest.raises(RunError, match="needs quantiles and variance, which no record"):
        drift(Made(series(WALK), statistics=("quantile",)), standardize=True)


def test_a_run_without_any_levels_lacks_quantiles() -> None:
    with pytest.raises(RunError, match="needs quantiles"):
        drift(Made(series(WALK), statistics=("mean",), levels=()))


@pytest.mark.parametrize(("argument", "name"), [("layer", "b"), ("place", "weight")])
def test_lacking_it_where_it_was_asked_for(argument: str, name: str) -> None:
    run = Made([*series(WALK), (0, "train", "b", 0, "weight", np.nan, np.nan)])
    assert set(drift(run)["layer"]) == {"a"}
    text = f"the distance needs quantiles, which no record of {argument} {name!r} in phase 'train' of Made() has"
    with pytest.raises(RunError, match=re.escape(text)):
        drift(run, **{argument: [name]})


def test_quantiles_without_tails() -> None:
    run = Made(series(WALK), levels=(0.15, 0.5, 0.85))
    with pytest.raises(
        RunError, match=r"Made\(\) has quantiles that no distance can be computed from: levels must rise"
    ):
        drift(run)


def test_a_step_that_was_not_recorded() -> None:
    with pytest.raises(RunError) as caught:
        drift(Made(series(dict.fromkeys(range(0, 100, 10), 0.0))), reference=42)
    assert str(caught.value) == (
        "reference is step 42, at which nothing that the distance needs was recorded; "
        "the nearest recorded steps are 30, 40, 50, 60"
    )


@pytest.mark.parametrize("other", [series(WALK, layer="b"), series({40: 0.0}), []], ids=["layer", "later", "empty"])
def test_another_run_with_nothing_in_common(other: Any) -> None:
    with pytest.raises(RunError, match=r"^reference Made\(\) has no record to compare with"):
        drift(Made(series(WALK)), reference=Made(other))


@pytest.mark.parametrize("reference", ["last", -1, True, 1.5, None])
def test_reference_must_be_one(reference: Any) -> None:
    text = f"reference must be 'first', 'previous', a step (an int from 0) or a Run; got {reference!r}"
    with pytest.raises(ArgumentError, match=re.escape(text)):
        drift(Made(series(WALK)), reference=reference)


def test_distance_must_be_one() -> None:
    with pytest.raises(
        ArgumentError, match=r"distance must be one of bnprobe.distances, such as Wasserstein\(\); got 'w"
    ):
        drift(Made(series(WALK)), "wasserstein")
    with pytest.raises(ArgumentError, match=r"Wasserstein'> \(write it with brackets\)$"):
        drift(Made(series(WALK)), Wasserstein)


def test_phase_must_be_one() -> None:
    with pytest.raises(ArgumentError, match="phase must be one of train, eval; got None"):
        drift(Made(series(WALK)), phase=None)


# -- with recorded runs ----------------------------------------------------------------------------------------------


def record(
    directory: Path, steps: Collection[int], layers: Sequence[str], values: np.ndarray, levels: Sequence[float] = LEVELS
) -> Run:
    """A run of the given values ``[step, layer, n]`` at each layer's input, with an unrelated weight record."""
    inventory = [Layer(name, "Linear", "linear", observed=True) for name in layers]
    keys = [(step, layer) for step in steps for layer in layers]
    records = [Record(step, "train", layer, 0, "input", values.shape[-1]) for step, layer in keys]
    weights = [Record(step, "train", layer, 0, "weight", 9) for step, layer in keys]
    flat = values.reshape(len(keys), -1)
    rows = np.arange(len(keys))
    grid = np.quantile(flat, levels, axis=1).T
    table = build_table(
        [*records, *weights],
        {
            "mean": [Placed(rows, Measured(flat.mean(1), "computed"))],
            "variance": [Placed(rows, Measured(flat.var(1), "sampled", np.full(rows.size, 0.01)))],
            "quantile": [Placed(rows, Measured(np.empty(0), "sampled", np.full(rows.size, 0.02), None, grid))],
            "norm": [Placed(rows + rows.size, Measured(np.ones(rows.size), "computed"))],
        },
    )
    with Writer(directory, settings={}, layers=inventory, levels=levels) as writer:
        writer.append(table)
    return bnprobe.load(directory)


@pytest.mark.parametrize("distance", [Wasserstein(), Hellinger()], ids=repr)
@pytest.mark.parametrize("standardize", [False, True])
def test_a_recorded_run(tmp_path: Path, distance: Distance, standardize: bool) -> None:
    steps, layers = [0, 5, 6], ["later", "earlier"]
    values = np.random.default_rng(0).normal(size=(3, 2, 200)) * [[[1.0], [5.0]]] + [[[0.0]], [[1.0]], [[2.0]]]
    frame = drift(record(tmp_path, steps, layers, values), distance, standardize=standardize)
    assert list(frame.columns) == COLUMNS
    assert frame[["layer", "step"]].to_numpy().tolist() == [[name, step] for name in layers for step in steps]
    assert set(frame["place"]) == {"input"}
    for row in frame.itertuples():
        at, layer = steps.index(row.step), layers.index(row.layer)
        unit = values[0, layer].std() if standardize else 1.0
        p, q = (Summary.of(values[each, layer] / unit, LEVELS) for each in (0, at))
        assert row.value == pytest.approx(float(distance(p, q)), abs=1e-9)
        assert row.error > 0


def test_a_recorded_run_against_another(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 1, 100))
    run = record(tmp_path / "a", [0, 5, 6], ["x"], values)
    other = record(tmp_path / "b", [0, 4], ["x"], values[:2] + 3.0)
    assert against(drift(run, reference=other)) == [(0, 0, 3.0), (5, 4, 3.0), (6, 4, pytest.approx(3, abs=0.5))]
    with pytest.raises(RunError, match="'y'"):
        drift(run, layer="y")


def test_many_steps_of_many_layers(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(100, 100, 20)) + np.arange(100)[:, None, None]
    run = record(tmp_path, range(100), [f"layer{number}" for number in range(100)], values)
    frame = drift(run, standardize=True)
    assert len(frame) == 10_000
    assert frame.groupby("step")["value"].median().is_monotonic_increasing
