from itertools import pairwise

import pytest
import torch
from torch import nn

from bnprobe.diagnose import diagnose
from bnprobe.measures.evidence import Patient
from bnprobe.measures.evidence.depth import measure
from bnprobe.measures.untouched import untouched
from bnprobe.rules import Severity


class FrozenBatchNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x):
        return (x - self.running_mean) * (self.weight / (self.running_var + 1e-5).sqrt()) + self.bias


def network(depth, norm=FrozenBatchNorm, scale=0.5):
    layers = []
    for _ in range(depth):
        linear = nn.Linear(8, 8, bias=False)
        nn.init.orthogonal_(linear.weight).data.mul_(scale)
        layers += [linear, norm(8)]
    return nn.Sequential(*layers)


def test_strength_halves_from_layer_to_layer():
    model = network(4)
    with untouched(model) as origin:
        found = measure(Patient(model, [torch.randn(16, 8) for _ in range(3)], origin))
    strengths = [fact.value for fact in found if fact.statistic == "activation_rms"]
    assert [b / a for a, b in pairwise(strengths)] == pytest.approx([0.5] * 3, rel=1e-4)
    assert all(fact.value == 1 for fact in found if fact.statistic in ("identity", "frozen"))


@pytest.mark.parametrize(("depth", "severity"), [(6, Severity.WARNING), (3, Severity.INFO)])
def test_diagnosis(depth, severity):
    (found,) = diagnose(network(depth), [torch.randn(16, 8) for _ in range(3)], select=["N20"]).findings
    assert found.severity == severity


def test_a_fresh_model_in_evaluation_is_not_frozen():
    model = network(6, nn.BatchNorm1d).eval()
    batches = [torch.randn(16, 8) for _ in range(3)]
    assert not diagnose(model, batches, select=["N20"]).findings
    assert diagnose(model, batches, select=["N20"], intent="frozen").findings
    model.train()
    for one in model[1::2]:
        one.eval()
    assert diagnose(model, batches, select=["N20"]).findings
    assert not diagnose(model, batches, select=["N20"], intent="train").findings
