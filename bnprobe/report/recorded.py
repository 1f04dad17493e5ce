"""What several sections of a report ask of a run, read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnprobe.drift import drift
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
        standardize = "variance" in self.run.statistics
        frame = drift(self.run, place=self.place, phase=self.phase, standardize=standardize)
        return Drifts(frame, self.place, "sd of the first step" if standardize else "units of the value")

    def with_quantiles(self, place: str) -> list[str]:
        """Layers with quantiles at a place, in the order of the inventory."""
        there = set(self._quantiles.loc[self._quantiles["place"] == place, "layer"])
        return [name for name in self.layers["name"] if name in there]

    def ends(self, layer: str, place: str, levels: Sequence[float]) -> NDArray[np.float64]:
        """Quantiles ``[2, levels]`` of a layer at its first and last recorded step."""
        grid = self.run.grid(layer=layer, place=place, phase=self.phase)
        first_calls = np.flatnonzero(grid.keys["call"] == 0)
        return np.stack([np.interp(levels, grid.levels, row) for row in np.asarray(grid.values)[first_calls[[0, -1]]]])

    def of_family(self, ending: str) -> list[str]:
        """Layers whose family ends so: ``nonlinearity``, or ``_norm`` for every kind of normalization."""
        return self.layers.loc[self.layers["family"].str.endswith(ending), "name"].to_list()

    @cached_property
    def _quantiles(self) -> pd.DataFrame:
        """Keys of the first call's records that have quantiles."""
        records = self.run.records("quantile.source", phase=self.phase)
        return records[records["quantile.source"].notna() & (records["call"] == 0)]
