"""Tests by permutation: how often does chance alone make as much of a statistic."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST", "Chance", "chance"]

MOST = 1999  # draws; the smallest p-value is then 0.0005, and 1 % survives a correction over twenty tests
ENOUGH = 20  # exceedances after which it is known well enough (Besag and Clifford 1991)
LEAST = 99  # draws even then, for the mean and the upper end of what chance makes


@dataclass(frozen=True)
class Chance:
    """What chance alone makes of a statistic.

    Attributes:
        p_value: one-sided, that it is as large as observed; exact (never too small) whatever the distribution.
        mean: its average.
        high: its 99 % quantile; what is not above it cannot be told from chance.
    """

    p_value: float
    mean: float
    high: float


def chance(observed: float, draw: Callable[[np.random.Generator], float], seed: int) -> Chance:
    """Draw permuted values of a statistic, sequentially (Besag and Clifford 1991): few where it is ordinary.

    Args:
        observed: its value.
        draw: a value of it under a random permutation.
        seed: of a generator of its own; no global stream is touched.
    """
    generator = np.random.default_rng(seed)
    values: list[float] = []
    above = 0
    while len(values) < MOST and (above < ENOUGH or len(values) < LEAST):
        values.append(draw(generator))
        # Permutations that leave the value as it is come out a rounding apart.
        above += values[-1] >= observed - 1e-9 * abs(observed)
    drawn: NDArray[np.float64] = np.array(values)
    p_value = (above + 1) / (drawn.size + 1)  # never below the sequential test's own, above / draws
    return Chance(p_value, float(drawn.mean()), float(np.quantile(drawn, 0.99)))
