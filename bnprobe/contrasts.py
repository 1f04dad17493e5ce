"""Whether one layer sees several distributions: calls that differ, batches that take turns; and how much is chance.

Numbers in, numbers out: the same functions judge a model under examination and the records of a finished run.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chance", "chance", "contrast", "divergence", "periodicity", "together"]

Array = NDArray[np.float64]
MOST = 1999  # draws; the smallest p-value is then 0.0005, and 1 % survives a correction over twenty tests
ENOUGH = 20  # exceedances after which it is known well enough (Besag and Clifford 1991)
LEAST = 99  # draws even then, for the mean and the upper end of what chance makes
LONGEST = 8  # period, in batches
ROUNDS = 3  # periods that must be seen; ours: two could be a coincidence of two batches


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
    drawn = np.array(values)
    p_value = (above + 1) / (drawn.size + 1)  # never below the sequential test's own, above / draws
    return Chance(p_value, float(drawn.mean()), float(np.quantile(drawn, 0.99)))


def contrast(values: Array, seed: int) -> tuple[float, float, float]:
    """Sum over calls and channels of the squared distance of a call's average from that of all calls.

    Args:
        values: ``[B, k, C]``.
        seed: of the permutations of calls within each batch.

    Returns:
        The sum, what chance makes of it, and its p-value.
    """
    batches, calls, _ = values.shape
    centred = values - values.mean(1, keepdims=True)

    def between(order: NDArray[np.int64]) -> float:
        shuffled = centred[np.arange(batches)[:, None], order]
        return float((shuffled.mean(0) ** 2).sum())

    start = np.broadcast_to(np.arange(calls), (batches, calls))
    observed = between(start)
    found = chance(observed, lambda draw: between(draw.permuted(start, axis=1)), seed)
    return observed, found.mean, found.p_value


def divergence(mean: Array, variance: Array, of_mean: Array, of_variance: Array) -> float:
    """KL(N(mean, variance) || N(of_mean, of_variance)) in nats, averaged over channels ``[C]`` that vary at all."""
    alive = (variance > 0) & (of_variance > 0)
    if not alive.any():
        return 0.0
    ratio = variance[alive] / of_variance[alive]
    off = (mean - of_mean)[alive] ** 2 / of_variance[alive]
    return float(0.5 * (ratio + off - 1 - np.log(ratio)).mean())


def periodicity(means: Array, seed: int) -> tuple[int, float, float] | None:
    """Whether batches take turns: their period, how alike batches a period apart are (1: the same), and its p-value.

    A drift of the data makes neighbours alike, and those farther away less; so what counts is by how much batches k >=
    2 apart are more alike than neighbours.

    Args:
        means: ``[B, C]`` of each batch, each channel in its standard deviation.
        seed: of the permutations of the order of batches.
    """
    batches = len(means)
    longest = min(LONGEST, batches // ROUNDS)
    centred = means - means.mean(0)
    gram = centred @ centred.T
    own = np.trace(gram) / batches
    if longest < 2 or not own > 0:
        return None

    def likeness(order: NDArray[np.int64]) -> Array:
        turned = gram[np.ix_(order, order)]
        alike: Array = np.array([np.diagonal(turned, lag).mean() for lag in range(1, longest + 1)])
        return np.asarray(alike / own)

    def advantage(order: NDArray[np.int64]) -> float:
        found = likeness(order)
        return float(found[1:].max() - max(found[0], 0.0))

    start = np.arange(batches)
    found = likeness(start)
    # The shortest of several that do as well: two periods are a period, too.
    period = 2 + int(np.flatnonzero(found[1:] >= found[1:].max() - 0.1)[0])
    result = chance(advantage(start), lambda draw: advantage(draw.permutation(batches)), seed)
    return period, float(found[period - 1] - max(found[0], 0.0)), result.p_value


def together(means: Array, variances: Array, counts: Array) -> tuple[Array, Array]:
    """Mean and variance ``[C]`` of several sets of values with these means and variances ``[K, C]``, counts ``[K]``."""
    center = np.average(means, axis=0, weights=counts)
    return center, np.average(variances + (means - center) ** 2, axis=0, weights=counts)
