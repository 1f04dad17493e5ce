import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bnprobe.distances import Summary
from bnprobe.distances.shares import cuts_at, fine_shares, shares_of

# A distance silences the divisions by widths of 0 whose results it does not use.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

TENTHS = np.arange(11) / 10
WHOLE = hnp.arrays(float, st.integers(1, 200), elements=st.integers(0, 5).map(float))


def summary_of(values: np.ndarray, levels: np.ndarray) -> Summary:
    return Summary(levels, np.quantile(values, levels)[None])


@settings(max_examples=100, deadline=None)
@given(x=WHOLE, y=WHOLE)
def test_shares_are_those_of_the_values_up_to_the_cells_at_both_ends(x: np.ndarray, y: np.ndarray) -> None:
    levels = np.linspace(0, 1, 41)
    p, q = summary_of(x, levels), summary_of(y, levels)
    cuts = cuts_at(p, TENTHS)
    # By counting: which of the cuts each value has passed.
    points, before = cuts.points[0], np.broadcast_to(cuts.before, cuts.there.shape)[0]
    order = np.lexsort([~before, points])
    order = order[cuts.there[0][order]]
    passed = np.array([sum((v >= points[k]) if before[k] else (v > points[k]) for k in order) for v in y])
    counted = np.bincount(passed, minlength=order.size + 1) / y.size
    shares = fine_shares(q, cuts)[0][-counted.size :]
    assert np.abs(shares - counted).max() <= 2 * (1 / 40 + 1 / y.size) + 1e-9
    assert shares.sum() == pytest.approx(1)


def test_an_atom_that_ends_in_a_cell_is_made_whole_by_the_density_beyond() -> None:
    # 58 % zeros, then uniform on (0, 1]: the last level at 0 is 0.55, the next is 0.6.
    levels = np.linspace(0, 1, 21)
    values = np.concatenate([np.zeros(58_000), np.arange(1, 42_001) / 42_000])
    for flip in (1, -1):
        q = summary_of(flip * values, levels)
        shares = fine_shares(q, cuts_at(summary_of(np.zeros(9), levels), TENTHS))
        assert shares.max() == pytest.approx(0.58, abs=1e-3)


def test_a_cell_between_two_atoms_is_shared() -> None:
    levels = np.linspace(0, 1, 21)
    q = summary_of(np.repeat([0.0, 1.0], [33, 67]), levels)
    shares = fine_shares(q, cuts_at(q, TENTHS))[0]
    assert shares[shares > 0].tolist() == pytest.approx([0.325, 0.675])
    assert shares_of(q, cuts_at(q, TENTHS)).change.max() == pytest.approx(0.025)


def test_joined_bins_have_the_sum_of_both() -> None:
    q = summary_of(np.random.default_rng(0).normal(size=500), np.linspace(0, 1, 41))
    shares = shares_of(q, cuts_at(q, TENTHS))
    np.testing.assert_allclose(shares.fine[shares.fine > 0], 0.1, atol=1e-12)
    np.testing.assert_allclose(shares.coarse[shares.coarse > 0], 0.2, atol=1e-12)
