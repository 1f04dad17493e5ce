import numpy as np
import pytest
import torch
from torch import nn

from bnprobe.statistics import RunningGap
from tests.statistics.harness import finished, observe


def gaps(layer, *batches):
    statistic, state = RunningGap(), None
    for x in batches:
        state = statistic.update(state, observe(layer, "input", x))
    return finished(statistic, state)


def test_gap_from_its_definition():
    layer, x = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5) * 2 + 1
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    found = gaps(layer, x)
    values, n = x.double().transpose(0, 1).flatten(1).numpy(), 100
    mean_gap = (values.mean(1) - layer.running_mean.numpy()) / np.sqrt(values.var(1) + 1e-5)
    variance_gap = np.log((values.var(1) + 1e-5) / (layer.running_var.double().numpy() * (n - 1) / n + 1e-5))
    np.testing.assert_allclose(found["mean_gap"][2], mean_gap, rtol=1e-5)
    np.testing.assert_allclose(found["variance_gap"][2], variance_gap, rtol=1e-5)
    assert found["mean_gap"][0] == pytest.approx(np.abs(mean_gap).mean(), rel=1e-5)


def test_no_gap_once_the_buffers_are_the_batchs():
    """Momentum 1 puts the batch's own statistics into the buffers, the variance unbiased: the gap must see through."""
    layer, x = nn.BatchNorm1d(3, momentum=1.0), torch.randn(5, 3)
    layer(x)
    found = gaps(layer, x)
    assert found["mean_gap"][0] == pytest.approx(0, abs=1e-6)
    assert found["variance_gap"][0] == pytest.approx(0, abs=1e-5)


def test_several_batches_are_averaged():
    layer, (x, y) = nn.BatchNorm1d(3), torch.randn(2, 8, 3)
    both, one, other = gaps(layer, x, y), gaps(layer, x), gaps(layer, y)
    torch.testing.assert_close(both["mean_gap"][2], (one["mean_gap"][2] + other["mean_gap"][2]) / 2)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3, track_running_stats=False)])
def test_without_buffers_there_is_nothing(layer):
    assert RunningGap().update(None, observe(layer, "input", torch.randn(4, 3))) is None
