import pytest
import torch
from torch import nn

from bnprobe.diagnose import diagnose
from bnprobe.hooks.sites import Site
from bnprobe.measures.evidence import Patient
from bnprobe.measures.evidence.groups import elements, measure
from bnprobe.measures.untouched import untouched


def facts_of(model, batches):
    with untouched(model) as origin:
        return {fact.statistic: fact.value for fact in measure(Patient(model, batches, origin))}


@pytest.mark.parametrize(
    ("norm", "family", "shape", "expected"),
    [
        (nn.GroupNorm(4, 8), "group_norm", (2, 8), 2), (nn.GroupNorm(4, 8), "group_norm", (2, 8, 3, 3), 18),
        (nn.InstanceNorm2d(8), "instance_norm", (2, 8, 4, 4), 16),
        (nn.InstanceNorm2d(8), "instance_norm", (8, 4, 4), 16),
        (nn.InstanceNorm2d(8), "instance_norm", (2, 8, 1, 1), 1), (nn.LayerNorm([3, 4]), "layer_norm", (2, 3, 4), 12),
        (nn.RMSNorm(4), "rms_norm", (2, 3, 4), 4),
    ],
)  # fmt: skip
def test_elements(norm, family, shape, expected):
    assert elements(Site("norm", norm, family), torch.zeros(shape)) == expected


def test_one_value_a_group_erases_the_input():
    found = facts_of(nn.GroupNorm(4, 4), [torch.randn(16, 4) for _ in range(3)])
    assert found["group_elements"] == 1
    assert found["output_spread"] < 1e-4  # rounding over the square root of epsilon
    assert found["input_spread"] == pytest.approx(1, abs=0.2)


def test_spread_is_the_naive_one_in_units_of_gamma():
    norm, batches = nn.GroupNorm(2, 8), [torch.randn(16, 8, 5) for _ in range(3)]
    nn.init.constant_(norm.weight, 3.0)
    found = facts_of(norm, batches)
    output = norm(torch.cat(batches)).detach().double()
    naive = output.var((0, 2), correction=0).mean().sqrt() / 3
    assert found["output_spread"] == pytest.approx(float(naive), rel=1e-6)


def test_a_gain_of_zero_says_nothing():
    norm = nn.GroupNorm(2, 8)
    nn.init.zeros_(norm.weight)
    assert "output_spread" not in facts_of(norm, [torch.randn(16, 8, 5)])


@pytest.mark.parametrize(
    ("model", "codes"),
    [
        (nn.Sequential(nn.Linear(8, 16), nn.GroupNorm(16, 16), nn.Linear(16, 3)), {"N16"}),
        (nn.Sequential(nn.Linear(8, 16), nn.GroupNorm(1, 16), nn.Linear(16, 3)), set()),
        (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3)), set()),
    ],
)
def test_diagnosis(model, codes):
    found = diagnose(model, [torch.randn(16, 8) for _ in range(3)], select=["N16"])
    assert {one.code for one in found.findings} == codes


def test_inputs_far_below_epsilon_are_erased():
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3))
    (found,) = diagnose(model, [1e-7 * torch.randn(16, 8) for _ in range(3)], select=["N16"]).findings
    assert "erases its input" in found.summary
