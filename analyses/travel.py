"""How far the distribution of a unit's values moves while a network trains, and how much of that could be chance.

A unit's *travel* is the length of the path of its median, in units of its interquartile range,

    sum over records t of |Q50(t+1) - Q50(t)|  /  median over records t of (Q75(t) - Q25(t)),

so that it compares networks whose activations have different sizes. One range serves the whole path: early in training
a unit may give nearly the same value for every image, and a path measured in ranges of the moment
(``travel_by_record``) would then consist of little else than that time. The quantiles are those of N test images. With
95 % confidence all of them lie between the quantiles at levels p - e and p + e of the population that the images were
drawn from, with e = sqrt(ln(2 / 0.05) / (2 N)) (Dvoretzky, Kiefer & Wolfowitz 1956; Massart 1990). All records use the
same images, so much of that error cancels in a difference: the band is a bound on the noise, not its size.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnprobe import Run
from bnprobe.errors import ArgumentError

__all__ = ["LEVELS", "UnitPaths", "band", "over_units", "wanted_levels"]

LEVELS = (0.15, 0.5, 0.85)  # Ioffe & Szegedy 2015, figure 1
_QUARTILES = (0.25, 0.75)

Array = NDArray[np.float64]


def band(images: int, alpha: float = 0.05) -> float:
    """Half-width e of the error band, in probability."""
    if images < 1:
        raise ArgumentError(f"images must be at least 1; got {images!r}")
    return math.sqrt(math.log(2 / alpha) / (2 * images))


def wanted_levels(images: int) -> tuple[float, ...]:
    """The levels to record so that medians, quartiles, the paper's percentiles and their bands can be read off."""
    e = band(images)
    ends = {min(1.0, max(0.0, level + shift)) for level in LEVELS for shift in (-e, e)}
    return tuple(sorted({*LEVELS, *_QUARTILES, *ends}))


@dataclass(frozen=True)
class UnitPaths:
    """Quantiles of each unit of a layer at each record.

    Attributes:
        steps: ``[T]``.
        levels: ``[Q]``, as ``wanted_levels`` has them.
        quantiles: ``[T, C, Q]`` for C units.
        images: number of images behind each quantile.
    """

    steps: NDArray[np.int64]
    levels: tuple[float, ...]
    quantiles: Array
    images: int

    @classmethod
    def from_run(cls, run: Run, layer: str, images: int, place: str = "input", phase: str = "eval") -> "UnitPaths":
        """From a run whose probe recorded the quantiles of every channel of ``layer``."""
        table = run.channels(layer, "quantile", place=place, phase=phase)
        values = table.to_numpy(np.float64).reshape(len(table), -1, len(run.levels))
        return cls(table.index.to_numpy(np.int64), run.levels, values, images)

    def since(self, step: int) -> "UnitPaths":
        """Without the records before ``step``."""
        kept = self.steps >= step
        return UnitPaths(self.steps[kept], self.levels, self.quantiles[kept], self.images)

    def at(self, level: float) -> Array:
        """``[T, C]`` quantiles at the recorded level nearest to ``level``."""
        nearest = int(np.abs(np.asarray(self.levels) - level).argmin())
        found: Array = self.quantiles[:, :, nearest]
        return found

    def with_band(self, level: float, unit: int) -> tuple[Array, Array, Array]:
        """``[T]`` quantiles of one unit, and the lower and upper end of their band."""
        e = band(self.images)
        value, low, high = (self.at(level + shift)[:, unit] for shift in (0.0, -e, e))
        return value, low, high

    def ranges(self) -> Array:
        """``[T, C]`` interquartile ranges."""
        low, high = map(self.at, _QUARTILES)
        result: Array = high - low
        return result

    def spread(self) -> Array:
        """``[C]`` median over the records of each unit's interquartile range; NaN where that is 0."""
        middle = np.median(self.ranges(), axis=0)
        return np.where(middle > 0, middle, np.nan)

    def travel(self) -> Array:
        """``[C]`` the travel of each unit; NaN where it has no spread."""
        result: Array = self._moves().sum(0) / self.spread()
        return result

    def travel_by_record(self) -> Array:
        """``[C]`` as ``travel``, each move in units of the mean range at its two ends; NaN where one of them is 0."""
        ranges = self.ranges()
        means = (ranges[1:] + ranges[:-1]) / 2
        result: Array = (self._moves() / np.where(means > 0, means, np.nan)).sum(0)
        return result

    def travel_beyond_band(self) -> Array:
        """``[C]`` as ``travel``, counting a move only once it leaves the error band of the median where the last ended.

        A median that trembles within its band has not been seen to move: it travels 0 here.
        """
        median = self.at(0.5)
        e = band(self.images)
        half = np.maximum(self.at(0.5 + e) - median, median - self.at(0.5 - e))
        rest, total = median[0].copy(), np.zeros(median.shape[1])
        for now, reach in zip(median[1:], half[1:], strict=True):
            moved = np.abs(now - rest) > reach
            total += np.where(moved, np.abs(now - rest), 0.0)
            rest = np.where(moved, now, rest)
        result: Array = total / self.spread()
        return result

    def floor(self) -> Array:
        """``[C]`` half-width of the median's error band in interquartile ranges, mean over the records."""
        e = band(self.images)
        result: Array = ((self.at(0.5 + e) - self.at(0.5 - e)) / 2).mean(0) / self.spread()
        return result

    def typical(self) -> int:
        """The unit whose travel is nearest to the median over all units."""
        travel = self.travel()
        if not np.isfinite(travel).any():
            return 0
        return int(np.nanargmin(np.abs(travel - np.nanmedian(travel))))

    def _moves(self) -> Array:
        """``[T-1, C]`` how far the median moves from record to record."""
        result: Array = np.abs(np.diff(self.at(0.5), axis=0))
        return result


def over_units(values: Array) -> float:
    """Median over the units ``[C]``; NaN where half of them or more have no value."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if 2 * len(known) > len(values) else math.nan
