import numpy as np
import pytest
import torch
from torch import nn

from bnprobe.diagnose import diagnose
from bnprobe.measures.evidence import Patient
from bnprobe.measures.evidence.momentum import measure
from bnprobe.measures.untouched import untouched


def test_jitter_is_what_the_running_mean_does():
    """Against the running mean itself, over many batches."""
    norm = nn.BatchNorm1d(3, momentum=0.8)
    batches = [torch.randn(8, 3) + torch.randn(1, 3) for _ in range(600)]
    with untouched(norm) as origin:
        (fact,) = measure(Patient(norm, batches, origin))
    seen = []
    for one in batches:
        norm(one)
        seen.append(norm.running_mean.clone())
    found = torch.stack(seen[50:]).var(0).numpy() / torch.cat(batches).var(0).numpy()
    np.testing.assert_allclose(fact.channels, found, rtol=0.2)


@pytest.mark.parametrize(("momentum", "codes"), [(0.99, {"N10"}), (0.1, set()), (0.0, {"N10"})])
def test_diagnosis(momentum, codes):
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=momentum), nn.Linear(4, 3))
    x, y = torch.randn(128, 4) + 4, torch.randint(3, (128,))
    batches = [(x[i : i + 4] + torch.randn(1, 4), y[i : i + 4]) for i in range(0, 128, 4)]
    for one, _ in batches * 2:
        model(one)
    found = diagnose(model, batches, select=["N10"])
    assert {one.code for one in found.findings} == codes
