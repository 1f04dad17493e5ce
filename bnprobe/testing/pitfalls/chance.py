"""Judging a statistic by its exact distribution under a law."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bnprobe.testing.properties.broken import Broken

__all__ = ["between", "require_between", "require_distribution"]


def between(law: Any, rate: float) -> tuple[float, float]:
    """An interval that a draw from a distribution of scipy leaves with probability ``rate``, half on each side."""
    return float(law.ppf(rate / 2)), float(law.isf(rate / 2))


def require_between(what: str, got: float, bounds: tuple[float, float], want: float, why: str) -> None:
    """Refuse what chance alone does not explain, NaN included.

    Args:
        what: name of the quantity, for the message.
        got: the layer's.
        bounds: of what chance explains.
        want: what the law gives.
        why: the distribution that the bounds come from.

    Raises:
        Broken: it is outside.
    """
    low, high = bounds
    if low <= got <= high:
        return
    raise Broken(
        f"{what} is {got:.6g}, the law gives {want:.6g}\n"
        f"misfit {abs(got - want):.3g}, tolerance {low - want:.3g} to {high - want:+.3g}: {why}"
    )


def require_distribution(what: str, values: NDArray[np.float64], law: Any, rate: float, why: str) -> None:
    """Refuse independent values that are not from a distribution, by the exact test of Kolmogorov and Smirnov.

    Raises:
        Broken: the p-value is below ``rate``, or a value is no number.
    """
    values = np.asarray(values, np.float64).reshape(-1)
    if not np.isfinite(values).all():
        raise Broken(f"{what}: {int((~np.isfinite(values)).sum())} of {values.size} values are not finite")
    result = stats.kstest(values, law.cdf, method="exact")
    if result.pvalue >= rate:
        return
    raise Broken(
        f"{what}: {values.size} values with mean {values.mean():.6g}; the law gives {float(law.mean()):.6g}\n"
        f"misfit: distribution functions {result.statistic:.3g} apart, "
        f"p-value {result.pvalue:.2g} below {rate:.1g}: {why}"
    )
