import pytest
import torch
from torch import nn

from bnprobe.hooks.sites import find_sites
from bnprobe.statistics.weights import LearningRates, WeightNorms


def read(model):
    found = {}
    for statistic, names, values in WeightNorms(find_sites(model)).read():
        for name, value in zip(names, values, strict=True):
            found.setdefault(name, {})[statistic] = float(value)
    return found


def test_norms_of_weights_and_gradients():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2).double().float())
    model(torch.randn(6, 4)).square().sum().backward()
    found = read(model)
    assert set(found) == {"0", "1", "3"}
    for name in found:
        weight = model[int(name)].weight
        assert found[name]["norm"] == pytest.approx(float(weight.detach().norm()), rel=1e-6)
        assert found[name]["grad_norm"] == pytest.approx(float(weight.grad.norm()), rel=1e-6)


def test_what_has_no_gradient_has_no_gradient_norm():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    model(torch.randn(6, 4)).sum().backward()
    found = read(model)
    assert "grad_norm" not in found["0"]
    assert "grad_norm" in found["1"]


def test_recurrent_parametrised_sparse_and_half_layers():
    lstm, embedding = nn.LSTM(3, 4), nn.Embedding(5, 3, sparse=True)
    model = nn.ModuleList(
        [embedding, lstm, nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)), nn.Linear(2, 1).half()]
    )
    nn.init.constant_(model[3].weight, 60000.0)
    hidden = lstm(embedding(torch.tensor([[0, 1, 1]])))[0]
    model[2](hidden).sum().backward()
    found = read(model)
    assert found["0"]["grad_norm"] == pytest.approx(float(embedding.weight.grad.to_dense().norm()), rel=1e-5)
    both = torch.cat([lstm.weight_ih_l0.flatten(), lstm.weight_hh_l0.flatten()])
    assert found["1"]["norm"] == pytest.approx(float(both.detach().norm()), rel=1e-5)
    assert found["2"]["grad_norm"] > 0
    assert found["3"]["norm"] == pytest.approx(60000 * 2**0.5, rel=1e-3)


def test_learning_rates_follow_groups_and_schedules():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[1].parameters()}], lr=0.1
    )
    rates = LearningRates(find_sites(model), optimizer)
    assert dict(zip(*rates.read(), strict=True)) == {"0": 0.5, "1": 0.1}
    optimizer.add_param_group({"params": model[2].parameters(), "lr": torch.tensor(0.25)})
    optimizer.param_groups[0]["lr"] = 0.01
    assert dict(zip(*rates.read(), strict=True)) == {"0": 0.01, "1": 0.1, "2": 0.25}
