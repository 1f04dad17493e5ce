import torch
from torch import nn

from bnprobe.diagnose import diagnose
from bnprobe.measures.evidence import Given, Patient
from bnprobe.measures.evidence.housekeeping import fed_by, measure
from bnprobe.measures.untouched import untouched


def examined(model, look, **given):
    with untouched(model) as origin:
        return look(Patient(model, [torch.randn(8, 3, 6, 6)], origin, Given(**given)))


def test_what_feeds_a_norm_directly():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))
    found = examined(model, fed_by)
    assert {name: source.name for name, source in found.items()} == {"1": "0"}


def test_numbers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
    model[1].weight.data[0] = 1e-3
    model[3].running_var[:2] = 1e-5
    optimizer = torch.optim.SGD(
        [{"params": model[1].parameters(), "weight_decay": 0.1}, {"params": model[3].parameters()}]
    )
    found = {(one.layer, one.statistic): one.value for one in examined(model, measure, optimizer=optimizer)}
    assert found == {
        ("1", "bias_before_norm"): 1, ("3", "bias_before_norm"): 0, ("1", "affine_decay"): 0.1,
        ("1", "tiny_variance_share"): 0, ("3", "tiny_variance_share"): 0.5,
        ("1", "small_gain_share"): 0.25, ("3", "small_gain_share"): 0,
    }  # fmt: skip


def test_diagnosis_is_one_line_of_information():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].num_batches_tracked.fill_(9)
    found = diagnose(model, [torch.randn(8, 3, 6, 6) for _ in range(2)], select=["N31"])
    assert found.ok
    assert [one.summary for one in found.findings] == [
        "of 1 norm layers: 1 with a bias before them that they take out again"
    ]
