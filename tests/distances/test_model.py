import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from bnprobe.distances import Summary
from bnprobe.distances.model import binomial_width, on_levels, refine, sample_size

# A distance silences the divisions by widths of 0 whose results it does not use.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

WHOLE = st.lists(st.integers(0, 6), min_size=5, max_size=5).map(lambda values: np.sort(np.array(values, dtype=float)))
LEVELS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])


def limits(levels: np.ndarray, quantiles: np.ndarray, x: float) -> tuple[float, float]:
    """The distribution function's limits from the left and from the right, case by case."""
    equal = levels[quantiles == x]
    if equal.size:
        return equal[0], equal[-1]
    between = np.interp(x, quantiles, levels) if quantiles[0] < x < quantiles[-1] else float(x > quantiles[-1])
    return between, between


@given(p=WHOLE, q=WHOLE)
def test_refine_has_the_limits_at_every_knot(p: np.ndarray, q: np.ndarray) -> None:
    both = refine(Summary(LEVELS, p[None]), Summary(LEVELS, q[None]))
    knots = both.knots[0]
    np.testing.assert_array_equal(knots, np.sort(np.concatenate([p, q])))
    for at, x in enumerate(knots):
        side = 1 if at and knots[at - 1] == x else 0
        expected_p, expected_q = (limits(LEVELS, each, x)[side] for each in (p, q))
        assert (both.p[0, at], both.q[0, at]) == pytest.approx((expected_p, expected_q))


def test_on_levels_is_a_straight_line_and_keeps_ties() -> None:
    summary = Summary(LEVELS, np.array([[0.0, 0.1, 0.1, 0.7, 1.1]]))
    np.testing.assert_allclose(on_levels(summary, np.array([0.0, 0.125, 1.0])), [[0.0, 0.05, 1.1]])
    tied = Summary(np.array([0.0, 0.1, 0.4, 1.0]), np.array([[0.0, 0.3, 0.3, 1.0]]))
    assert (on_levels(tied, np.linspace(0.1, 0.4, 1000)) == 0.3).all()
    assert on_levels(summary, LEVELS) is summary.quantiles


def test_sample_size_undoes_the_bound() -> None:
    assert sample_size(np.array(np.sqrt(np.log(2 / 0.05) / (2 * 2048)))) == pytest.approx(2048)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_binomial_width_is_the_mean_over_the_cell(power: float) -> None:
    means = [quad(lambda u: (u * (1 - u)) ** power, a, b)[0] / (b - a) for a, b in itertools.pairwise(LEVELS)]
    np.testing.assert_allclose(binomial_width(LEVELS, power), means, rtol=1e-6)
