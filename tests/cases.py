"""Models and training loops that many tests use."""

import torch
import torch.nn.functional as F
from torch import nn


def mlp(width=12, norm=nn.BatchNorm1d):
    return nn.Sequential(
        nn.Linear(6, width),
        norm(width),
        nn.Sigmoid(),
        nn.Linear(width, width),
        norm(width),
        nn.ReLU(),
        nn.Linear(width, 3),
    )


def cnn():
    """Batch norm with an in-place activation directly behind it: where several probes crash training."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(8),
        nn.Linear(8, 3),
    )


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 10, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        states, _ = self.lstm(x)
        return self.head(self.drop(states[:, -1]))


class Residual(nn.Module):
    """Functional activations, a sum, a shared layer and a concatenation between the layers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        y = self.shared(x)
        y = self.bn2(self.shared(F.relu(y)))
        y += x
        return self.head(torch.cat([x, y], 1).mean((2, 3)))


CASES = {
    "mlp": (mlp, (16, 6)),
    "cnn": (cnn, (8, 3, 9, 9)),
    "lstm": (Recurrent, (8, 5, 6)),
    "residual": (Residual, (8, 3, 6, 6)),
}


def batches(shape, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(shape, generator=generator), torch.randint(3, (shape[0],), generator=generator))
        for _ in range(steps)
    ]


def train(model, optimizer, data, after=lambda: None):
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        after()
