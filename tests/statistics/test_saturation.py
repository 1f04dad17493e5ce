import numpy as np
import pytest
import torch
from torch import nn

from bnprobe.errors import ArgumentError
from bnprobe.statistics import Saturation
from tests.statistics.harness import finished, observe, site_of


@pytest.mark.parametrize("layer", [nn.Sigmoid(), nn.Tanh(), nn.Softsign(), nn.Hardtanh(-0.5, 2), nn.Hardsigmoid()])
@pytest.mark.parametrize("flat", [0.1, 0.3])
def test_flat_is_where_the_slope_is_small(layer, flat):
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x).sum(), x)
    expected = (slope < flat * slope.max() * (1 - 1e-9)).double().mean()
    statistic = Saturation(flat=flat, exact=True)
    found = finished(statistic, statistic.update(None, observe(layer, "input", x.detach()[:, None])))
    assert found["saturated"][0] == pytest.approx(float(expected), abs=3 / 4001)
    assert "dead" not in found


def test_per_channel_and_without_what_is_not_finite():
    x = torch.tensor([[9.0, 0.0], [-9.0, 9.0], [0.0, float("nan")], [0.0, 0.0]])
    found = finished(Saturation(), Saturation().update(None, observe(nn.Sigmoid(), "input", x)))["saturated"]
    assert found[0] == pytest.approx(3 / 7)
    np.testing.assert_allclose(found[2], [1 / 2, 1 / 3])


@pytest.mark.parametrize("exact", [True, False])
def test_dead_units(exact):
    x = torch.relu(torch.randn(30, 4))
    x[:, 1] = 0
    statistic = Saturation(exact=exact)
    found = finished(statistic, statistic.update(None, observe(nn.ReLU(), "output", x)))
    assert found["dead"][:2] == (0.25, 0.0)
    assert found["dead"][2].tolist() == [0, 1, 0, 0]
    assert "saturated" not in found


def test_a_sampled_unit_is_dead_up_to_the_stated_share():
    """A unit active in one of 10,000 positions: if it is called dead, the error must allow for that."""
    x = torch.zeros(10_000, 4)
    x[0] = 1
    (value, error, _, _) = finished(Saturation(), Saturation().update(None, observe(nn.ReLU(), "output", x)))["dead"]
    assert value == 1
    assert 1e-4 < error < 0.01


def test_where_it_applies():
    assert Saturation().applies(site_of(nn.Tanh()), "input")
    assert not Saturation().applies(site_of(nn.Tanh()), "output")
    assert Saturation().applies(site_of(nn.ReLU()), "output")
    assert not Saturation().applies(site_of(nn.GELU()), "input")


@pytest.mark.parametrize("flat", [0, 1, -0.1])
def test_wrong_flat(flat):
    with pytest.raises(ArgumentError, match="flat must lie between 0 and 1"):
        Saturation(flat=flat)
