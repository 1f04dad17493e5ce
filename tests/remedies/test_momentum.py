"""k updates with the new momentum forget as much as one with the old."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnprobe.errors import ArgumentError
from bnprobe.remedies import momentum_for


@given(st.integers(1, 50), st.floats(1e-6, 0.999))
def test_the_past_weighs_as_much(k, momentum):
    assert (1 - momentum_for(k, momentum)) ** k == pytest.approx(1 - momentum, rel=1e-9)


def test_of_a_layer():
    once, four = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3, momentum=momentum_for(4)).double()
    x = torch.randn(20, 3).double()
    once(x)
    for _ in range(4):
        four(x)
    torch.testing.assert_close(once.running_var, four.running_var)


def test_ends():
    assert momentum_for(1, 0.1) == pytest.approx(0.1, rel=1e-15)
    assert momentum_for(3, 1) == 1
    assert momentum_for(3, 0) == 0
    assert momentum_for(0.5, 0.1) == pytest.approx(0.19)
    assert momentum_for(1e6, 1e-12) == pytest.approx(1e-18, rel=1e-9)


@pytest.mark.parametrize("k", [0, -1, float("nan"), float("inf")])
def test_updates(k):
    with pytest.raises(ArgumentError, match="updates_per_step must be a positive number"):
        momentum_for(k)


@pytest.mark.parametrize("momentum", [None, -0.1, 1.1, float("nan")])
def test_momentum(momentum):
    with pytest.raises(ArgumentError, match=r"momentum must be from 0 to 1 \(None averages"):
        momentum_for(2, momentum)
