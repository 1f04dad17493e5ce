import pytest
import torch
from torch import nn

from bnprobe.diagnose import diagnose
from bnprobe.errors import NotMeasuredError
from bnprobe.measures.evidence import Patient
from bnprobe.measures.evidence.dropout import measure
from bnprobe.measures.untouched import untouched


def facts_of(model, batches):
    with untouched(model) as origin:
        return {fact.statistic: fact for fact in measure(Patient(model, batches, origin))}


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_law_of_li_for_dropout_right_before(p):
    batches = [torch.randn(256, 4) + 2 for _ in range(16)]
    ratio = facts_of(nn.Sequential(nn.Dropout(p), nn.BatchNorm1d(4)), batches)["dropout_ratio"]
    expected = 1 + p / (1 - p) * (1 + 4)
    assert ratio.low - 0.1 * expected < expected < ratio.high + 0.1 * expected
    assert ratio.p_value < 1e-6


def test_dropout_behind_leaves_it():
    found = facts_of(nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)), [torch.randn(64, 4) for _ in range(4)])
    assert found["dropout_ratio"].value == 1
    assert found["dropout_ratio"].p_value == 1


def test_the_stored_variance_tells_where_it_came_from():
    model, batches = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)), [torch.randn(64, 4) for _ in range(8)]
    model[1].running_var.fill_(2.0)
    assert facts_of(model, batches)["stored_with_dropout"].value < 0
    model[1].running_var.fill_(1.0)
    assert facts_of(model, batches)["stored_with_dropout"].value > 0


def test_without_dropout_there_is_nothing_to_toggle():
    with pytest.raises(NotMeasuredError, match="no dropout module"):
        facts_of(nn.Sequential(nn.Dropout(0.0), nn.BatchNorm1d(4)), [torch.randn(8, 4)])


def test_diagnosis():
    torch.manual_seed(0)
    centres = 3 * torch.randn(4, 16)
    y = torch.randint(4, (512,))
    x = centres[y] + torch.randn(512, 16)
    first = nn.Dropout(0.6), nn.BatchNorm1d(16), nn.Linear(16, 64), nn.ReLU()
    model = nn.Sequential(*first, nn.Dropout(0.6), nn.BatchNorm1d(64), nn.Linear(64, 4))
    for part in x.split(32) * 6:
        model(part)
    batches = list(zip(x.split(32), y.split(32), strict=True))
    (found,) = diagnose(model, batches, select=["N28"]).findings
    assert "times as large with dropout as without" in found.summary
    for one in (model[0], model[4]):
        one.p = 0.02
    assert not diagnose(model, batches, select=["N28"]).findings
