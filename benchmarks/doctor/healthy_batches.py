"""Batches that are small, ordered, balanced or grouped, and do no harm."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset, WeightedRandomSampler

from benchmarks.doctor.data import (
    CNN,
    Batch,
    batches,
    fit,
    flat,
    generator,
    images,
    mlp,
    pictures,
    sequences,
    shuffled,
    trained_cnn,
)  # fmt: skip
from benchmarks.doctor.healthy_nets import Temporal, cooled, learned, stepper, stream
from benchmarks.doctor.setup import healthy


def _dense_map(width: int = 12) -> nn.Sequential:
    """A class for every pixel by three convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 4, 1),
    )  # fmt: skip


def _fields(seed: int, n: int, part: str, size: int = 48) -> Batch:
    """Large pictures of many small regions ``[N, 3, size, size]`` and a class for every pixel."""
    draw = generator(seed, "fields", part)
    cells = torch.randint(4, (n, size // 4, size // 4), generator=draw)
    y = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    colours = torch.randn(4, 3, generator=generator(seed, "colours"))
    return colours[y].movedim(-1, 1) + 0.5 * torch.randn(n, 3, size, size, generator=draw), y


def _on_fields(seed: int, size: int, steps: int) -> dict[str, Any]:
    x, y = _fields(seed, 96, "train")
    model = cooled(_dense_map(), shuffled(x, y, size, seed), steps, lr=1e-2)
    return {"model": model, "loader": stream(x, y, size, seed)}


@healthy(case="H05", half="tune", tempts=("N04", "N05"))
def batches_of_two_large_maps(seed: int) -> dict[str, Any]:
    """Two pictures, but nearly five thousand pixels that differ as much within a picture as between pictures."""
    return _on_fields(seed, 2, 150)


@healthy(case="H05", half="judge", tempts=("N04", "N05"))
def batches_of_one_large_map(seed: int) -> dict[str, Any]:
    """One picture a batch."""
    return _on_fields(seed, 1, 200)


@healthy(case="plain", half="tune", tempts=("N04",))
def batches_of_eight_large_maps(seed: int) -> dict[str, Any]:
    """The size at which many tools warn."""
    return _on_fields(seed, 8, 80)


def _identities(y: Tensor, classes: int, each: int, count: int, draw: torch.Generator) -> list[Tensor]:
    """Indices of `count` batches of `each` samples of each of `classes` labels drawn at random."""
    members = [torch.where(y == label)[0] for label in range(int(y.max()) + 1)]
    drawn = []
    for _ in range(count):
        labels = torch.randperm(len(members), generator=draw)[:classes].tolist()
        rows = [members[k][torch.randint(len(members[k]), (each,), generator=draw)] for k in labels]
        drawn.append(torch.cat(rows))
    return drawn


def _by_sampler(seed: int, classes: int, each: int) -> dict[str, Any]:
    x, y = images(seed)
    order = _identities(y, classes, each, 100, generator(seed, "sampler"))
    model = fit(CNN(), [(x[index], y[index]) for index in order], 150)
    return {"model": model, "loader": DataLoader(TensorDataset(x, y), batch_sampler=[i.tolist() for i in order[:32]])}


@healthy(case="H06", half="tune", tempts=("N06", "N04"))
def identity_sampler(seed: int) -> dict[str, Any]:
    """Eight of ten identities, eight pictures of each: significantly grouped, and harmless."""
    return _by_sampler(seed, 8, 8)


@healthy(case="H06", half="judge", tempts=("N06", "N04"))
def identity_sampler_of_four(seed: int) -> dict[str, Any]:
    """Nine of ten identities, four pictures of each."""
    return _by_sampler(seed, 9, 4)


@healthy(case="H07", half="tune", tempts=("N06",))
def balanced_sampler(seed: int) -> dict[str, Any]:
    """Six pictures of every class in every batch: batches are more alike than random ones."""
    return _by_sampler(seed, 10, 6)


@healthy(case="H07", half="judge", tempts=("N06", "N26"))
def weighted_sampler(seed: int) -> dict[str, Any]:
    """Rare classes are drawn more often, so that the loader's labels are not the data's."""
    x, y = images(seed, 2048)
    keep = (y < 5) | (torch.rand(len(y), generator=generator(seed, "rare")) < 0.2)
    x, y = x[keep], y[keep]
    weights = 1.0 / torch.bincount(y)[y]
    order = torch.multinomial(weights, 150 * 32, replacement=True, generator=generator(seed, "weighted"))
    model = fit(CNN(), batches(x, y, 32, order))
    sampler = WeightedRandomSampler(weights.tolist(), 1024, generator=generator(seed, "sampler"))
    return {"model": model, "loader": DataLoader(TensorDataset(x, y), 32, sampler=sampler)}


@healthy(case="H10", half="tune", tempts=("N05", "N04"))
def served_one_at_a_time(seed: int) -> dict[str, Any]:
    """Eval mode, single pictures."""
    return {"model": trained_cnn(seed).eval(), "loader": batches(*images(seed, 48, "val"), 1)}


@healthy(case="H10", half="judge", tempts=("N06", "N07"))
def served_in_the_order_of_labels(seed: int) -> dict[str, Any]:
    """Eval mode, a test set that is sorted by class and has a last batch of one."""
    x, y = images(seed, 769, "val")
    return {"model": trained_cnn(seed).eval(), "loader": batches(x, y, 32, y.argsort()), "intent": "serve"}


@healthy(case="F22", half="tune", tempts=("N06", "N26"))
def unshuffled_validation_loader(seed: int) -> dict[str, Any]:
    """Train mode with its shuffled loader; the validation loader, which eval mode reads, is sorted."""
    x, y = images(seed, 768, "val")
    return {
        "model": trained_cnn(seed), "loader": stream(*images(seed), 32, seed),
        "val_loader": batches(x, y, 32, y.argsort()),
    }  # fmt: skip


def _windows(seed: int, recordings: int = 60, each: int = 24) -> Batch:
    """Overlapping windows of recordings that have gains and offsets of their own, all of one recording in a row."""
    x, y = sequences(seed, recordings, length=48 + each, features=6)
    draw = generator(seed, "gains")
    x = x * torch.exp(0.4 * torch.randn(recordings, 1, 1, generator=draw))
    x = x + torch.randn(recordings, 1, 6, generator=draw)
    cut = torch.stack([x[:, start : start + 48] for start in range(each)], 1)
    return cut.flatten(0, 1), y.repeat_interleave(each)


@healthy(case="H11", half="judge", tempts=("N06", "N08"))
def windows_shuffled_over_recordings(seed: int) -> dict[str, Any]:
    """Windows overlap, but every batch draws from all recordings."""
    x, y = _windows(seed)
    model = fit(Temporal(6, outputs=4), shuffled(x, y, 64, seed))
    return {"model": model, "loader": stream(x, y, 64, seed)}


@healthy(case="H11", half="tune", tempts=("N06", "N08"))
def data_set_in_groups_read_at_random(seed: int) -> dict[str, Any]:
    """Pictures stored by class and read in random order; the loader is sized and batched by an index sampler."""
    x, y = images(seed)
    order = y.argsort()
    model = fit(CNN(), shuffled(x[order], y[order], 32, seed))
    return {"model": model, "loader": stream(x[order], y[order], 32, seed)}


class _Stream(IterableDataset[Batch]):
    """Samples sorted by class that leave through a shuffle buffer of most of the data."""

    def __init__(self, x: Tensor, y: Tensor, seed: int, buffer: int) -> None:
        self.x, self.y, self.seed, self.buffer = x, y, seed, buffer

    def __iter__(self) -> Iterator[Batch]:
        draw, held = generator(self.seed, "buffer"), list(range(self.buffer))
        for new in range(self.buffer, len(self.x)):
            k = int(torch.randint(self.buffer, (), generator=draw))
            held[k], out = new, held[k]
            yield self.x[out], self.y[out]
        for k in torch.randperm(self.buffer, generator=draw).tolist():
            yield self.x[held[k]], self.y[held[k]]


@healthy(case="plain", half="judge", tempts=("N06", "N05"))
def shuffle_buffer_as_large_as_the_data(seed: int) -> dict[str, Any]:
    """A stream of unknown length, sorted by class before its shuffle buffer."""
    x, y = images(seed)
    order = y.argsort()
    return {"model": trained_cnn(seed), "loader": DataLoader(_Stream(x[order], y[order], seed, 960), 32)}


@healthy(case="plain", half="tune", tempts=("N06",))
def unshuffled_but_random(seed: int) -> dict[str, Any]:
    """``shuffle=False`` over data that lie in random order."""
    return {"model": trained_cnn(seed), "loader": DataLoader(TensorDataset(*images(seed)), 32, shuffle=False)}


@healthy(case="H14", half="judge", tempts=("N12", "N04"))
def shard_of_one_rank(seed: int) -> dict[str, Any]:
    """Plain batch norm over 32 pictures a rank, without synchronization."""
    data = TensorDataset(*images(seed, 4096))
    sampler = DistributedSampler(data, num_replicas=4, rank=1, seed=seed)
    return {"model": trained_cnn(seed), "loader": DataLoader(data, 32, sampler=sampler)}


class _Graphs(nn.Module):
    """Two rounds of message passing with norms over nodes, averaged by graph."""

    def __init__(self, features: int = 8, width: int = 32) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Linear(features, width), nn.BatchNorm1d(width)
        self.two, self.norm2 = nn.Linear(width, width), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, nodes: Tensor, graph: Tensor) -> Tensor:
        h = nodes
        for layer, norm in ((self.one, self.norm1), (self.two, self.norm2)):
            h = F.relu(norm(layer(h + self._mean(h, graph)[graph])))
        return self.head(self._mean(h, graph))  # type: ignore[no-any-return]

    @staticmethod
    def _mean(h: Tensor, graph: Tensor) -> Tensor:
        total = torch.zeros(int(graph[-1]) + 1, h.shape[1]).index_add(0, graph, h)
        return total / torch.bincount(graph)[:, None]


def _graph_batch(seed: int, number: int) -> tuple[dict[str, Tensor], Tensor]:
    """Thirty-two graphs of 4 to 40 nodes; the class decides the nodes' mean, the size decides nothing."""
    draw = generator(seed, "graphs", number)
    y = torch.randint(4, (32,), generator=draw)
    graph = torch.arange(32).repeat_interleave(torch.randint(4, 41, (32,), generator=draw))
    centres = torch.randn(4, 8, generator=generator(seed, "centres"))
    return {"nodes": centres[y][graph] + torch.randn(len(graph), 8, generator=draw), "graph": graph}, y


@healthy(case="H17", half="tune", tempts=("N04", "N14", "N06"))
def graphs_of_varying_size(seed: int) -> dict[str, Any]:
    """The number of nodes changes from batch to batch."""
    loader = [_graph_batch(seed, number) for number in range(32)]

    def loss(model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        return F.cross_entropy(model(**batch[0]), batch[1])

    model = fit(_Graphs(), loader, 128, loss=loss)
    return {"model": model, "loader": loader, "loss": loss, "forward": lambda model, batch: model(**batch[0])}


@healthy(case="plain", half="judge", tempts=("N05", "N04"))
def last_batch_dropped(seed: int) -> dict[str, Any]:
    """A thousand and one points in batches of 50, the last point left out, as norms over single values need it."""
    x, y = flat(seed, 1001)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    fit(model, shuffled(x, y, 50, seed), 300, optimizer=optimizer)
    loader = stream(x, y, 50, seed, drop_last=True)
    return {"model": model, "loader": loader, "optimizer": optimizer, "step": stepper(model, optimizer, loader)}


@healthy(case="plain", half="tune", tempts=("N05",))
def last_picture_alone_with_its_map(seed: int) -> dict[str, Any]:
    """One picture still has 64 values a channel where it has the fewest."""
    x, y = images(seed, 769)
    return {"model": learned(CNN(), seed)["model"], "loader": batches(x, y, 32)}


@healthy(case="plain", half="judge", tempts=("N05", "N26"))
def last_validation_sample_alone(seed: int) -> dict[str, Any]:
    """A norm over single values, and a validation set whose last batch has one; eval mode does not mind."""
    x, y = flat(seed, 769, "val")
    model = fit(mlp(), shuffled(*flat(seed), 64, seed), 300)
    return {"model": model, "loader": stream(*flat(seed), 64, seed), "val_loader": batches(x, y, 64)}


@healthy(case="plain", half="tune", tempts=("N06", "N29"))
def replay_and_acting(seed: int) -> dict[str, Any]:
    """A policy acts in eval mode on consecutive states, which drift slowly; it learned from shuffled replay."""
    x, y = flat(seed, 2048)
    order = (x[:, 0] + 0.3 * x.std() * torch.randn(len(x), generator=generator(seed, "walk"))).argsort()
    model = fit(mlp(), shuffled(x, y, 64, seed), 300)
    return {"model": model.eval(), "loader": batches(x, y, 64, order), "intent": "serve"}


@healthy(case="plain", half="judge", tempts=("N29", "N01"))
def tasks_of_a_meta_learner_evaluated_together(seed: int) -> dict[str, Any]:
    """Transductive evaluation, told: each batch is a task, normalized by itself."""
    loader = [(x[:, :16] * (1 + k % 3), y) for k, (x, y) in enumerate(batches(*flat(seed, 1024), 64))]
    model = fit(mlp(), loader, 200)
    return {"model": model, "loader": loader, "intent": "transductive"}


@healthy(case="plain", half="tune", tempts=("N02", "N26"))
def validation_set_is_small(seed: int) -> dict[str, Any]:
    """Six batches of the training distribution decide little."""
    return {
        "model": trained_cnn(seed), "loader": stream(*images(seed), 32, seed),
        "val_loader": pictures(seed, "val", count=6),
    }  # fmt: skip
