"""Small sick and healthy models through the whole doctor, for the rules about modes, steps and copies."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnprobe import diagnose
from bnprobe.rules import Severity

MINE = ("N01", "N03", "N09", "N13", "N17", "N18", "N21", "N23", "N24", "N27")


def data(seed=0, shift=0.0, batches=16):
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (batches * 16,), generator=draw)
    x = torch.eye(3, 4)[y] * 2 + 0.5 * torch.randn(len(y), 4, generator=draw) + shift
    return list(zip(x.split(16), y.split(16), strict=True))


def trained(norm=nn.BatchNorm1d, steps=60):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), norm(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for x, y in (data() * (steps // 16 + 1))[:steps]:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def serious(model, loader=None, **given):
    found = diagnose(model, data(1) if loader is None else loader, select=MINE, **given)
    assert all(found.proof.values())
    return {one.code for one in found.findings if one.severity >= Severity.WARNING}


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
@pytest.mark.parametrize("training", [True, False])
def test_healthy(norm, training):
    model = trained(norm).train(training)
    exported = torch.jit.trace(copy.deepcopy(model).eval(), data()[0][0])
    assert serious(model, exported=exported, state_dict=model.state_dict()) == set()


def test_healthy_step_and_evaluation():
    model = trained()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(batch):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    def evaluate():
        model.eval()
        for x, _ in data(2):
            model(x)
        model.train()

    assert serious(model, step=step, optimizer=optimizer, evaluate=evaluate) == set()
    assert serious(trained(nn.Identity), step=step, optimizer=optimizer) == set()


def test_sick_served_in_training_mode():
    assert serious(trained().train(), intent="serve") == {"N01"}


def test_sick_without_running_statistics():
    assert "N13" in serious(trained(lambda width: nn.BatchNorm1d(width, track_running_stats=False)).eval())


def test_sick_layer_put_in_after_eval():
    model = trained().eval()
    model[1] = nn.BatchNorm1d(8)
    assert serious(model) >= {"N17", "N01"}


def test_sick_frozen_and_moving():
    model = trained()
    model[1].requires_grad_(False)
    assert serious(model, data(1, shift=2.0)) == {"N03"}
    model[1].eval()
    assert serious(model, data(1, shift=2.0)) == set()


def test_sick_evaluation_in_training_mode():
    model = trained()

    def evaluate():
        with torch.no_grad():
            for x, _ in data(2, shift=1.0):
                model(x)

    assert serious(model, evaluate=evaluate) == {"N18"}


def test_sick_unregistered():
    class Made(nn.Module):
        def forward(self, x):
            return nn.BatchNorm1d(8)(x)

    assert "N21" in serious(trained(lambda _: Made()).eval())


def test_sick_checkpoint():
    model = trained().eval()
    assert serious(model, state_dict=dict(model.named_parameters())) == {"N24"}


def test_sick_traced_in_training_mode():
    model = trained()
    exported = torch.jit.trace(copy.deepcopy(model), data()[0][0], check_trace=False)
    assert serious(model.eval(), exported=exported) == {"N27"}
