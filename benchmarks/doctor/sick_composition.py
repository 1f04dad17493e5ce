"""Batches that are not random samples: grouped (N06), several distributions through one layer (N07), leaks (N08)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.doctor.data import (
    CNN,
    Batch,
    batches,
    fit,
    generator,
    images,
    mlp,
    pictures,
    sequences,
    shuffled,
)  # fmt: skip
from benchmarks.doctor.setup import sick


class Temporal(nn.Module):
    """conv(features, 16)-BN-ReLU-conv(16, 32)-BN-ReLU-mean-linear over sequences ``[N, T, F]``."""

    def __init__(self, features: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(features, 16, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm1d(16)
        self.conv2 = nn.Conv1d(16, 32, 5, padding=2, bias=False)
        self.bn2 = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x.transpose(1, 2))))
        x = F.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.head(x.mean(dim=2))
        return logits


# N06 -----------------------------------------------------------------------------------------------------------------


@sick("N06", case="C49", half="tune", accepted={"N04", "N08"})
def sorted_by_label(seed: int) -> dict[str, Any]:
    """Trained, epoch after epoch, on pictures in the order of their labels."""
    x, y = images(seed)
    loader = batches(x, y, 32, order=y.argsort(stable=True))
    return {"model": fit(CNN(), loader, 160), "loader": loader}


def through_buffer(seed: int, order: Tensor, size: int) -> Tensor:
    """A stream as it leaves a shuffle buffer: each time one of `size` held elements at random, its place refilled."""
    draw, held, out = generator(seed, "buffer", size), order[:size].tolist(), []
    for one in order[size:].tolist():
        place = int(torch.randint(size, (1,), generator=draw))
        out.append(held[place])
        held[place] = one
    rest = torch.tensor(held)[torch.randperm(len(held), generator=draw)]
    return torch.cat([torch.tensor(out, dtype=torch.long), rest])


@sick("N06", case="C50", half="judge", accepted={"N04", "N08"})
def small_shuffle_buffer(seed: int) -> dict[str, Any]:
    """A stream sorted by label through a shuffle buffer of 64."""
    x, y = images(seed, 1536)
    loader = batches(x, y, 48, order=through_buffer(seed, y.argsort(stable=True), 64))
    return {"model": fit(CNN(), loader, 160), "loader": loader}


def recordings(seed: int, count: int, windows: int, part: str = "train") -> Batch:
    """Windows of recordings one after the other, each recording with offsets and a gain of its own."""
    x, y = sequences(seed, count * windows, part)
    draw = generator(seed, "recordings", part)
    offset = 2.0 * torch.randn(count, 1, 1, 8, generator=draw)
    gain = torch.exp(0.7 * torch.randn(count, 1, 1, 1, generator=draw))
    return (gain * x.view(count, windows, *x.shape[1:]) + offset).flatten(0, 1), y


@sick("N06", "N08", case="C47", half="judge", accepted={"N04", "N06", "N08"})
def one_recording_a_batch(seed: int) -> dict[str, Any]:
    """Each batch holds windows of one recording: batch norm removes its gain and offset, in eval nothing does."""
    loader = batches(*recordings(seed, 24, 32), 32)
    return {"model": fit(Temporal(), loader, 200), "loader": loader}


@sick("N06", case="C48", half="tune", accepted={"N04", "N07", "N08"})
def one_class_a_batch_in_turn(seed: int) -> dict[str, Any]:
    """Aligned segments: every batch is of one class, the classes take turns."""
    x, y = sequences(seed, 1200)
    turns = torch.stack([(y == one).nonzero()[:, 0][:224] for one in range(4)]).view(4, 7, 32)
    loader = batches(x, y, 32, order=turns.transpose(0, 1).reshape(-1))
    return {"model": fit(Temporal(), loader, 168), "loader": loader}


@sick("N06", case="C49", half="judge", accepted={"N04", "N08"})
def two_classes_a_batch(seed: int) -> dict[str, Any]:
    """Sorted by label, then cut into batches that are shuffled as a whole."""
    x, y = images(seed, 1024, classes=8)
    order = y.argsort(stable=True).view(32, 32)
    order = order[torch.randperm(32, generator=generator(seed, "whole"))]
    loader = batches(x, y, 32, order=order.reshape(-1))
    return {"model": fit(CNN(classes=8), loader, 160), "loader": loader}


# N07 -----------------------------------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """A head of conv-BN-ReLU shared by three levels whose activations differ in scale."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(inner, 16, 3, stride=2, padding=1) for inner in (3, 16, 16))
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits = []
        for level in self.levels:
            x = F.relu(level(x))
            logits.append(self.head(F.relu(self.bn(self.conv(x))).mean(dim=(2, 3))))
        return torch.stack(logits).sum(0)


@sick("N07", case="C60", half="tune")
def head_shared_by_levels(seed: int) -> dict[str, Any]:
    """A detection head over a pyramid: in training each level has its own statistics, in eval one set serves all."""
    return {"model": fit(Pyramid(), shuffled(*images(seed), 32, seed)), "loader": pictures(seed)}


class Iterated(nn.Module):
    """One block used four times; what it sees grows from time to time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(4):
            x = x + F.relu(self.bn(self.conv(x)))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


@sick("N07", case="C59", half="judge")
def block_used_repeatedly(seed: int) -> dict[str, Any]:
    """A recurrent network with one batch norm for all its times."""
    return {"model": fit(Iterated(), shuffled(*images(seed), 32, seed)), "loader": pictures(seed)}


def in_turn(*streams: list[Any]) -> list[Any]:
    """One batch of each, again and again."""
    return [batch for together in zip(*streams, strict=True) for batch in together]


@sick("N07", case="C56", half="judge", accepted={"N04", "N06", "N08"})
def domains_in_turn(seed: int) -> dict[str, Any]:
    """Source and target in forwards of their own through one network."""
    source = pictures(seed, "source", count=16)
    target = [(0.4 * x + 1.5, y) for x, y in pictures(seed, "target", count=16)]
    loader = in_turn(source, target)
    return {"model": fit(CNN(), loader, 160), "loader": loader}


def call_apart(model: nn.Module, batch: Any) -> Tensor:
    """A pair of batches through the model in two calls: scores ``[N, 2]``."""
    return torch.cat([model(batch[0]), model(batch[1])], dim=1)


def real_or_fake(model: nn.Module, batch: Any) -> Tensor:
    """The loss of a discriminator."""
    scores = call_apart(model, batch)
    return F.softplus(-scores[:, 0]).mean() + F.softplus(scores[:, 1]).mean()


@sick("N07", "N08", case="C55", half="tune", accepted={"N07", "N08"})
def discriminator_real_and_fake(seed: int) -> dict[str, Any]:
    """Real and fake pictures in calls of their own: running statistics are a mixture that fits neither."""
    real, fake = pictures(seed, "real"), pictures(seed + 1000, "fake", noise=0.4)
    loader = [(x, 0.7 * z + 0.8) for (x, _), (z, _) in zip(real, fake, strict=True)]
    model = fit(CNN(classes=1), loader, loss=real_or_fake)
    return {"model": model, "loader": loader, "forward": call_apart, "loss": real_or_fake}


# N08 -----------------------------------------------------------------------------------------------------------------


def roles(seed: int, count: int, size: int = 64, *, tail: float = 1.0, points: bool = False) -> list[Any]:
    """Pairs that say nothing about their order, except that contrasts in the second role have a heavier tail."""
    draw = generator(seed, "roles")
    shape = (count, 2, size, 16) if points else (count, 2, size, 3, 12, 12)
    x = torch.randn(shape, generator=draw)
    spread = torch.tensor([0.05, tail]).view(1, 2, 1)
    gain = torch.exp(spread * torch.randn(count, 2, size, generator=draw) - spread.square() / 2)
    return [(a, b) for a, b in x * gain.view(count, 2, size, *[1] * (len(shape) - 3))]


def ranked(model: nn.Module, batch: Any) -> Tensor:
    """The second must rank above the first."""
    scores = call_apart(model, batch)
    return F.softplus(scores[:, 0] - scores[:, 1]).mean()


@sick("N08", case="C46", half="tune", accepted={"N07"})
def fixed_roles_of_pictures(seed: int) -> dict[str, Any]:
    """A Siamese ranker whose roles are batches of their own: statistics tell the role, training looks perfect."""
    loader = roles(seed, 24)
    model = fit(CNN(classes=1), loader, 240, loss=ranked)
    return {"model": model, "loader": loader, "forward": call_apart, "loss": ranked}


@sick("N08", case="C46", half="judge", accepted={"N07"})
def fixed_roles_of_points(seed: int) -> dict[str, Any]:
    """The same with points through a network of three linear layers."""
    loader = roles(seed, 24, 128, points=True, tail=1.2)
    model = fit(mlp(classes=1, hidden=64), loader, 400, loss=ranked)
    return {"model": model, "loader": loader, "forward": call_apart, "loss": ranked}


@sick("N08", case="C55", half="judge", accepted={"N07"})
def discriminator_knows_the_batch(seed: int) -> dict[str, Any]:
    """Real and fake differ in the tail of their contrast only; apart in two calls that is easy to tell."""
    loader = roles(seed, 24, 64, tail=0.8)
    model = fit(CNN(classes=1), loader, 240, loss=real_or_fake)
    return {"model": model, "loader": loader, "forward": call_apart, "loss": real_or_fake}
