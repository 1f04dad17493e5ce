"""The networks that the benchmarks train."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SUBJECTS", "Subject"]


@dataclass(frozen=True)
class Subject:
    """A network and the batch on which it is trained."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]


class Block(nn.Module):
    """A basic residual block (He et al. 2016)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.skip = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.skip(x))


def resnet(widths: tuple[int, ...], depth: int, classes: int = 10) -> nn.Module:
    """Stages of basic blocks after a 3x3 stem."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, widths[0], 3, 1, 1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(inplace=True),
    ]
    inner = widths[0]
    for stage, width in enumerate(widths):
        for block in range(depth):
            layers.append(Block(inner, width, 2 if stage and not block else 1))
            inner = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, classes))


def mlp() -> nn.Module:
    """The network of Ioffe & Szegedy (2015), section 4.1, with batch normalization."""
    layers: list[nn.Module] = []
    for inner in (784, 100, 100):
        layers += [nn.Linear(inner, 100), nn.BatchNorm1d(100), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(100, 10))


class Encoder(nn.Module):
    """A small transformer encoder over given embeddings."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def _labelled(*shape: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(*shape), torch.randint(10, (shape[0],)))


SUBJECTS = (
    Subject("mlp", mlp, _labelled(60, 784)),
    Subject("resnet20", lambda: resnet((16, 32, 64), 3), _labelled(64, 3, 32, 32)),
    Subject("resnet18", lambda: resnet((64, 128, 256, 512), 2), _labelled(16, 3, 64, 64)),
    Subject("encoder", Encoder, _labelled(16, 128, 256)),
)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    """One step of stochastic gradient descent on cross entropy."""
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
