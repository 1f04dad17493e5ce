"""Statistics of the wrong things: padding (N14), another axis (N15), a single element (N16)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.doctor.data import CNN, Batch, batches, fit, flat, generator, images, pictures, sequences, shuffled
from benchmarks.doctor.setup import sick

# N14 -----------------------------------------------------------------------------------------------------------------


def utterances(seed: int, n: int, part: str, length: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences ``[N, T, F]`` about a mean of 2, of unequal lengths, padded by zeros; labels; lengths."""
    x, y = sequences(seed, n, part, length=length)
    lengths = torch.randint(6, length + 1, (n,), generator=generator(seed, "lengths", part))
    keep = torch.arange(length) < lengths[:, None]
    return (x + 2.0) * keep[:, :, None], y, lengths


class Listener(nn.Module):
    """BN over padded frames-conv-BN-ReLU-mean-linear."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.conv = nn.Conv1d(8, 32, 5, padding=2)
        self.bn = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.transpose(1, 2))
        logits: Tensor = self.head(F.relu(self.bn(self.conv(x))).mean(dim=2))
        return logits


@sick("N14", case="C81", half="tune", accepted={"N02"})
def padding_counted_as_frames(seed: int) -> dict[str, Any]:
    """Half of all frames are padding, and zeros enter mean and variance."""
    x, y, _ = utterances(seed, 768, "train")
    loader = batches(x, y, 32)
    return {"model": fit(Listener(), loader, 150), "loader": loader}


def padded_to_the_longest(x: Tensor, y: Tensor, lengths: Tensor, size: int) -> list[Batch]:
    """Batches cut to their longest member, as collate functions do."""
    pieces = zip(x.split(size), y.split(size), lengths.split(size), strict=True)  # type: ignore[no-untyped-call]
    return [(x[:, : int(lengths.max())], y) for x, y, lengths in pieces]


class Speaker(nn.Module):
    """A projection of each frame without bias-BN-ReLU-mean over frames-linear."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 32, bias=False)
        self.bn = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.project(x).transpose(1, 2)))
        logits: Tensor = self.head(x.mean(dim=2))
        return logits


@sick("N14", case="C81", half="judge", accepted={"N02"})
def padding_of_batches_of_unequal_lengths(seed: int) -> dict[str, Any]:
    """Batches are padded to their longest member, so that the share of padding changes from batch to batch."""
    loader = padded_to_the_longest(*utterances(seed, 24 * 8, "train", 96), 8)
    return {"model": fit(Speaker(), loader, 200), "loader": loader}


# N15 -----------------------------------------------------------------------------------------------------------------


def measured(seed: int, part: str, length: int, features: int) -> Batch:
    """Sequences ``[N, length, features]`` whose features have units of their own."""
    x, y = sequences(seed, 768, part, length=length, features=features)
    draw = generator(seed, "units", features)
    unit = torch.exp(2.0 * torch.randn(features, generator=draw))
    return unit * (x + 2.0 * torch.randn(features, generator=draw)), y


class Flat(nn.Module):
    """A norm over ``[N, T, F]``-flatten-linear-ReLU-linear."""

    def __init__(self, norm: nn.Module, length: int, features: int) -> None:
        super().__init__()
        self.norm = norm
        self.hidden = nn.Linear(length * features, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.hidden(self.norm(x).flatten(1))))
        return logits


def _wrong(norm: nn.Module, seed: int, length: int, features: int) -> dict[str, Any]:
    loader = batches(*measured(seed, "train", length, features), 32)
    return {"model": fit(Flat(norm, length, features), loader, 150), "loader": loader}


@sick("N15", case="C79", half="tune")
def norm_over_time_steps(seed: int) -> dict[str, Any]:
    """BatchNorm1d(T) given sequences with the features last: every moment is normalized, no feature is."""
    return _wrong(nn.BatchNorm1d(24), seed, 24, 8)


@sick("N15", case="C79", half="judge")
def norm_over_time_steps_of_equal_number(seed: int) -> dict[str, Any]:
    """As many time steps as features: nothing tells by its shape."""
    return _wrong(nn.BatchNorm1d(16), seed, 16, 16)


@sick("N15", case="C79", half="tune")
def norm_over_nodes(seed: int) -> dict[str, Any]:
    """Graphs of twelve nodes with twelve features, normalized over the nodes."""
    return _wrong(nn.BatchNorm1d(12), seed, 12, 12)


@sick("N15", case="C80", half="judge")
def layer_norm_over_sequence_and_features(seed: int) -> dict[str, Any]:
    """LayerNorm([T, F]): a frame's output depends on all frames, and features keep their unequal scales."""
    return _wrong(nn.LayerNorm([24, 8]), seed, 24, 8)


@sick("N15", case="C80", half="tune")
def layer_norm_over_nodes_and_features(seed: int) -> dict[str, Any]:
    """LayerNorm([12, 6]) over nodes and features of a graph."""
    return _wrong(nn.LayerNorm([12, 6]), seed, 12, 6)


# N16 -----------------------------------------------------------------------------------------------------------------


@sick("N16", case="C82", half="tune")
def one_channel_a_group(seed: int) -> dict[str, Any]:
    """GroupNorm(32, 32) behind a linear layer: every output is zero, the network says the same about everything."""
    model = nn.Sequential(nn.Linear(16, 32), nn.GroupNorm(32, 32), nn.ReLU(), nn.Linear(32, 10))
    fit(model, shuffled(*flat(seed), 32, seed), 150)
    return {"model": model, "loader": batches(*flat(seed, 768), 32)}


class Embedding(CNN):
    """Normalizes the pooled embedding as well."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(lambda channels: nn.GroupNorm(4, channels))
        self.last = norm

    def features(self, x: Tensor) -> Tensor:
        """The normalized embedding ``[N, 32]``."""
        x = super().features(x)
        return F.relu(self.last(x[:, :, None, None]))[:, :, 0, 0]


@sick("N16", case="C82", half="judge")
def converter_took_all_channels(seed: int) -> dict[str, Any]:
    """A converter from batch norm chose gcd(32, C) groups, on maps of one pixel."""
    model = fit(Embedding(nn.GroupNorm(32, 32)), shuffled(*images(seed), 32, seed), 100)
    return {"model": model, "loader": pictures(seed)}


class Scored(nn.Module):
    """A hidden layer, a score for each of ten classes that is normalized over an axis of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(16, 32)
        self.score = nn.Linear(32, 10)
        self.norm = nn.LayerNorm(1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.norm(self.score(F.relu(self.hidden(x)))[:, :, None])
        return scores[:, :, 0]


@sick("N16", case="C82", half="judge")
def layer_norm_over_one(seed: int) -> dict[str, Any]:
    """LayerNorm(1) over scores: all are equal."""
    model = fit(Scored(), shuffled(*flat(seed), 32, seed), 100)
    return {"model": model, "loader": batches(*flat(seed, 768), 32)}


@sick("N16", case="C82", half="tune")
def group_norm_in_a_gate(seed: int) -> dict[str, Any]:
    """As many groups as channels behind the global pooling of a network of group norm."""
    norm = nn.Sequential(nn.Conv2d(32, 32, 1), nn.GroupNorm(32, 32))
    model = fit(Embedding(norm), shuffled(*images(seed), 32, seed), 100)
    return {"model": model, "loader": pictures(seed)}
