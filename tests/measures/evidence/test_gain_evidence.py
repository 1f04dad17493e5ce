import numpy as np
import pytest
import torch
from torch import nn

from bnprobe.diagnose import diagnose
from bnprobe.measures.evidence import Given, Patient
from bnprobe.measures.evidence.gain import measure
from bnprobe.measures.untouched import untouched
from bnprobe.rules import Severity


def facts_of(model, batches, given=Given()):  # noqa: B008 - it is frozen
    with untouched(model) as origin:
        return {fact.statistic: fact for fact in measure(Patient(model, batches, origin, given))}


def test_gain_and_ratio_are_those_of_the_formula():
    norm, batches = nn.BatchNorm1d(4), [torch.randn(32, 4) for _ in range(4)]
    norm.running_var.copy_(torch.tensor([1.0, 4.0, 0.01, 1.0]))
    nn.init.constant_(norm.weight, 2.0)
    found = facts_of(norm, batches)
    variance = torch.cat(batches).double().var(0, correction=0).numpy()
    stored = norm.running_var.double().numpy() + 1e-5
    np.testing.assert_allclose(found["gain"].channels, 2 / np.sqrt(stored))
    np.testing.assert_allclose(found["variance_ratio"].channels, variance / stored, rtol=1e-5)
    assert found["variance_ratio"].value == pytest.approx(variance[2] / stored[2], rel=1e-5)
    assert found["variance_ratio"].low < found["variance_ratio"].value < found["variance_ratio"].high


def test_dead_channels_have_no_variance_here():
    x = torch.randn(32, 4) * torch.tensor([1.0, 0.0, 1.0, 1.0]) + 5
    assert facts_of(nn.BatchNorm1d(4).eval(), [x, x])["dead_share"].value == 0.25
    off = nn.BatchNorm1d(4).eval()
    nn.init.zeros_(off.weight)
    assert facts_of(off, [x, x])["dead_share"].value == 0


def test_spread_of_gains_over_samples():
    x = torch.randn(64, 4, 16)
    x[::8] *= 1e-2
    found = facts_of(nn.GroupNorm(2, 4), [x])
    variances = x.double().view(64, 2, 32).var(2, correction=0) + 1e-5
    gains = variances.rsqrt()
    assert found["sample_gain_spread"].value == pytest.approx(float(gains.max() / gains.median()))
    assert found["amplified_samples"].value == 8


def test_amplified_samples_are_compared_by_their_loss():
    torch.manual_seed(1)
    x, y = torch.randn(64, 4, 16), torch.zeros(64, dtype=torch.long)
    x[::4] *= 1e-2
    model = nn.Sequential(nn.GroupNorm(1, 4), nn.Flatten(), nn.Linear(64, 2))
    given = Given(loss=lambda model, batch: model(batch[0]).square().mean() + 3 * float(batch[0].std() < 0.1))
    found = facts_of(model, [(x, y)], given)
    assert found["amplified_loss"].value > found["ordinary_loss"].value + 2
    assert found["amplified_loss"].p_value < 1e-4


def test_diagnosis_of_a_channel_that_was_constant_in_training():
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))
    x, y = torch.randn(512, 8), torch.randint(3, (512,))
    x[:, 0] = 1.0
    for part in x.split(32) * 8:
        model(part)
    model.eval()
    model[0].num_batches_tracked.fill_(1000)
    x[:, 0] += torch.randn(512)
    batches = list(zip(x.split(32), y.split(32), strict=True))
    (found,) = (one for one in diagnose(model, batches, select=["N22"]).findings if one.code == "N22")
    assert found.severity >= Severity.WARNING
    assert "1 of 8 channels are multiplied by up to" in found.summary
    x[:, 0] = 1.0
    assert diagnose(model, batches, select=["N22"]).ok


def test_a_gain_of_zero_is_no_explosion():
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))
    nn.init.zeros_(model[0].weight)
    model[0].num_batches_tracked.fill_(10)
    assert not diagnose(model.eval(), [100 * torch.randn(32, 8) for _ in range(4)], select=["N22"]).findings
