import re
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2, norm, poisson

from bnprobe.distances import JensenShannon, Summary
from bnprobe.errors import ArgumentError
from bnprobe.records import DEFAULT_LEVELS

distance = JensenShannon()
RANKS = (np.arange(200_000) + 0.5) / 200_000
NORMAL = norm.ppf(RANKS)
LINE = np.linspace(-14, 14, 100_001)


def gaussians(mean: float, deviation: float) -> tuple[Summary, Summary, float]:
    exact = jensenshannon(norm.pdf(LINE), norm.pdf(LINE, mean, deviation))
    return Summary.of(NORMAL), Summary.of(mean + deviation * NORMAL), float(exact)


def rectified(mean_p: float, mean_q: float) -> tuple[Summary, Summary, float]:
    positive = LINE[LINE > 0]
    shares = [np.append(norm.pdf(positive, mean) * (LINE[1] - LINE[0]), norm.cdf(-mean)) for mean in (mean_p, mean_q)]
    p, q = (Summary.of(np.maximum(NORMAL + mean, 0)) for mean in (mean_p, mean_q))
    return p, q, float(jensenshannon(*shares))


def counts(rate_p: float, rate_q: float) -> tuple[Summary, Summary, float]:
    exact = jensenshannon(*(poisson.pmf(np.arange(80), rate) for rate in (rate_p, rate_q)))
    return Summary.of(poisson.ppf(RANKS, rate_p)), Summary.of(poisson.ppf(RANKS, rate_q)), float(exact)


CASES: dict[str, tuple[Any, float, float]] = {
    "hardly shifted": (gaussians, 0.05, 1),
    "shifted": (gaussians, 0.5, 1),
    "far shifted": (gaussians, 3, 1),
    "hardly widened": (gaussians, 0, 1.05),
    "widened": (gaussians, 1, 2),
    "relu, zeros end on a level": (rectified, 0, 0.3),
    "relu, hardly shifted": (rectified, 0, 0.03),
    "relu, zeros end in a cell": (rectified, 0.013, 0.4),
    "relu, mostly dead": (rectified, -2, -1.5),
    "few counts": (counts, 0.3, 0.35),
    "counts": (counts, 3, 4),
    "many counts": (counts, 20, 22),
}


@pytest.mark.parametrize("case", list(CASES))
def test_within_resolution_of_scipy(case: str) -> None:
    build, a, b = CASES[case]
    p, q, exact = build(a, b)
    assert abs(distance(p, q) - exact) <= distance.resolution(p, q)


@pytest.mark.parametrize("case", [name for name in CASES if "counts" not in name and "dead" not in name])
def test_density_and_relu_to_eight_per_cent(case: str) -> None:
    build, a, b = CASES[case]
    p, q, exact = build(a, b)
    assert distance(p, q) == pytest.approx(exact, rel=0.08)


def test_is_scipy_on_the_bins_of_both() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 3000))
    levels = np.linspace(0, 1, 11)
    edges = np.sort(np.concatenate([np.quantile(x, levels), np.quantile(y * 2, levels)]))
    shares = [np.histogram(values, [-np.inf, *edges, np.inf])[0] for values in (x, y * 2)]
    # Levels so fine that the shares are exact to one value or two.
    fine = np.linspace(0, 1, 5001)
    assert distance(Summary.of(x, fine), Summary.of(y * 2, fine)) == pytest.approx(jensenshannon(*shares), abs=3e-3)


def test_disjoint_is_the_largest_distance() -> None:
    p, q = Summary.of(np.linspace(0, 1, 50)), Summary.of(np.linspace(2, 3, 50))
    assert distance(p, q) == pytest.approx(np.sqrt(np.log(2)), rel=1e-15)
    assert distance(Summary.of([1.0]), Summary.of([1.0 + 1e-9])) == pytest.approx(np.sqrt(np.log(2)), rel=1e-15)


@pytest.mark.parametrize("bins", [4, 7, 10])
def test_what_binning_loses_is_within_resolution(bins: int) -> None:
    p, q, exact = gaussians(0, 3)
    coarse = JensenShannon(bins=bins)
    assert exact - coarse.resolution(p, q) <= coarse(p, q) <= exact


def test_a_tiny_difference_is_not_lost_in_rounding() -> None:
    # Two bins' shares of 1/4 differ by d/4 each: the sum of (p - q)^2 / (8 m) is d^2 / 16.
    levels, d = np.linspace(0, 1, 5), 1e-8
    p, q = Summary(levels, [0, 1, 2, 3, 4]), Summary(levels, [0, 1 + d, 2, 3, 4])
    assert JensenShannon(bins=4)(p, q) == pytest.approx(d / 4, rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("distance", "levels"),
    [
        (JensenShannon(), DEFAULT_LEVELS),
        (JensenShannon(), np.linspace(0, 1, 1001)),
        (JensenShannon(bins=100), np.linspace(0, 1, 1001)),
    ],
    ids=["default", "fine", "many bins"],
)
def test_samples_are_within_resolution_19_times_out_of_20(distance: JensenShannon, shift: float, levels: Any) -> None:
    n, trials = 2048, 200
    values = np.random.default_rng(0).normal(size=(2, trials, n))
    sampled = [
        Summary(each.levels, each.quantiles, rank_error=np.sqrt(np.log(40) / (2 * n)))
        for each in (Summary.of(values[0], levels), Summary.of(values[1] + shift, levels))
    ]
    exact = gaussians(shift, 1)[2]
    inside = np.abs(distance(*sampled) - exact) <= distance.resolution(*sampled)
    assert inside.mean() >= 0.95


def test_equal_samples_may_come_from_different_densities() -> None:
    levels = np.arange(11) / 10
    sample = Summary(levels, levels, rank_error=np.sqrt(np.log(40) / (2 * 500)))
    assert distance(sample, sample) == 0
    assert distance.resolution(sample, sample) == pytest.approx(np.sqrt(chi2.ppf(0.95, 9) / 8 * 2 / 500))


def test_all_seen_still_counts_as_draws_from_a_density() -> None:
    many, few = (Summary.of(np.random.default_rng(0).normal(size=n)) for n in (100_000, 100))
    assert distance.resolution(few, many) > 3 * distance.resolution(many, many)
    assert distance(many, many) == 0


@pytest.mark.parametrize("bins", [3, 10.0, None])
def test_bins_must_be_a_count(bins: Any) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"bins must be an int of at least 4; got {bins!r}")):
        JensenShannon(bins=bins)
