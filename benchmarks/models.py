"""The networks that the benchmarks train."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SUBJECTS", "Batch", "Subject", "labelled", "mlp", "resnet50", "small_cnn", "train_step"]


Batch: TypeAlias = tuple[Tensor, Tensor]


def train_step(forward: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One step of stochastic gradient descent on cross entropy."""
    optimizer.zero_grad()
    F.cross_entropy(forward(batch[0]), batch[1]).backward()
    optimizer.step()


@dataclass(frozen=True)
class Subject:
    """A network and the batch on which it is trained.

    Attributes:
        name: how the result calls it. model: builds the network. batch: makes a batch. target: what a step with the
        default probe may take, relative to the step without; None where nothing is promised. step: one training step,
        given the forward, the optimizer and a batch.
    """

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    target: float | None = None
    step: Callable[[Callable[[Tensor], Tensor], torch.optim.Optimizer, Batch], None] = train_step


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


class Bottleneck(nn.Module):
    """A bottleneck block; the stride is in the 3x3 convolution, as everybody trains it today (version 1.5)."""

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        outer = 4 * width
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.skip = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.skip(x))


def resnet50(classes: int = 1000) -> nn.Module:
    """ResNet-50 (He et al. 2016, table 1): 25.6 million parameters."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    inner = 64
    for stage, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(depth):
            layers.append(Bottleneck(inner, width, 2 if stage and not block else 1))
            inner = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, classes))


def small_cnn() -> nn.Module:
    """Three convolutions, each with batch normalization and a rectifier."""
    layers: list[nn.Module] = []
    for inner, outer, stride in ((3, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def mlp(depth: int = 3) -> nn.Module:
    """The network of Ioffe & Szegedy (2015), section 4.1, with batch normalization; theirs has three hidden layers."""
    layers: list[nn.Module] = []
    for inner in (784, *[100] * (depth - 1)):
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


def labelled(*shape: int) -> Callable[[], Batch]:
    """Makes a batch of normal inputs of that shape, with one of ten labels each."""
    return lambda: (torch.randn(*shape), torch.randint(10, (shape[0],)))


SUBJECTS = (
    Subject("mlp", mlp, labelled(60, 784), 1.35),
    Subject("resnet20", lambda: resnet((16, 32, 64), 3), labelled(64, 3, 32, 32), 1.08),
    Subject("resnet18", lambda: resnet((64, 128, 256, 512), 2), labelled(16, 3, 64, 64), 1.05),
    Subject("encoder", Encoder, labelled(16, 128, 256), 1.08),
)
