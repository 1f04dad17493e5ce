import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bnprobe.diagnose import diagnose
from bnprobe.errors import NotMeasuredError
from bnprobe.measures.evidence import Given, Patient
from bnprobe.measures.evidence.horizon import measure
from bnprobe.measures.untouched import untouched


def facts_of(model, **given):
    with untouched(model) as origin:
        return {
            one.statistic: one.value for one in measure(Patient(model, [torch.randn(4, 2)], origin, Given(**given)))
        }


def test_share_of_the_updates():
    assert facts_of(nn.Linear(2, 2), ema_decay=0.9, ema_updates=2)["horizon_reached"] == pytest.approx(0.19)


def test_an_averaged_model_counts_itself():
    model = AveragedModel(nn.Linear(2, 2))
    for _ in range(3):
        model.update_parameters(nn.Linear(2, 2))
    assert facts_of(model, ema_decay=0.5)["ema_updates"] == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs ema_decay= and ema_updates="), ({"ema_decay": 0.9}, "needs ema_updates="),
        ({"ema_decay": 1.9, "ema_updates": 3}, "must lie in 0 ... 1"),
    ],
)  # fmt: skip
def test_what_is_missing(given, message):
    with pytest.raises(NotMeasuredError, match=message):
        facts_of(nn.Linear(2, 2), **given)


def test_diagnosis():
    model, batches = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), [torch.randn(8, 2) for _ in range(2)]
    found = diagnose(model, batches, ema_decay=0.999, ema_updates=100, select=["N30"])
    assert [one.code for one in found.findings] == ["N30"]
    assert diagnose(model, batches, ema_decay=0.99, ema_updates=1000, select=["N30"]).ok
    assert "ema_decay=" in diagnose(model, batches, select=["N30"]).not_run[0].why
