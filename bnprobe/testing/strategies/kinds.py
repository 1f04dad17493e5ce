"""Kinds of values that a batch can hold, those that layers get wrong among them."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["KINDS", "PLAIN"]

_Values = NDArray[np.float64]
_Shape = tuple[int, int, int]  # channels, samples, positions


def _integers(rng: np.random.Generator, shape: _Shape, _: torch.finfo) -> _Values:
    """Small whole numbers, easy to follow by hand; no channel is constant by chance alone where it has two values."""
    values = rng.integers(-3, 4, shape).astype(np.float64)
    if shape[1] * shape[2] > 1:
        rows = values.reshape(shape[0], -1)
        rows[:, 0] += np.where(np.ptp(rows, axis=1) == 0, 1.0, 0.0)
    return values


def _gaussian(rng: np.random.Generator, shape: _Shape, _: torch.finfo) -> _Values:
    """Each channel with its own mean and standard deviation, both of order 1."""
    means, deviations = rng.uniform(-1, 1, (shape[0], 1, 1)), rng.uniform(0.5, 2, (shape[0], 1, 1))
    return np.asarray(means + deviations * rng.normal(size=shape))


def _constant_channels(rng: np.random.Generator, shape: _Shape, limits: torch.finfo) -> _Values:
    """The first channel is constant, and each other one with probability a half."""
    values = _gaussian(rng, shape, limits)
    constant = rng.random(shape[0]) < 0.5
    constant[:1] = True
    values[constant] = np.round(rng.uniform(-4, 4, (int(constant.sum()), 1, 1)))
    return values


def _offset(rng: np.random.Generator, shape: _Shape, limits: torch.finfo) -> _Values:
    """Standard deviation 1 around a mean whose square has no digit left for the variance.

    One mean for all channels, so that it is one for layers that normalize channels together too.
    """
    mean = limits.eps**-0.5
    return np.asarray(mean * rng.choice([-1.0, 1.0]) + rng.normal(size=shape))


def _denormal(rng: np.random.Generator, shape: _Shape, limits: torch.finfo) -> _Values:
    """Below the smallest normal number of the dtype."""
    return np.asarray(limits.tiny / 4 * rng.normal(size=shape))


def _huge(rng: np.random.Generator, shape: _Shape, limits: torch.finfo) -> _Values:
    """So large that cubes are within nine digits of overflow; of half precision, values within two."""
    largest = limits.max
    return np.asarray((largest ** (1 / 3) / 1e3 if largest > 1e6 else largest / 64) * rng.normal(size=shape))


def _sparse(rng: np.random.Generator, shape: _Shape, _: torch.finfo) -> _Values:
    """As behind a ReLU: nine in ten are 0."""
    return np.asarray(np.abs(rng.normal(size=shape)) * (rng.random(shape) < 0.1))


def _heavy_tailed(rng: np.random.Generator, shape: _Shape, _: torch.finfo) -> _Values:
    """Student's t with 1.5 degrees of freedom: no variance in the population."""
    return np.clip(rng.standard_t(1.5, shape), -1e3, 1e3)


def _correlated(rng: np.random.Generator, shape: _Shape, _: torch.finfo) -> _Values:
    """Positions of one sample, and channels, share most of their value."""
    shared = rng.normal(size=(1, shape[1], 1))
    return np.asarray(shared + 0.1 * rng.normal(size=shape))


def _outlier(rng: np.random.Generator, shape: _Shape, limits: torch.finfo) -> _Values:
    """One value of each channel is a thousand standard deviations off."""
    values = _gaussian(rng, shape, limits)
    rows = values.reshape(shape[0], -1)
    if rows.shape[1]:
        rows[np.arange(shape[0]), rng.integers(rows.shape[1], size=shape[0])] += 1000
    return values


# In the order in which hypothesis tries simpler ones.
KINDS: dict[str, Callable[[np.random.Generator, _Shape, torch.finfo], _Values]] = {
    "integers": _integers,
    "gaussian": _gaussian,
    "sparse": _sparse,
    "correlated": _correlated,
    "heavy_tailed": _heavy_tailed,
    "outlier": _outlier,
    "constant_channels": _constant_channels,
    "offset": _offset,
    "denormal": _denormal,
    "huge": _huge,
}
# Kinds on which a law of exact arithmetic can be seen in floating point: variances are of order 1 and means too.
PLAIN = ("integers", "gaussian", "correlated", "heavy_tailed")
