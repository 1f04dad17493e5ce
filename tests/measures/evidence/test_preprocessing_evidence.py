import copy

import numpy as np
import pytest
import torch
from torch import nn

from bnprobe.diagnose import diagnose
from bnprobe.errors import NotMeasuredError
from bnprobe.measures.evidence import Patient
from bnprobe.measures.evidence.preprocessing import _Answer, explain, measure
from bnprobe.measures.untouched import untouched
from bnprobe.rules import Severity

GAIN = torch.tensor([0.3, 0.5, 0.4]).view(3, 1, 1)
OFFSET = torch.tensor([1.0, 0.6, 0.8]).view(3, 1, 1)


def pictures(count=512):
    """Four classes, told apart by a colour each, of unequal contrast."""
    y = torch.randint(4, (count,))
    colours = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0], [-1.0, -1.0, 0]])
    return colours[y][:, :, None, None] + torch.randn(count, 3, 8, 8) * torch.tensor([0.5, 1.0, 1.5]).view(3, 1, 1), y


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, bias=False),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        x, y = pictures(32)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for _ in range(60):  # statistics of the weights as they are now
        model(pictures(32)[0])
    return model.eval()


def loader(change=lambda x: x):
    x, y = pictures()
    return [(change(a), b) for a, b in zip(x.split(32), y.split(32), strict=True)]


def test_explain_finds_a_map_that_it_was_given():
    torch.manual_seed(0)
    answer = _Answer(np.random.default_rng(0).normal(size=(16, 3)), np.empty(0))
    parts = np.random.default_rng(1).normal(size=(3, 16, 400))
    covariances = np.einsum("iom,jom->oij", parts, parts) / 400
    answer = _Answer(answer.to_constants, covariances)
    gain, offset = np.array([0.3, 2.0, 1.1]), np.array([1.0, -2.0, 0.5])
    pooled = np.zeros(16), np.einsum("oij->o", covariances)
    stored = answer.to_constants @ offset, np.einsum("oij,i,j->o", covariances, gain, gain)
    found = explain(answer, stored, pooled)
    np.testing.assert_allclose(found.gain, gain, rtol=1e-6)
    np.testing.assert_allclose(found.offset, offset, rtol=1e-6)
    assert found.share == pytest.approx(1)


def test_gain_and_offset_of_pictures(trained):
    with untouched(trained) as origin:
        found = {one.statistic: one for one in measure(Patient(trained, loader(lambda x: x * GAIN + OFFSET), origin))}
    # Zeros around the pictures make variance out of an offset, which is put down to the gain.
    np.testing.assert_allclose(found["preprocessing_gain"].channels, 1 / GAIN.flatten().numpy(), rtol=0.3)
    assert found["preprocessing_share"].value > 0.95
    assert found["preprocessing_share"].p_value < 0.01
    assert found["gap_undone"].value < 0.25 * found["gap_given"].value
    assert found["excess_stored_over_undone"].low > 0.2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x * GAIN + OFFSET, "a gain of"), (lambda x: 255 * (x * GAIN + OFFSET), "a gain of"),
        (lambda x: x.flip(1), "in reverse order"), (lambda x: x, None), (lambda x: 0.95 * x + 0.02, None),
    ],
    ids=["not normalized", "bytes", "colours", "as trained", "nearly so"],
)  # fmt: skip
def test_diagnosis(trained, change, said):
    found = diagnose(trained, loader(change), select=["N19"])
    assert [one.severity for one in found.findings] == ([] if said is None else [Severity.WARNING])
    assert said is None or said in found.findings[0].summary


def test_stale_statistics_are_no_preprocessing(trained):
    model = copy.deepcopy(trained)
    for one in (model[1], model[4]):
        one.running_mean += 2 * torch.randn(16)
        one.running_var *= torch.rand(16) * 3 + 0.2
    assert not diagnose(model, loader(), select=["N19"]).findings
    for one in (model[1], model[4]):
        one.reset_running_stats()
    model[1].num_batches_tracked.fill_(9)
    assert not diagnose(model, loader(), select=["N19"]).findings


def test_the_first_layer_has_to_be_given_the_batch():
    model = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
    with untouched(model) as origin, pytest.raises(NotMeasuredError, match="is given the batch as it is"):
        measure(Patient(model, loader(), origin))


def test_too_few_channels():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with untouched(model) as origin, pytest.raises(NotMeasuredError, match="4 channels cannot tell"):
        measure(Patient(model, loader(), origin))
