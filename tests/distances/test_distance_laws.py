"""The laws of `bnprobe.distances.base.Distance`, put to every distance that the package exports."""

import dataclasses
import inspect
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bnprobe.distances
from bnprobe.distances import Distance, Summary
from bnprobe.errors import ArgumentError

CLASSES = [
    member
    for name in bnprobe.distances.__all__
    if inspect.isclass(member := getattr(bnprobe.distances, name))
    and issubclass(member, Distance)
    and member is not Distance
]
# Every exported class with its defaults, and every other value of a setting that changes a law's path.
MEMBERS = [
    *(member() for member in CLASSES),
    bnprobe.distances.KullbackLeibler(reverse=True),
    bnprobe.distances.JensenShannon(bins=4),
    bnprobe.distances.PopulationStability(bins=4, floor=0.0),
]
LEVELS = (
    np.array([0.0, 1.0]),
    np.array([0.0, 0.1, 0.5, 0.9, 1.0]),
    np.array([0.0, 0.001, 0.25, 0.26, 0.5, 0.6, 0.75, 1.0]),
)
GRIDS = st.sampled_from(LEVELS)
# A bin's edge between levels would be rounded, and which side of an atom it then falls on is chance.
CUTS = np.union1d(np.arange(11) / 10, np.arange(5) / 4)
WITH_CUTS = st.sampled_from([CUTS, np.union1d(CUTS, [0.001, 0.02, 0.45, 0.999])])
# Eighths and their sums and differences are exact: rounding cannot make or break ties, so laws hold tightly.
EIGHTHS = st.integers(-40, 40).map(lambda k: k / 8)
ROUNDING = 1e-7  # square roots of rounding errors of a few 1e-16

laws = settings(max_examples=40, deadline=None)
every_distance = pytest.mark.parametrize("distance", MEMBERS, ids=repr)
every_symmetric = pytest.mark.parametrize("distance", [each for each in MEMBERS if each.symmetric], ids=repr)
every_metric = pytest.mark.parametrize("distance", [each for each in MEMBERS if each.metric], ids=repr)


@st.composite
def summaries(draw: st.DrawFn, grids: st.SearchStrategy[np.ndarray] = GRIDS) -> Summary:
    """Any distribution: smooth, with atoms, constant; the moments need not fit the quantiles."""
    levels = draw(grids)
    pool = draw(st.sampled_from([EIGHTHS, st.sampled_from([0.0, 1.0]), st.just(0.5)]))
    quantiles = np.sort(draw(st.lists(pool, min_size=levels.size, max_size=levels.size)))
    variance = draw(st.sampled_from([0.0, 1e-6, 0.25, 1.0, 9.0]))
    count = draw(st.sampled_from([1.0, 50.0, 1e6, np.inf]))
    error = draw(st.sampled_from([0.0, 0.05]))
    return Summary(levels, quantiles, np.array(draw(EIGHTHS)), np.array(variance), count, error, error, error / 10)


def moved(summary: Summary, shift: float) -> Summary:
    return replaced(summary, quantiles=summary.quantiles + shift, mean=summary.mean + shift)


def replaced(summary: Summary, **changes: object) -> Summary:
    fields = {each.name: getattr(summary, each.name) for each in dataclasses.fields(Summary) if each.init}
    return Summary(**fields | changes)


def same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=ROUNDING, abs_tol=ROUNDING)


def test_exported_distances_are_found() -> None:
    assert len(CLASSES) == 8


@every_distance
def test_declarations(distance: Distance) -> None:
    assert distance.needs
    assert distance.needs <= {"quantiles", "mean", "variance"}
    assert distance.symmetric or not distance.metric
    assert distance.name.isidentifier()
    assert distance.name.islower()
    assert "*Resolution.*" in (inspect.getdoc(type(distance)) or "")
    with pytest.raises(dataclasses.FrozenInstanceError):
        distance.bins = 7  # type: ignore[attr-defined]


def test_names_differ() -> None:
    assert len({member.name for member in MEMBERS}) == len(MEMBERS) - 2  # other bins do not make another name


@every_distance
@laws
@given(p=summaries(), q=summaries())
def test_non_negative_and_never_missing(distance: Distance, p: Summary, q: Summary) -> None:
    assert distance(p, q) >= 0
    assert distance.resolution(p, q) >= 0


@every_distance
@laws
@given(p=summaries())
def test_zero_on_identical(distance: Distance, p: Summary) -> None:
    assert distance(p, p) == 0


@every_symmetric
@laws
@given(p=summaries(), q=summaries())
def test_symmetric_where_stated(distance: Distance, p: Summary, q: Summary) -> None:
    assert same(distance(p, q), distance(q, p))
    assert same(distance.resolution(p, q), distance.resolution(q, p))


@every_distance
def test_asymmetric_where_not_stated(distance: Distance) -> None:
    narrow, wide = np.linspace(-1, 1, 500), np.linspace(-1, 5, 500) ** 3
    p, q = Summary.of(narrow), Summary.of(wide)
    assert same(distance(p, q), distance(q, p)) == distance.symmetric


@every_metric
@laws
@given(p=summaries(), q=summaries(), r=summaries())
def test_triangle_inequality_where_metric(distance: Distance, p: Summary, q: Summary, r: Summary) -> None:
    assert distance(p, r) <= distance(p, q) + distance(q, r) + ROUNDING


@every_metric
@laws
@given(p=summaries(st.just(LEVELS[1])), q=summaries(st.just(LEVELS[1])))
def test_zero_only_on_equal_where_metric(distance: Distance, p: Summary, q: Summary) -> None:
    equal = all(np.array_equal(getattr(p, name), getattr(q, name)) for name in distance.needs)
    assert (distance(p, q) == 0) == equal


@every_distance
@laws
@given(p=summaries(WITH_CUTS), q=summaries(WITH_CUTS), shift=EIGHTHS)
def test_shifting_both_changes_nothing(distance: Distance, p: Summary, q: Summary, shift: float) -> None:
    assert same(distance(moved(p, shift), moved(q, shift)), distance(p, q))
    assert same(distance.resolution(moved(p, shift), moved(q, shift)), distance.resolution(p, q))


@every_distance
@laws
@given(p=summaries(WITH_CUTS), q=summaries(WITH_CUTS), factor=st.sampled_from([0.01, 0.5, 3.0, 1000.0]))
def test_scaling_both_follows_the_homogeneity(distance: Distance, p: Summary, q: Summary, factor: float) -> None:
    power = factor**distance.homogeneity
    assert same(distance(p.scaled(factor), q.scaled(factor)) / power, distance(p, q))
    assert same(distance.resolution(p.scaled(factor), q.scaled(factor)) / power, distance.resolution(p, q))


@every_distance
def test_batches_give_what_a_loop_gives(distance: Distance) -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(3, 1, 200)), np.maximum(generator.normal(size=(4, 200)), 0)
    batched = distance(Summary.of(first), Summary.of(second))
    errors = distance.resolution(Summary.of(first), Summary.of(second))
    assert batched.shape == errors.shape == (3, 4)
    for i, j in np.ndindex(3, 4):
        p, q = Summary.of(first[i, 0]), Summary.of(second[j])
        assert same(batched[i, j], distance(p, q))
        assert same(errors[i, j], distance.resolution(p, q))


@every_distance
def test_many_rows_are_worked_on_in_parts(distance: Distance) -> None:
    values = np.random.default_rng(0).normal(size=(2500, 30))
    p, q = Summary.of(values), Summary.of(values[0])
    batched, errors = distance(p, q), distance.resolution(p, q)
    for row in (0, 1023, 1024, 2499):
        assert same(batched[row], distance(Summary.of(values[row]), q))
        assert same(errors[row], distance.resolution(Summary.of(values[row]), q))


@every_distance
def test_no_rows(distance: Distance) -> None:
    nothing = Summary.of(np.zeros((0, 5)))
    assert distance(nothing, Summary.of(np.zeros(5))).shape == (0,)


@every_distance
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_measured_is_nan_and_nothing_else_is(distance: Distance, bad: float) -> None:
    values = np.random.default_rng(0).normal(size=(3, 100))
    whole = Summary.of(values)
    quantiles, moment = whole.quantiles.copy(), whole.mean.copy()
    quantiles[1, -1] = moment[1] = bad
    holey = replaced(whole, quantiles=quantiles, mean=moment, variance=moment**2)
    for result in (distance(holey, whole), distance(whole, holey), distance.resolution(holey, whole)):
        assert np.isnan(result).tolist() == [False, True, False]


@every_distance
def test_what_is_not_needed_may_be_missing(distance: Distance) -> None:
    whole = Summary.of(np.random.default_rng(0).normal(size=(2, 100)))
    kept = {name: getattr(whole, name) for name in distance.needs}
    if "quantiles" in distance.needs:
        kept["levels"] = whole.levels
    part = Summary(**kept)
    assert same(distance(part, Summary.of(np.zeros(9)))[1], distance(whole, Summary.of(np.zeros(9)))[1])


@every_distance
def test_lacking_what_is_needed_is_an_error(distance: Distance) -> None:
    whole = Summary.of([0.0, 1.0])
    if "quantiles" in distance.needs:
        lacking, text = Summary(mean=0.0, variance=1.0), "needs quantiles; q has mean, variance"
    else:
        lacking, text = Summary(whole.levels, whole.quantiles), "needs mean, variance; q has quantiles"
    for function in (distance, distance.resolution):
        with pytest.raises(ArgumentError, match=f"^{distance.name} {text}$"):
            function(whole, lacking)


@every_distance
def test_sampling_makes_the_resolution_coarser_and_an_unknown_error_makes_it_unknown(distance: Distance) -> None:
    values = np.random.default_rng(0).normal(size=500)
    p, q = (replaced(Summary.of(each), count=np.inf) for each in (values, values + 1))

    def with_error(size: float) -> Summary:
        return replaced(p, rank_error=size, mean_error=size, variance_error=size)

    errors = [float(distance.resolution(with_error(size), q)) for size in (0.0, 0.01, 0.02)]
    assert errors[0] < errors[1] < errors[2]
    assert np.isnan(distance.resolution(with_error(np.nan), q))
    assert np.isfinite(distance(with_error(np.nan), q))
