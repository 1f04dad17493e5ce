"""Statistics over ranks (N12), and layers that keep none (N13)."""

import copy
from typing import Any

import torch
from torch import nn

from benchmarks.doctor.data import (
    CNN,
    Batch,
    batches,
    cross_entropy,
    fit,
    flat,
    images,
    pictures,
    shared,
    shuffled,
    trained_cnn,
    trained_mlp,
)  # fmt: skip
from benchmarks.doctor.setup import sick

# N12 -----------------------------------------------------------------------------------------------------------------


def _site(seed: int, rank: int, part: str) -> Batch:
    """What a rank sees: every rank reads the pictures of another scanner."""
    x, y = images(seed, 768, f"{part} {rank}")
    return (1 + 0.8 * rank) * x + 0.8 * rank, y


@shared
def _two_ranks(seed: int, steps: int) -> tuple[nn.Module, nn.Module]:
    """Two replicas with averaged gradients, hence equal weights, and buffers of their own."""
    ranks = [CNN(), CNN()]
    ranks[1].load_state_dict(ranks[0].state_dict())
    optimizers = [torch.optim.Adam(one.parameters(), lr=3e-3) for one in ranks]
    streams = [shuffled(*_site(seed, rank, "train"), 32, seed + rank) for rank in range(2)]
    for _ in range(steps):
        for model, stream in zip(ranks, streams, strict=True):
            model.zero_grad()
            cross_entropy(model, next(stream)).backward()  # type: ignore[no-untyped-call]
        for mine, other in zip(*(one.parameters() for one in ranks), strict=True):
            assert mine.grad is not None
            assert other.grad is not None
            mine.grad.copy_((mine.grad + other.grad) / 2)
            other.grad.copy_(mine.grad)
        for optimizer in optimizers:
            optimizer.step()
    for one in ranks:
        one.zero_grad()
    return ranks[0], ranks[1]


def _all_sites(seed: int, part: str) -> list[Batch]:
    """Batches of both scanners mixed."""
    pieces = [_site(seed, rank, part) for rank in range(2)]
    x, y = (torch.cat([one[i] for one in pieces]) for i in range(2))
    return batches(x, y, 64, order=torch.randperm(len(x)))


@sick("N12", case="C72", half="tune", accepted={"N02"})
def ranks_keep_their_buffers(seed: int) -> dict[str, Any]:
    """broadcast_buffers=False and a scanner for each rank: rank 0 is evaluated on all."""
    ranks = _two_ranks(seed, 150)
    told = {"ranks": [one.state_dict() for one in ranks]}
    return {"model": ranks[0].eval(), "loader": _all_sites(seed, "val"), **told}


@sick("N12", case="C75", half="judge", accepted={"N02"})
def refresh_without_synchronization(seed: int) -> dict[str, Any]:
    """Every rank re-estimated its statistics on its own shard, which is one scanner, and none exchanged them."""
    ranks = [copy.deepcopy(one).train() for one in _two_ranks(seed, 120)]
    for rank, model in enumerate(ranks):
        for one in (model.bn1, model.bn2):
            assert isinstance(one, nn.BatchNorm2d)
            one.reset_running_stats()
            one.momentum = None
        with torch.no_grad():
            for x, _ in batches(*_site(seed, rank, "train"), 32):
                model(x)
        for one in (model.bn1, model.bn2):
            assert isinstance(one, nn.BatchNorm2d)
            one.momentum = 0.1
    told = {"ranks": [one.state_dict() for one in ranks]}
    return {"model": ranks[0].eval(), "loader": _all_sites(seed, "val"), **told}


def _converted(model: nn.Module) -> nn.Module:
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted


@sick("N12", case="C73", half="judge", accepted={"N04"})
def synchronized_norm_without_processes(seed: int) -> dict[str, Any]:
    """Converted to SyncBatchNorm with eight pictures on a device, in a process that belongs to no group."""
    model = _converted(trained_cnn(seed)).train()
    return {"model": model, "loader": pictures(seed, count=32, size=8)}


@sick("N12", case="C73", half="tune", accepted={"N04"})
def synchronized_norm_in_data_parallel(seed: int) -> dict[str, Any]:
    """SyncBatchNorm in DataParallel, where it synchronizes nothing."""
    model = nn.DataParallel(_converted(trained_cnn(seed))).train()
    return {"model": model, "loader": pictures(seed, count=32, size=8)}


# N13 -----------------------------------------------------------------------------------------------------------------


@sick("N13", "N01", case="C61", half="tune", accepted={"N01", "N13"})
def built_without_statistics(seed: int) -> dict[str, Any]:
    """Running statistics were switched off so that tasks do not overwrite them; it serves by batch statistics for ever."""
    model = CNN(lambda channels: nn.BatchNorm2d(channels, track_running_stats=False))
    fit(model, shuffled(*images(seed), 32, seed))
    return {"model": model.eval(), "loader": pictures(seed, "val"), "intent": "serve"}


@sick("N13", case="C65", half="judge", accepted={"N02"})
def tracking_switched_off_afterwards(seed: int) -> dict[str, Any]:
    """Meant as a freeze: training goes by batch statistics, eval by the old buffers."""
    model = trained_cnn(seed)
    for one in (model.bn1, model.bn2):
        assert isinstance(one, nn.BatchNorm2d)
        one.track_running_stats = False
    x, y = images(seed, 1024, "fine", noise=1.2)
    x = (x + 0.8 * x.roll(1, dims=3)).flip(1)
    fit(model.train(), shuffled(x, y, 32, seed), 100)
    return {"model": model.eval(), "loader": batches(x[:768], y[:768], 32)}


@sick("N13", "N01", case="C62", half="judge", accepted={"N01", "N13"})
def statistics_removed_as_a_cure(seed: int) -> dict[str, Any]:
    """Eval was bad, so the buffers were set to None: now the answer depends on who else is in the batch."""
    model = trained_mlp(seed).eval()
    for one in model:
        if isinstance(one, nn.BatchNorm1d):
            one.track_running_stats = False
            one.running_mean = one.running_var = one.num_batches_tracked = None
    return {"model": model, "loader": batches(*flat(seed, 24 * 32, "val"), 32), "intent": "serve"}


@sick("N13", case="C65", half="tune", accepted={"N02"})
def tracking_switched_off_on_points(seed: int) -> dict[str, Any]:
    """The same freeze by a flag in a classifier of points, fine-tuned on points of another spread."""
    model = trained_mlp(seed)
    for one in model:
        if isinstance(one, nn.BatchNorm1d):
            one.track_running_stats = False
    x, y = flat(seed, 1024, "fine")
    x = x.sign() * x.abs().sqrt()
    fit(model.train(), shuffled(x, y, 32, seed), 150)
    return {"model": model.eval(), "loader": batches(x[:768], y[:768], 32)}
