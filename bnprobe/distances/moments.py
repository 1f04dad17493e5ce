"""What the errors of means and variances do to a distance between Gaussians."""

from collections.abc import Callable
from itertools import product

import numpy as np

from bnprobe.distances.base import FloatArray, Summary
from bnprobe.distances.model import Z95

__all__ = ["moment_error"]


def moment_error(value: Callable[[Summary, Summary], FloatArray], p: Summary, q: Summary) -> FloatArray:
    """The largest change of ``value`` at the ends of the moments' 95 % intervals, 1.96 standard errors either way.

    The distances depend on the means through their difference only, so the two means' intervals add.
    """
    errors = p.mean_error + q.mean_error + p.variance_error + q.variance_error
    largest = np.where(np.isnan(errors), np.nan, 0.0)
    if not errors.any():
        return largest
    here = value(p, q)
    for mean, variance_p, variance_q in product((-Z95, Z95), repeat=3):
        there = value(
            Summary(mean=p.mean + mean * (p.mean_error + q.mean_error), variance=_moved(p, variance_p)),
            Summary(mean=q.mean, variance=_moved(q, variance_q)),
        )
        largest = np.maximum(largest, np.where(there == here, 0.0, np.abs(there - here)))
    return largest


def _moved(summary: Summary, by: float) -> FloatArray:
    return np.maximum(summary.variance + by * summary.variance_error, 0.0)
