"""Small networks with batch norm."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from bnprobe.errors import ArgumentError

__all__ = ["NETWORKS", "Network", "networks"]

_CLASSES = 3


class _Residual(nn.Module):
    """x + BN(conv(x)), so many times."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(depth)
        )
        self.head = nn.Linear(width, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 3]``."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class _Shared(nn.Module):
    """One linear layer and one batch norm, called so many times."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.stem, self.head = nn.Linear(3, width), nn.Linear(width, _CLASSES)
        self.linear, self.norm = nn.Linear(width, width, bias=False), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 3]``."""
        x = self.stem(x)
        for _ in range(self.depth):
            x = torch.relu(self.norm(self.linear(x)))
        logits: Tensor = self.head(x)
        return logits


def _linear(width: int, depth: int) -> nn.Module:
    sizes = [3, *[width] * depth]
    blocks = [nn.Sequential(nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(sizes)]
    return nn.Sequential(*blocks, nn.Linear(width, _CLASSES))


def _convolutional(width: int, depth: int) -> nn.Module:
    sizes = [3, *[width] * depth]
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in pairwise(sizes)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, _CLASSES))


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": _linear,
    "convolutional": _convolutional,
    "residual": _Residual,
    "shared": _Shared,
}


@dataclass(frozen=True)
class Network:
    """A small network with batch norm, from 3 features or 3 channels to 3 classes, as a recipe.

    Attributes:
        kind: a key of :data:`NETWORKS`.
        width: channels of its hidden layers.
        depth: pairs of a weight layer and a batch norm.
        seed: of its weights.

    Raises:
        ArgumentError: there is no such kind.
    """

    kind: str = "linear"
    width: int = 4
    depth: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in NETWORKS:
            raise ArgumentError(f"kind must be one of {', '.join(NETWORKS)}; got {self.kind!r}")

    def model(self) -> nn.Module:
        """A fresh network in training mode; the global random stream is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return NETWORKS[self.kind](self.width, self.depth)

    def input_shape(self, samples: int) -> tuple[int, ...]:
        """Of a batch of so many samples."""
        return (samples, 3, 5, 5) if self.kind in ("convolutional", "residual") else (samples, 3)


def networks(kinds: tuple[str, ...] = tuple(NETWORKS)) -> st.SearchStrategy[Network]:
    """Recipes of small networks; ``.model()`` makes one. Shrinks to a linear one of one narrow layer."""
    return st.builds(Network, st.sampled_from(kinds), st.integers(2, 5), st.integers(1, 3), st.integers(0, 99))
