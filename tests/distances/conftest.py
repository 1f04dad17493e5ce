"""Pairs of samples of many shapes, for comparisons with scipy."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

Samples = tuple[NDArray[np.float64], NDArray[np.float64]]


def _normal(mean: float, deviation: float, n: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(mean, deviation, n)


PAIRS: dict[str, Callable[[], Samples]] = {
    "shifted": lambda: (_normal(0, 1, 4000, 0), _normal(0.3, 1, 5000, 1)),
    "widened": lambda: (_normal(0, 1, 4000, 0), _normal(0, 2, 4000, 1)),
    "far apart": lambda: (_normal(0, 1, 3000, 0), _normal(100, 1, 3000, 1)),
    "small batches": lambda: (_normal(0, 1, 40, 0), _normal(1, 1, 25, 1)),
    "relu": lambda: (np.maximum(_normal(0, 1, 4000, 0), 0), np.maximum(_normal(0.3, 1, 4000, 1), 0)),
    "mostly dead relu": lambda: (np.maximum(_normal(-2, 1, 4000, 0), 0), np.maximum(_normal(0, 1, 4000, 1), 0)),
    "saturated sigmoid": lambda: (np.tanh(_normal(0, 5, 4000, 0)), np.tanh(_normal(1, 5, 4000, 1))),
    "counts": lambda: (
        np.random.default_rng(0).poisson(3, 4000) + 0.0,
        np.random.default_rng(1).poisson(4, 4000) + 0.0,
    ),
    "heavy tails": lambda: (np.random.default_rng(0).standard_t(2, 4000), np.random.default_rng(1).standard_t(2, 4000)),
    "two constants": lambda: (np.full(100, 1.0), np.full(50, 2.5)),
    "one constant": lambda: (np.full(100, 0.5), _normal(0, 1, 2000, 1)),
    "one value": lambda: (np.array([1.0]), np.array([-1.0])),
}


@pytest.fixture(params=list(PAIRS))
def pair(request: pytest.FixtureRequest) -> Samples:
    """Two arrays of values."""
    return PAIRS[request.param]()
