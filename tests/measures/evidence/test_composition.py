"""Effective values and grouping of batches, against closed forms and naive twins."""

import numpy as np
import pytest

from bnprobe.contrasts import chance
from bnprobe.measures.evidence.composition import Units, effective_values, grouping


def naive_effective(batches):
    """Equal sizes: C / sum of (variance of batch means / total variance)."""
    means = np.array([one.mean(0) for one in batches])
    return means.shape[1] / (means.var(0, ddof=1) / np.concatenate(batches).var(0)).sum()


def effective(batches):
    means, variances = np.array([b.mean(0) for b in batches]), np.array([b.var(0) for b in batches])
    return effective_values(means, np.array([float(len(b)) for b in batches]), variances, seed=0)


def test_equals_its_definition():
    draw = np.random.default_rng(0)
    batches = [draw.normal(loc=k % 3, size=(10, 4)) for k in range(12)]
    assert effective(batches)[0] == pytest.approx(naive_effective(batches), rel=1e-12)


@pytest.mark.parametrize("size", [4, 32])
def test_independent_values_count_as_what_they_are(size):
    draw = np.random.default_rng(1)
    value, low, high = effective([draw.normal(size=(size, 32)) for _ in range(200)])
    assert value == pytest.approx(size, rel=0.1)
    assert low < size < high


def test_batches_of_different_size_count_as_their_mean():
    draw = np.random.default_rng(2)
    sizes = draw.integers(2, 60, 400)
    assert effective([draw.normal(size=(n, 16)) for n in sizes])[0] == pytest.approx(sizes.mean(), rel=0.1)


def test_values_that_are_equal_within_a_batch_count_once():
    draw = np.random.default_rng(3)
    value, _, _ = effective([np.repeat(draw.normal(size=(1, 8)), 50, axis=0) for _ in range(100)])
    assert value == pytest.approx(1, rel=0.02)


def units_of(rows, sizes, weights=None):
    rows = rows - rows.mean(0)
    return Units(rows, np.ones(len(rows)) if weights is None else weights, np.array(sizes))


def test_ratio_of_random_batches_is_one_and_of_sorted_ones_their_size():
    draw = np.random.default_rng(4)
    rows = draw.normal(size=(320, 8))
    ratio, p_value, limit = grouping(units_of(rows, [32] * 10), seed=0)
    assert ratio == pytest.approx(1, abs=0.4)
    assert p_value > 0.01
    assert limit > 1
    same = np.repeat(draw.normal(size=(10, 8)), 32, axis=0)
    ratio, p_value, _ = grouping(units_of(same, [32] * 10), seed=0)
    assert ratio == pytest.approx(319 / 9, rel=0.05)
    assert p_value == pytest.approx(1 / 2000)


def test_p_values_of_correlated_channels_are_uniform():
    """The same channel thirty times is one channel."""
    draw = np.random.default_rng(5)
    small = 0
    for seed in range(200):
        rows = np.repeat(draw.normal(size=(64, 1)), 30, axis=1)
        found = grouping(units_of(rows, [8] * 8), seed)
        small += found is not None and found[1] <= 0.1
    assert 8 <= small <= 34  # 20 expected; outside of this in one of ten thousand


def test_batches_more_alike_than_random_ones_are_not_suspicious():
    rows = np.tile(np.arange(8.0)[:, None], (10, 1))
    ratio, p_value, _ = grouping(units_of(rows, [8] * 10), seed=0)
    assert ratio < 0.01
    assert p_value > 0.9


def test_chance_leaves_global_streams_alone_and_repeats_itself():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    results = [chance(0.3, lambda draw: draw.random(), 7) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0].p_value == pytest.approx(0.7, abs=0.15)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
