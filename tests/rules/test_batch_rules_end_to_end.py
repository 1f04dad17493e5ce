"""Small models through the whole doctor."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bnprobe


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[1].num_batches_tracked.fill_(100)
    return model.train()


def data(count, order=None):
    draw = torch.Generator().manual_seed(1)
    y = torch.randint(4, (count,), generator=draw)
    x = 2 * torch.eye(4, 6)[y] + torch.randn(count, 6, generator=draw)
    return (x, y) if order is None else (x[y.argsort()], y.sort().values)


def codes(loader, *select):
    found = bnprobe.diagnose(net(), loader, select=select)
    assert all(found.proof.values())
    return {one.code: str(one.severity) for one in found.findings}


def test_single_value_batch():
    assert codes(DataLoader(TensorDataset(*data(129)), 32), "N05") == {"N05": "error"}
    assert codes(DataLoader(TensorDataset(*data(129)), 32, drop_last=True), "N05") == {}


def test_sorted_batches():
    assert codes(DataLoader(TensorDataset(*data(640, "sorted")), 32), "N06") == {"N06": "error"}
    assert codes(DataLoader(TensorDataset(*data(640, "sorted")), 32, shuffle=True), "N06") == {}


def test_tiny_batches():
    small = bnprobe.diagnose(net(), DataLoader(TensorDataset(*data(96)), 3), select=("N04",))
    assert small.findings[0].effect.value < 6
    assert codes(DataLoader(TensorDataset(*data(2048)), 64), "N04") == {}
