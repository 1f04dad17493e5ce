"""What a distance compares (:class:`Summary`) and what a distance is (:class:`Distance`)."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnprobe.errors import ArgumentError
from bnprobe.records import DEFAULT_LEVELS

__all__ = ["Distance", "FloatArray", "Summary"]

FloatArray = NDArray[np.float64]

_ABSENT: FloatArray = np.empty(0)
_ERRORS = ("rank_error", "mean_error", "variance_error")
# Quantiles that fall by no more than this, relative to the largest, fell by rounding: eight ulps of float32.
_ROUNDING = 1e-6
_CHUNK = 1024  # rows worked on at once: the temporaries of 130 columns then stay in a core's cache


@dataclass(frozen=True, eq=False)
class Summary:
    """What is known of a batch of distributions; all fields broadcast over the leading dimensions ``[...]``.

    Between its levels a quantile function is read as a straight line, and levels that share one value as an atom of
    their whole mass: this *model* of the distribution is what distances compare. NaN stands for "not measured".

    Attributes:
        levels: ``[Q]`` rising from 0 to 1; without both ends nothing could be said about the tails.
        quantiles: ``[..., Q]`` the quantile function at ``levels``.
        mean, variance: ``[...]`` of the values; the variance is biased (divided by n).
        count: ``[...]`` number of values summarised; unknown counts as infinitely many.
        rank_error: ``[...]`` what a quantile may be off in probability, with 95 % confidence for all levels at once
            (Dvoretzky-Kiefer-Wolfowitz-Massart); 0 where all values were seen.
        mean_error, variance_error: ``[...]`` standard errors; 0 where all values were seen.
        given: which of ``quantiles``, ``mean`` and ``variance`` came with it.

    Raises:
        ArgumentError: levels do not rise from 0 to 1, or do not fit the quantiles.
    """

    levels: FloatArray = field(default_factory=lambda: _ABSENT)
    quantiles: FloatArray = field(default_factory=lambda: _ABSENT)
    mean: FloatArray = field(default_factory=lambda: _ABSENT)
    variance: FloatArray = field(default_factory=lambda: _ABSENT)
    count: FloatArray = field(default_factory=lambda: np.array(np.inf))
    rank_error: FloatArray = field(default_factory=lambda: np.zeros(()))
    mean_error: FloatArray = field(default_factory=lambda: np.zeros(()))
    variance_error: FloatArray = field(default_factory=lambda: np.zeros(()))
    given: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        given = frozenset(name for name in ("quantiles", "mean", "variance") if getattr(self, name) is not _ABSENT)
        object.__setattr__(self, "given", given)
        for name in ("levels", "quantiles", "mean", "variance", "count", *_ERRORS):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        if "quantiles" in given:
            _check_levels(self.levels, self.quantiles)

    def __repr__(self) -> str:
        shape = _leading(self, self.given)
        return f"Summary({', '.join(sorted(self.given)) or 'nothing'} of {math.prod(shape)} distributions {shape})"

    @classmethod
    def of(cls, values: ArrayLike, levels: Sequence[float] | FloatArray = DEFAULT_LEVELS) -> Self:
        """The summary of all ``values`` ``[..., n]``, seen one by one: nothing is sampled.

        Args:
            values: the last dimension is summarised; a NaN among them makes the whole summary "not measured".
            levels: of the quantile grid.

        Raises:
            ArgumentError: there are no values, or the levels do not rise from 0 to 1.
        """
        array, grid = np.asarray(values, dtype=np.float64), np.asarray(levels, dtype=np.float64)
        if array.ndim == 0 or array.shape[-1] == 0:
            raise ArgumentError(f"values must hold at least one value a summary; got shape {array.shape}")
        quantiles = np.moveaxis(np.quantile(array, np.clip(grid, 0, 1), axis=-1), 0, -1)
        return cls(grid, quantiles, array.mean(-1), array.var(-1), np.array(float(array.shape[-1])))

    def scaled(self, factor: ArrayLike) -> Self:
        """The summary of the values times a positive ``factor`` ``[...]``."""
        by = np.asarray(factor, dtype=np.float64)
        changes: dict[str, Any] = {name: getattr(self, name) for name in ("levels", "count", "rank_error")}
        powers = {"quantiles": by[..., None], "mean": by, "variance": by**2}
        changes |= {name: getattr(self, name) * powers[name] for name in self.given}
        return type(self)(**changes, mean_error=self.mean_error * by, variance_error=self.variance_error * by**2)


@dataclass(frozen=True)
class Distance(ABC):
    """How far apart two distributions are.

    Laws, which the tests put to every member of ``bnprobe.distances.__all__``: a value is never negative; it is 0
    between a summary and itself; it is NaN where either side is not measured, and only there; it does not change
    when both sides are shifted; it grows as ``factor ** homogeneity`` when both sides are scaled; batches give what
    a loop gives. Where ``symmetric``, the order of the arguments does not matter. Where ``metric``, the triangle
    inequality holds too, and only equal summaries are at distance 0.

    To add one, state the class variables and write ``_value`` and ``_error``, which see R rows of checked summaries.

    Attributes:
        needs: which of ``quantiles``, ``mean`` and ``variance`` it is computed from.
        symmetric, metric, homogeneity: see above.
    """

    needs: ClassVar[frozenset[str]]
    symmetric: ClassVar[bool]
    metric: ClassVar[bool]
    homogeneity: ClassVar[float]

    @property
    def name(self) -> str:
        """Its name in tables: the class name in lower case, words joined by underscores."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def __call__(self, p: Summary, q: Summary) -> FloatArray:
        """The distances ``[...]`` from the reference ``p`` to ``q``; NaN where either is not measured.

        Raises:
            ArgumentError: a side lacks what the distance needs, or holds what no distribution has.
        """
        return self._over_rows(self._value, p, q)

    def resolution(self, p: Summary, q: Summary) -> FloatArray:
        """How far the distances ``[...]`` between these summaries may be from those between the values themselves.

        Whether this is a bound or an estimate, and of what, stands in each distance's docstring. Parts that come from
        sampling hold at 95 %. NaN where the distance is, or where an error that it depends on is unknown.

        Raises:
            ArgumentError: a side lacks what the distance needs, or holds what no distribution has.
        """
        return self._over_rows(self._error, p, q)

    @abstractmethod
    def _value(self, p: Summary, q: Summary) -> FloatArray:
        """Distances ``[R]`` between rows ``[R, Q]``, ``[R]``; rows with NaN may give anything."""

    @abstractmethod
    def _error(self, p: Summary, q: Summary) -> FloatArray:
        """The resolution ``[R]`` of :meth:`_value`."""

    def _over_rows(self, function: Callable[[Summary, Summary], FloatArray], p: Summary, q: Summary) -> FloatArray:
        for side, summary in (("p", p), ("q", q)):
            self._check(side, summary)
        shape = np.broadcast_shapes(*(_leading(summary, self.needs) for summary in (p, q)))
        result = np.empty(math.prod(shape))
        with np.errstate(invalid="ignore", over="ignore", divide="ignore", under="ignore"):
            chunks = zip(_chunks(p, self.needs, shape), _chunks(q, self.needs, shape), strict=True)
            for start, (rows_p, rows_q) in zip(range(0, result.size, _CHUNK), chunks, strict=True):
                measured = _measured(rows_p, self.needs) & _measured(rows_q, self.needs)
                result[start : start + _CHUNK] = np.where(measured, function(rows_p, rows_q), np.nan)
        return result.reshape(shape)

    def _check(self, side: str, summary: Summary) -> None:
        if missing := self.needs - summary.given:
            has = ", ".join(sorted(summary.given)) or "nothing"
            raise ArgumentError(f"{self.name} needs {', '.join(sorted(missing))}; {side} has {has}")
        if "variance" in self.needs and (summary.variance < 0).any():
            raise ArgumentError(f"{side}.variance must not be negative; got {np.nanmin(summary.variance)}")


def _check_levels(levels: FloatArray, quantiles: FloatArray) -> None:
    if levels.ndim != 1 or levels.size < 2 or levels[0] != 0 or levels[-1] != 1 or not (np.diff(levels) > 0).all():
        ends = f"{levels.size} levels from {levels.flat[0]:g} to {levels.flat[-1]:g}" if levels.size else "none"
        raise ArgumentError(f"levels must rise from 0 to 1, else the tails are unknown; got {ends}")
    if quantiles.shape[-1:] != levels.shape:
        raise ArgumentError(f"quantiles must have {levels.size} levels in the last dimension; got {quantiles.shape}")
    if (quantiles[..., 1:] < quantiles[..., :-1]).any():
        fall = np.maximum.accumulate(quantiles, axis=-1) - quantiles
        if (fall > _ROUNDING * np.abs(quantiles).max(-1, keepdims=True)).any():
            raise ArgumentError(f"quantiles must not fall from one level to the next; some fall by {np.nanmax(fall):g}")


def _fields(needs: frozenset[str]) -> list[str]:
    """Per-row fields that a distance with these needs reads, beside the quantiles."""
    moments = [name for name in ("mean", "variance") if name in needs]
    return [*moments, "count", *_ERRORS]


def _leading(summary: Summary, needs: frozenset[str]) -> tuple[int, ...]:
    shapes = [getattr(summary, name).shape for name in _fields(needs)]
    if "quantiles" in needs:
        shapes.append(summary.quantiles.shape[:-1])
    return np.broadcast_shapes(*shapes)


def _chunks(summary: Summary, needs: frozenset[str], shape: tuple[int, ...]) -> Iterator[Summary]:
    """The summary broadcast to ``shape``, as rows, some at a time."""
    rows: dict[str, FloatArray] = {}
    for name in _fields(needs):
        rows[name] = np.broadcast_to(getattr(summary, name), shape).reshape(-1)
    if "quantiles" in needs:
        size = summary.levels.size
        rows["quantiles"] = np.broadcast_to(summary.quantiles, (*shape, size)).reshape(-1, size)
    for start in range(0, rows["count"].size, _CHUNK):
        part: dict[str, Any] = {name: values[start : start + _CHUNK] for name, values in rows.items()}
        if "quantiles" in needs:
            part["quantiles"] = np.maximum.accumulate(part["quantiles"], axis=-1)
        yield Summary(levels=summary.levels, **part)


def _measured(rows: Summary, needs: frozenset[str]) -> NDArray[np.bool_]:
    finite = np.ones(rows.count.shape, dtype=bool)
    for name in needs:
        values = getattr(rows, name)
        finite &= np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    return finite
