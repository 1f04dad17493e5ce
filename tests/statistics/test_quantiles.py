import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnprobe.errors import ArgumentError
from bnprobe.records import DEFAULT_LEVELS
from bnprobe.statistics import Quantiles
from bnprobe.statistics.quantiles import dkw_bound
from bnprobe.statistics.sample import Sampler
from tests.statistics.harness import finished, observe


def quantiles(statistic, x, sampler=None):
    return finished(statistic, statistic.update(None, observe(nn.ReLU(), "output", x, sampler)))["quantile"]


def test_the_default_levels_hold_those_of_the_papers_figure():
    assert len(DEFAULT_LEVELS) == 65
    assert {0.15, 0.5, 0.85, 0.0, 1.0} <= set(DEFAULT_LEVELS)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50))
def test_small_tensors_equal_numpy(values):
    _, error, _, grid = quantiles(Quantiles(), torch.tensor(values))
    np.testing.assert_allclose(grid, np.quantile(np.array(values, np.float64), DEFAULT_LEVELS), rtol=1e-12, atol=1e-9)
    assert error == 0


def test_exact_mode_equals_numpy_on_a_large_tensor():
    x = torch.randn(50, 8, 40)
    _, error, channels, grid = quantiles(Quantiles(exact=True, channels=(1, 7)), x)
    np.testing.assert_allclose(grid, np.quantile(x.double(), DEFAULT_LEVELS), rtol=1e-12)
    for row, channel in zip(channels.view(2, -1), (1, 7), strict=True):
        np.testing.assert_allclose(row, np.quantile(x[:, channel].double(), DEFAULT_LEVELS), rtol=1e-12)
    assert error == 0


def test_what_is_not_finite_is_left_out():
    x = torch.arange(100.0)
    x[::10] = float("nan")
    x[1::10] = -float("inf")
    _, _, _, grid = quantiles(Quantiles(levels=(0.0, 0.5, 1.0)), x)
    kept = x[x.isfinite()].double()
    np.testing.assert_allclose(grid, np.quantile(kept, (0, 0.5, 1)))
    assert quantiles(Quantiles(), torch.full((4,), float("nan")))[3].isnan().all()


def test_a_channel_that_the_layer_lacks_is_missing():
    _, _, channels, _ = quantiles(Quantiles(levels=(0.5,), channels=(0, 9)), torch.ones(4, 3))
    assert channels[0] == 1
    assert channels[1].isnan()


def test_the_sampled_quantiles_are_within_the_bound_as_often_as_it_says():
    """200 samples of 2048 of one tensor, all 65 levels at once: at most 5 % may leave the band (binomial, 99.9 %)."""
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    ordered, levels, missed = np.sort(x.numpy()), np.array(DEFAULT_LEVELS), 0
    for seed in range(200):
        _, error, _, grid = quantiles(Quantiles(), x, Sampler(seed=seed))
        assert error == pytest.approx(0.0300, abs=1e-4)
        rank = np.searchsorted(ordered, grid.numpy()) / len(ordered)
        missed += int((np.abs(rank - levels) > error).any())
    assert missed <= 21


@pytest.mark.parametrize(
    ("n", "bound"), [(60, 0.1753), (128, 0.1200), (1000, 0.0429), (2000, 0.0304), (10_000, 0.0136)]
)
def test_dkw(n, bound):
    assert dkw_bound(n) == pytest.approx(bound, abs=5e-5)


@pytest.mark.slow
def test_more_values_than_torch_quantile_takes():
    x = torch.arange(2**24 + 3, dtype=torch.float32)
    with pytest.raises(RuntimeError):
        torch.quantile(x, 0.5)
    _, _, _, grid = quantiles(Quantiles(levels=(0.25, 0.5), exact=True), x)
    np.testing.assert_allclose(grid, np.quantile(x.numpy(), (0.25, 0.5)), rtol=1e-7)


@pytest.mark.parametrize("levels", [(), (0.5, 0.5), (0.9, 0.1), (-0.1, 0.5), (0.5, 1.1)])
def test_wrong_levels(levels):
    with pytest.raises(ArgumentError, match=r"levels must rise within \[0, 1\]"):
        Quantiles(levels=levels)


def test_wrong_channels():
    with pytest.raises(ArgumentError, match="channels must not be negative"):
        Quantiles(channels=(-1,))
