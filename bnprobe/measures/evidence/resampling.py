"""Uncertainty of what is averaged over batches: paired bootstrap intervals and tests."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_1samp

__all__ = ["bootstrap", "excess_test"]

RESAMPLES = 1000


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], size: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of ``statistic(indices of batches)`` under resampling of ``size`` batches.

    NaN where there are fewer than two batches.
    """
    if size < 2:
        return float("nan"), float("nan")
    draw = np.random.default_rng(seed)
    values = np.array([statistic(draw.integers(0, size, size)) for _ in range(RESAMPLES)])
    values = values[np.isfinite(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def excess_test(differences: NDArray[np.float64]) -> float:
    """One-sided p-value that the mean of paired differences is above zero (t test over batches).

    One where nothing differs or there are fewer than two batches; zero where all differ by the same amount, or one by
    infinitely much; NaN where one is not known.
    """
    if np.isnan(differences).any():
        return float("nan")
    if np.isposinf(differences).any():
        return 0.0
    if differences.size < 2 or np.isneginf(differences).any():
        return 1.0
    if np.ptp(differences) == 0:
        return 0.0 if differences[0] > 0 else 1.0
    return float(ttest_1samp(differences, 0.0, alternative="greater").pvalue)
