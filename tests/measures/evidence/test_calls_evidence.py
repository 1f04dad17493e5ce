"""Calls of one layer, and batches that take turns."""

import numpy as np
import pytest
import torch
from torch import nn

from bnprobe.contrasts import contrast, divergence, periodicity
from bnprobe.measures.evidence.calls import measure
from bnprobe.measures.evidence.patient import Given, Patient
from bnprobe.measures.untouched import untouched


def test_divergence_is_that_of_torch():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=5), draw.normal(size=5)
    v, w = draw.uniform(0.5, 2, 5), draw.uniform(0.5, 2, 5)
    normal = [torch.distributions.Normal(torch.tensor(m), torch.tensor(s).sqrt()) for m, s in ((a, v), (b, w))]
    assert divergence(a, v, b, w) == pytest.approx(float(torch.distributions.kl_divergence(*normal).mean()))


def test_contrast_tells_calls_apart_only_where_they_differ():
    draw = np.random.default_rng(1)
    same = draw.normal(size=(16, 2, 4)) + draw.normal(size=(16, 1, 4))
    assert contrast(same, 0)[2] > 0.01
    observed, by_chance, p_value = contrast(same + np.array([0.0, 3.0])[None, :, None], 0)
    assert p_value < 0.001
    assert observed - by_chance > 4  # 2 calls, 4 channels, each 1.5 from the centre: 18, less what chance makes


@pytest.mark.parametrize("period", [2, 3, 4])
def test_period_of_batches_that_take_turns(period):
    draw = np.random.default_rng(2)
    kinds = 3.0 * draw.normal(size=(period, 6))
    found = periodicity(kinds[np.arange(24) % period] + 0.1 * draw.normal(size=(24, 6)), 0)
    assert found[0] == period
    assert found[1] > 0.8
    assert found[2] < 0.001


def test_drift_and_noise_are_no_turns():
    draw = np.random.default_rng(3)
    drifting = np.linspace(0, 5, 24)[:, None] + 0.1 * draw.normal(size=(24, 6))
    assert periodicity(drifting, 0)[1] <= 0
    assert periodicity(draw.normal(size=(24, 6)), 0)[2] > 0.01
    assert periodicity(draw.normal(size=(5, 6)), 0) is None


def facts_of(model, batches, **given):
    with untouched(model) as origin:
        patient = Patient(model, batches, origin, Given(**given))
        return {(fact.statistic, fact.layer, fact.call): fact for fact in measure(patient)}


class Levels(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.bn, self.scale = nn.BatchNorm1d(4), scale

    def forward(self, x):
        return self.bn(x) + self.bn(self.scale * torch.roll(x, 1, 0))


@pytest.mark.parametrize(("scale", "sick"), [(1.0, False), (4.0, True)])
def test_calls_in_a_forward(scale, sick):
    draw = torch.Generator().manual_seed(0)
    found = facts_of(Levels(scale).train(), [torch.randn(64, 4, generator=draw) for _ in range(12)])
    assert found["calls_per_pass", "bn", 0].value == 2
    spread = found["call_contrast_spread", "bn", 0]
    assert (spread.p_value < 0.01) == sick
    if sick:
        assert spread.value == pytest.approx(2 * np.log(4), rel=0.15)
        # Variances 1 and 16 and their mixture 8.5.
        expected = 0.5 * (1 / 8.5 - 1 - np.log(1 / 8.5))
        assert found["call_divergence", "bn", 0].value == pytest.approx(expected, rel=0.1)


def test_calls_of_a_loss_that_calls_the_model_twice():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).train()
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(32, 4, generator=draw) for _ in range(10)]

    def loss(model, x):
        return model(x).sigmoid().mean() + model(3 * x + 2).square().mean()

    found = facts_of(model, batches, loss=loss)
    assert found["model_calls", "", 0].value == 2
    assert found["call_contrast_mean", "1", 0].p_value < 0.01
    assert ("calls_excess_pooled_over_batch", "", 0) in found
