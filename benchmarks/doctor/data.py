"""What set-ups are made of: small pictures and sequences, small networks, a training loop, trained networks.

Everything is deterministic in its seed. Data come from generators of their own; layers draw their first weights from
the global stream, which `isolated` seeds and puts back.
"""

import copy
import functools
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "CNN", "Batch", "Loss", "batches", "cross_entropy", "fit", "flat", "generator", "images", "isolated", "mlp",
    "pictures", "sequences", "shared", "shuffled", "trained_cnn", "trained_mlp",
]  # fmt: skip

Batch: TypeAlias = tuple[Tensor, Tensor]
Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
P = ParamSpec("P")
T = TypeVar("T")


# randomness ----------------------------------------------------------------------------------------------------------


def generator(seed: int, *stream: object) -> torch.Generator:
    """A random stream of its own for each seed and purpose, whatever was drawn elsewhere."""
    return torch.Generator().manual_seed(zlib.crc32(repr((seed, *stream)).encode()))


def isolated(function: Callable[P, T]) -> Callable[P, T]:
    """The function with the global streams of torch, numpy and python seeded by its arguments, put back after it."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        seed = zlib.crc32(repr((function.__name__, args, sorted(kwargs.items()))).encode())
        kept = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                np.random.seed(seed)  # noqa: NPY002 - what layers of others draw from
                random.seed(seed)
                return function(*args, **kwargs)
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])  # noqa: NPY002

    return run


def shared(function: Callable[P, T]) -> Callable[P, T]:
    """The function computed once a process for each choice of arguments; every caller gets a deep copy."""
    once = functools.cache(isolated(function))

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return copy.deepcopy(once(*args, **kwargs))  # type: ignore[arg-type] # arguments are hashable

    return run


# data ----------------------------------------------------------------------------------------------------------------


@functools.cache
def _prototypes(seed: int, classes: int, size: int) -> Tensor:
    draw = generator(seed, "prototypes")
    coarse = torch.randn(classes, 3, 4, 4, generator=draw)
    colour = 0.5 * torch.randn(classes, 3, 1, 1, generator=draw)
    return F.interpolate(coarse, size=(size, size), mode="bilinear") + colour


def images(
    seed: int, n: int = 1024, part: str = "train", *, noise: float = 0.8, offset: float = 0.2, gain: float = 0.0,
    classes: int = 10, size: int = 16,
) -> Batch:  # fmt: skip
    """The recipe Img: a low-frequency prototype and a colour for each class, noise, an offset and a gain a picture.

    Args:
        seed: decides the prototypes and, with `part`, the samples.
        n: number of samples, in random order.
        part: names an independent draw from the same distribution ("train", "val", ...).
        noise: standard deviation of the noise of a pixel.
        offset: standard deviation of the offset of a picture's colour channel.
        gain: standard deviation of the logarithm of a picture's contrast.
        classes: number of classes, equally likely.
        size: height and width in pixels.

    Returns:
        Pictures ``[N, 3, size, size]`` and labels ``[N]``.
    """
    draw = generator(seed, "images", part)
    y = torch.randint(classes, (n,), generator=draw)
    x = _prototypes(seed, classes, size)[y] + noise * torch.randn(n, 3, size, size, generator=draw)
    x = x * torch.exp(gain * torch.randn(n, 1, 1, 1, generator=draw))
    return x + offset * torch.randn(n, 3, 1, 1, generator=draw), y


def sequences(
    seed: int, n: int = 1024, part: str = "train", *, length: int = 24, features: int = 8, classes: int = 4,
    noise: float = 0.8,
) -> Batch:  # fmt: skip
    """The recipe Seq: a smooth course in time for each class and feature, and noise.

    Returns:
        Sequences ``[N, length, features]`` and labels ``[N]``.
    """
    draw = generator(seed, "courses", classes, features)
    coarse = torch.randn(classes, features, 5, generator=draw)
    courses = F.interpolate(coarse, size=length, mode="linear").transpose(1, 2)
    draw = generator(seed, "sequences", part)
    y = torch.randint(classes, (n,), generator=draw)
    return courses[y] + noise * torch.randn(n, length, features, generator=draw), y


def batches(x: Tensor, y: Tensor, size: int = 32, order: Tensor | None = None) -> list[Batch]:
    """The samples in their order (or in `order`), cut into batches; the last one may be smaller."""
    order = torch.arange(len(x)) if order is None else order
    return [(x[index], y[index]) for index in order.split(size)]


def shuffled(x: Tensor, y: Tensor, size: int, seed: int) -> Iterator[Batch]:
    """Batches of epochs without end, each in a random order of its own, incomplete batches left out."""
    draw = generator(seed, "shuffled")
    while True:
        for index in torch.randperm(len(x), generator=draw).split(size):
            if len(index) == size or len(x) < size:
                yield x[index], y[index]


def pictures(seed: int, part: str = "train", *, count: int = 24, size: int = 32, **options: Any) -> list[Batch]:
    """A loader of `count` batches of `size` samples of `images`."""
    return batches(*images(seed, count * size, part, **options), size)


# networks ------------------------------------------------------------------------------------------------------------


class CNN(nn.Module):
    """conv(3, 16)-norm-ReLU-conv(16, 32, stride 2)-norm-ReLU-mean-linear.

    Args:
        norm: makes a normalization layer from its number of channels.
        classes: number of logits.
        inner: number of input channels.
    """

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, classes: int = 10, inner: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, 16, 3, padding=1, bias=False)
        self.bn1 = norm(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = norm(32)
        self.head = nn.Linear(32, classes)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees: ``[N, 32]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def mlp(
    inner: int = 16, classes: int = 10, hidden: int = 32, norm: Callable[[int], nn.Module] = nn.BatchNorm1d
) -> nn.Sequential:
    """linear-norm-ReLU-linear-norm-ReLU-linear."""
    return nn.Sequential(
        nn.Linear(inner, hidden), norm(hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), norm(hidden), nn.ReLU(),
        nn.Linear(hidden, classes),
    )  # fmt: skip


# training ------------------------------------------------------------------------------------------------------------


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of a classifier on ``(x, y)``."""
    return F.cross_entropy(model(batch[0]), batch[1])


def fit(
    model: nn.Module, loader: Iterable[Any], steps: int = 150, *, lr: float = 3e-3, loss: Loss = cross_entropy,
    after: Callable[[], object] | None = None, optimizer: torch.optim.Optimizer | None = None,
) -> nn.Module:  # fmt: skip
    """Train by Adam in the mode that the model is in; `after` is called after every step. No gradients stay."""
    free = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam(free, lr=lr) if optimizer is None else optimizer
    done = 0
    while done < steps:
        for batch in loader:
            optimizer.zero_grad()
            loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if after is not None:
                after()
            done += 1
            if done == steps:
                break
    optimizer.zero_grad()
    return model


@shared
def trained_cnn(
    seed: int, steps: int = 150, size: int = 32, *, noise: float = 0.8, offset: float = 0.2, gain: float = 0.0,
    momentum: float | None = 0.1, eps: float = 1e-5, lr: float = 3e-3,
) -> CNN:  # fmt: skip
    """`CNN` trained on shuffled `images` of the seed, handed over in train mode."""
    model = CNN(lambda channels: nn.BatchNorm2d(channels, eps=eps, momentum=momentum))
    x, y = images(seed, 1024, noise=noise, offset=offset, gain=gain)
    fit(model, shuffled(x, y, size, seed), steps, lr=lr)
    return model


def flat(seed: int, n: int = 1024, part: str = "train", *, features: int = 16, classes: int = 10) -> Batch:
    """Points ``[N, features]`` about one centre for each class, features of unequal size; labels ``[N]``."""
    draw = generator(seed, "centres", features, classes)
    centres = 1.5 * torch.randn(classes, features, generator=draw)
    scale = torch.exp(torch.randn(features, generator=draw))
    draw = generator(seed, "points", part)
    y = torch.randint(classes, (n,), generator=draw)
    return scale * (centres[y] + torch.randn(n, features, generator=draw)), y


@shared
def trained_mlp(seed: int, steps: int = 300, size: int = 32, *, momentum: float | None = 0.1) -> nn.Sequential:
    """`mlp` trained on shuffled points of `flat` of the seed, handed over in train mode."""
    model = mlp(norm=lambda channels: nn.BatchNorm1d(channels, momentum=momentum))
    fit(model, shuffled(*flat(seed), size, seed), steps)
    return model
