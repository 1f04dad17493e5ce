"""Layers that keep statistics of a part of their input are told from those that others wrote the usual way."""

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm

from bnprobe.measures.evidence import Patient
from bnprobe.measures.untouched import untouched


class OnlyPositive(nn.BatchNorm1d):
    def forward(self, x):
        kept = x.mean(1) > 0
        out = torch.zeros_like(x)
        out[kept] = super().forward(x[kept])
        return out


class Rewritten(nn.BatchNorm1d):
    def forward(self, x):
        return batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )


class OtherConvention(nn.Module):
    """Keeps the old mean with weight ``momentum``."""

    def __init__(self, features, momentum=0.9):
        super().__init__()
        self.momentum, self.num_features = momentum, features
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x):
        if self.training:
            self.running_mean.mul_(self.momentum).add_(x.mean(0).detach(), alpha=1 - self.momentum)
        return x - self.running_mean


OtherConvention.__name__ = "OtherBatchNorm"


@pytest.mark.parametrize(
    ("kind", "partial"), [(OnlyPositive, True), (Rewritten, False), (OtherConvention, False), (nn.BatchNorm1d, False)]
)
def test_by_what_their_own_update_is(kind, partial):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), kind(6))
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with untouched(model) as origin:
        patient = Patient(model, [torch.randn(32, 4) for _ in range(2)], origin)
        assert patient.partial == ({"1"} if partial else set())
        assert [site.name for site in patient.tracked] == ([] if partial else ["1"])
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert model[1].momentum in (0.1, 0.9)
