import re
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from bnprobe.distances import PopulationStability, Summary
from bnprobe.errors import ArgumentError

distance = PopulationStability()


def naive(reference: np.ndarray, values: np.ndarray, bins: int = 10, floor: float = 1e-4) -> float:
    """By the formula: shares of the bins (a, b] between the reference's quantiles."""
    cuts = np.unique(np.quantile(reference, np.arange(1, bins) / bins))
    shares = [
        np.bincount(np.searchsorted(cuts, each), minlength=cuts.size + 1) / each.size for each in (reference, values)
    ]
    p, q = (np.maximum(each, floor) for each in shares)
    return float(((p - q) * np.log(p / q)).sum())


@pytest.mark.parametrize(
    ("deviation", "shift", "rel"), [(1.0, 0.1, 0.02), (1.0, 0.5, 0.01), (1.5, 0.0, 0.01), (1.0, 2.0, 0.03)]
)
def test_gaussians(deviation: float, shift: float, rel: float) -> None:
    values = norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    cuts = norm.ppf(np.arange(11) / 10)
    q = np.diff(norm.cdf(cuts, shift, deviation))
    exact = ((0.1 - q) * np.log(0.1 / q)).sum()
    p, q = Summary.of(values), Summary.of(values * deviation + shift)
    assert distance(p, q) == pytest.approx(exact, rel=rel)
    assert abs(distance(p, q) - exact) <= distance.resolution(p, q)


@pytest.mark.parametrize("shape", ["smooth", "relu", "counts"])
def test_within_resolution_of_the_formula(shape: str) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=5000), generator.normal(0.3, 1, size=5000)
    if shape == "relu":
        x, y = np.maximum(x, 0), np.maximum(y, 0)
    if shape == "counts":
        x, y = generator.poisson(3, 5000) + 0.0, generator.poisson(4, 5000) + 0.0
    p, q = Summary.of(x), Summary.of(y)
    assert abs(distance(p, q) - naive(x, y)) <= distance.resolution(p, q)


@pytest.mark.parametrize(("shift", "deviation"), [(0.0, 1.0), (0.1, 1.0), (0.0, 3.0), (-1.0, 1.0)])
@pytest.mark.parametrize("sampled", ["reference", "other", "both"])
def test_samples_are_within_resolution_19_times_out_of_20(shift: float, deviation: float, sampled: str) -> None:
    n, trials, fine = 1024, 200, np.linspace(0, 1, 501)  # so fine that only sampling counts
    values = np.random.default_rng(0).normal(size=(2, trials, n))
    whole = Summary.of(norm.ppf((np.arange(100_000) + 0.5) / 100_000), fine)
    p, q = (
        Summary(fine, np.quantile(each, fine, axis=1).T, rank_error=np.sqrt(np.log(40) / (2 * n))) for each in values
    )
    if sampled != "both":
        p, q = (p, whole) if sampled == "reference" else (whole, q)
    q = Summary(fine, q.quantiles * deviation + shift, rank_error=q.rank_error)
    edges = norm.cdf(norm.ppf(np.arange(11) / 10), shift, deviation)
    exact = ((0.1 - np.diff(edges)) * np.log(0.1 / np.diff(edges))).sum()
    assert (np.abs(distance(p, q) - exact) <= distance.resolution(p, q)).mean() >= 0.95


def test_samples_of_one_distribution_are_below_the_resolution_of_many_bins() -> None:
    n, many = 2048, PopulationStability(bins=60)
    fine = np.linspace(0, 1, 601)
    p, q = (
        Summary(fine, np.quantile(each, fine, axis=1).T, rank_error=np.sqrt(np.log(40) / (2 * n)))
        for each in np.random.default_rng(0).normal(size=(2, 200, n))
    )
    assert (many(p, q) <= many.resolution(p, q)).mean() >= 0.95


def test_values_on_the_other_side_of_an_atom_are_seen() -> None:
    zeros, below = Summary.of(np.zeros(100)), Summary.of(np.full(100, -1.0))
    # All of one bin has moved to another, both ways round.
    expected = 2 * (1 - 1e-4) * np.log(1e4)
    assert distance(zeros, below) == pytest.approx(expected)
    assert distance(below, zeros) == pytest.approx(expected)


def test_an_empty_bin_is_infinite_without_a_floor() -> None:
    p, q = Summary.of(np.linspace(0, 1, 100)), Summary.of(np.linspace(2, 3, 100))
    without = PopulationStability(floor=0.0)
    assert distance(p, q) == pytest.approx(0.9 * np.log(1 / 0.1) + 9 * 0.0999 * np.log(0.1 / 1e-4))
    assert without(p, q) == without.resolution(p, q) == np.inf
    assert without(p, p) == 0


@pytest.mark.parametrize("bins", [1, 2.5, None])
def test_bins_must_be_a_count(bins: Any) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"bins must be an int of at least 2; got {bins!r}")):
        PopulationStability(bins=bins)


@pytest.mark.parametrize("floor", [-0.1, 0.1, float("nan")])
def test_floor_must_be_below_a_bins_share(floor: float) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"floor must be in [0, 1/bins = 0.1); got {floor!r}")):
        PopulationStability(floor=floor)
