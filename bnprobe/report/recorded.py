"""What several sections of a report ask of a run, read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnprobe.drift import drift
from bnprobe.errors import RunError
from bnprobe.store import Run

__all__ = ["Drifts", "Recorded"]


@dataclass(frozen=True)
class Drifts:
    """Rows of ``bnprobe.drift`` against the first step.

    Attributes:
        frame: the rows, of one place.
        place: the place.
        unit: of the values, in words.
    """

    frame: pd.DataFrame
    place: str
    unit: str

    def last(self) -> pd.Series:
        """The last measured value by layer, of a layer's first call."""
        first_calls = self.frame[self.frame["call"] == 0]
        return first_calls.groupby("layer", observed=True)["value"].last().dropna()


class Recorded:
    """A run, with what is there.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def keys(self) -> pd.DataFrame:
        """Keys and counts of all records."""
        return self.run.records()

    @cached_property
    def layers(self) -> pd.DataFrame:
        """The inventory."""
        return self.run.layers

    @cached_property
    def phase(self) -> str:
        """The phase to show: training, unless only evaluation was recorded."""
        return "eval" if set(self.keys["phase"]) == {"eval"} else "train"

    @cached_property
    def place(self) -> str:
        """Where to look at distributions: at inputs, where covariate shift is defined, or else at outputs."""
        return "input" if self.with_quantiles("input") else "output"

    @cached_property
    def drifts(self) -> Drifts | None:
        """The drift of every layer with quantiles at ``place``; None where there are none."""
        if not self.with_quantiles(self.place):
            return None
        try:
            frame, unit = self._drift(standardize=True), "sd of the first step"
        except RunError:  # no variance beside the quantiles
            frame, unit = self._drift(standardize=False), "units of the value"
        return Drifts(frame, self.place, unit)

    def _drift(self, *, standardize: bool) -> pd.DataFrame:
        return drift(self.run, place=self.place, phase=self.phase, standardize=standardize)

    def with_quantiles(self, place: str) -> list[str]:
        """Layers with quantiles at a place, in the order of the inventory."""
        there = self._layers_with_quantiles.get(place, frozenset())
        return [name for name in self.layers["name"] if name in there]

    def ends(self, names: Sequence[str], place: str, levels: Sequence[float]) -> dict[str, NDArray[np.float64]]:
        """For each layer, quantiles ``[2, levels]`` at its first and last recorded step."""
        grid = self.run.grid(layer=names, place=place, phase=self.phase)
        ends = {}
        for name in names:
            rows = np.flatnonzero((grid.keys["layer"] == name) & (grid.keys["call"] == 0))[[0, -1]]
            ends[name] = np.stack([np.interp(levels, grid.levels, row) for row in np.asarray(grid.values)[rows]])
        return ends

    def first_and_last_with_moments(self, place: str) -> list[int]:
        """The first and last step with mean and variance at a place: two, or one, or none."""
        records = self.run.records("mean", "variance", place=place, phase=self.phase).dropna(
            subset=["mean", "variance"]
        )
        return sorted({int(records["step"].min()), int(records["step"].max())}) if len(records) else []

    def of_family(self, ending: str) -> list[str]:
        """Layers whose family ends so: ``nonlinearity``, or ``_norm`` for every kind of normalization."""
        return self.layers.loc[self.layers["family"].str.endswith(ending), "name"].to_list()

    @cached_property
    def _layers_with_quantiles(self) -> dict[str, frozenset[str]]:
        """Of each place, the layers whose first calls have quantiles."""
        records = self.run.records("quantile.source", phase=self.phase)
        records = records[records["quantile.source"].notna() & (records["call"] == 0)]
        return {str(place): frozenset(layers) for place, layers in records.groupby("place")["layer"]}
