"""The laws of :class:`bnprobe.statistics.Statistic`, for every exported statistic."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bnprobe import statistics
from bnprobe.statistics.sample import Sampler
from tests.statistics.harness import EXACT, SAMPLED, assert_same, finished, observe, site_of, state_of

VALUES = st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, float("nan"), float("inf"), -float("inf"), 1e-30])


@st.composite
def tensors(draw, least=1):
    samples, positions = draw(st.integers(least, 6)), 2
    return torch.from_numpy(draw(hnp.arrays("float32", (samples, 3, positions), elements=VALUES)))


def test_every_exported_statistic_is_under_the_laws():
    members = {
        name
        for name in statistics.__all__
        if issubclass(getattr(statistics, name), statistics.Statistic) and name != "Statistic"
    }
    assert members == {name.split()[0] for name in (*EXACT, *SAMPLED)}


@pytest.mark.parametrize("name", EXACT)
@given(x=tensors(), y=tensors())
def test_seen_in_pieces_is_seen_whole(name, x, y):
    case = EXACT[name]
    pieces = case[0].merge(state_of(case, x), state_of(case, y))
    assert_same(finished(case[0], pieces), finished(case[0], state_of(case, torch.cat([x, y]))), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", EXACT)
@given(x=tensors(), y=tensors(), z=tensors())
def test_merging_is_associative_and_commutative(name, x, y, z):
    case = EXACT[name]
    merge = case[0].merge
    a, b, c = (state_of(case, one) for one in (x, y, z))
    left, right = finished(case[0], merge(merge(a, b), c)), finished(case[0], merge(a, merge(c, b)))
    assert_same(left, right, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", {**EXACT, **{f"sampled {k}": v for k, v in SAMPLED.items()}})
@given(x=tensors())
def test_nothing_seen_is_neutral(name, x):
    case = EXACT.get(name) or SAMPLED[name.removeprefix("sampled ")]
    state = state_of(case, x)
    if state is not None:
        assert_same(finished(case[0], case[0].merge(case[0].start(), state)), finished(case[0], state))
        assert_same(finished(case[0], case[0].merge(state, case[0].start())), finished(case[0], state))


@pytest.mark.parametrize("name", EXACT)
@given(x=tensors(), seed=st.integers(0, 99))
def test_samples_may_be_permuted(name, x, seed):
    case, order = EXACT[name], torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    assert_same(finished(case[0], state_of(case, x)), finished(case[0], state_of(case, x[order])), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", EXACT)
@given(x=tensors(), other=st.floats(-100, 100, width=32))
def test_channels_do_not_influence_each_other(name, x, other):
    case, changed = EXACT[name], x.clone()
    changed[:, 1] = other
    before, after = finished(case[0], state_of(case, x)), finished(case[0], state_of(case, changed))
    for statistic in before:
        was, now = before[statistic][2], after[statistic][2]
        if was is not None:
            was, now = (one.view(2, -1) if name == "Quantiles" else one[[0, 2]] for one in (was, now))
            torch.testing.assert_close(was, now, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("name", {**EXACT, **{f"sampled {k}": v for k, v in SAMPLED.items()}})
@given(x=tensors())
def test_updating_changes_neither_tensor_nor_state(name, x):
    case = EXACT.get(name) or SAMPLED[name.removeprefix("sampled ")]
    statistic, layer, place = case
    state, copy = state_of(case, x), x.clone()
    if state is None:
        return
    before = finished(statistic, state)
    statistic.update(state, observe(layer, place, x + 1))
    torch.testing.assert_close(x, copy, equal_nan=True, rtol=0, atol=0)
    assert_same(before, finished(statistic, state), rtol=0, atol=0)


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_results_are_within_their_errors(name):
    """Twenty tensors of 40,000 values each, in three pieces: what is off by more than four errors is off."""
    case = SAMPLED[name]
    statistic, layer, place = case
    if not hasattr(statistic, "exact"):
        pytest.skip("is never sampled")
    exact = type(statistic)(exact=True)
    assert exact.applies(site_of(layer), place)
    for seed in range(20):
        x = torch.randn(40, 4, 250, generator=torch.Generator().manual_seed(seed)).exp()
        sampler, state = Sampler(seed=seed), statistic.start()
        for piece in x.split([5, 20, 15]):
            state = statistic.merge(state, state_of(case, piece, sampler))
        truth = finished(exact, exact.update(exact.start(), observe(layer, place, x)))
        for quantity, (value, error, _, _) in finished(statistic, state).items():
            if quantity in ("mean", "variance", "zeros", "nonfinite", "saturated"):
                assert abs(value - truth[quantity][0]) <= 4 * error, (quantity, seed)
            if quantity == "dead":
                assert value == truth[quantity][0]


@pytest.mark.parametrize("name", {**EXACT, **{f"sampled {k}": v for k, v in SAMPLED.items()}})
@given(x=tensors(), y=tensors())
def test_measuring_many_at_once_is_measuring_each(name, x, y):
    statistic, layer, place = EXACT.get(name) or SAMPLED[name.removeprefix("sampled ")]
    seen = [observe(layer, place, one) for one in (x, y, x[:1])]
    states = [statistic.update(statistic.start(), one) for one in seen]
    together = statistic.measure(seen)
    for row, state in enumerate(states):
        if state is None:  # a batch of one value has no gap: its row is empty
            assert all(np.isnan(measured.value[row]) for measured in together.values())
            continue
        for quantity, measured in statistic.finish([state]).items():
            mine = together[quantity]
            for one, other in (
                (mine.value[row], measured.value[0]),
                (0.0 if mine.error is None else mine.error[row], 0.0 if measured.error is None else measured.error[0]),
                (_of(mine.grid, row), _of(measured.grid, 0)),
                (_of(mine.channels, row), _of(measured.channels, 0)),
                (_of(mine.channel_errors, row), _of(measured.channel_errors, 0)),
            ):
                if one is None or other is None:
                    assert one is other
                else:
                    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-12)


def _of(lists, row):
    return None if lists is None else lists[row]
