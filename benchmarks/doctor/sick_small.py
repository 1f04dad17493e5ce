"""Too few values for batch statistics (N04), or a single one (N05)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.doctor.data import (
    CNN,
    batches,
    cross_entropy,
    fit,
    flat,
    generator,
    images,
    mlp,
    pictures,
    shared,
    shuffled,
    trained_mlp,
)  # fmt: skip
from benchmarks.doctor.setup import sick


class Pooling(CNN):
    """With an image-pooling branch: mean-conv1x1-norm-ReLU on a map of one pixel, as segmentation networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Conv2d(32, 32, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)

    def features(self, x: Tensor) -> Tensor:
        """Local features plus the branch: ``[N, 32]``."""
        local = super().features(x)
        return local + F.relu(self.bn3(self.pool(local[:, :, None, None])))[:, :, 0, 0]


# N04 -----------------------------------------------------------------------------------------------------------------


@sick("N04", case="C45", half="tune")
def two_pictures_a_batch(seed: int) -> dict[str, Any]:
    """Batches of two pictures whose contrast and brightness differ more than what is on them."""
    unlike = {"gain": 0.7, "offset": 1.0, "noise": 0.5, "classes": 4}
    model = fit(CNN(classes=4), shuffled(*images(seed, **unlike), 2, seed), 600)
    return {"model": model, "loader": pictures(seed, count=32, size=2, **unlike)}


@sick("N04", case="C42", half="judge", accepted={"N02"})
def four_points_a_device(seed: int) -> dict[str, Any]:
    """A classifier of points with four samples on each device."""
    model = fit(mlp(), shuffled(*flat(seed), 4, seed), 500)
    return {"model": model, "loader": batches(*flat(seed, 32 * 4), 4)}


@sick("N04", "N09", case="C43", half="tune", accepted={"N04", "N09"})
def accumulation_of_pairs(seed: int) -> dict[str, Any]:
    """Sixteen micro-batches of two before each step, in the belief that it equals a batch of thirty-two."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    stream = shuffled(*flat(seed), 2, seed)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(16):
            (cross_entropy(model, next(stream)) / 16).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(80):
        step()
    return {"model": model, "loader": batches(*flat(seed, 64), 2), "step": step, "optimizer": optimizer}


@sick("N04", case="C39", half="judge")
def pooling_branch_of_three(seed: int) -> dict[str, Any]:
    """Three pictures a batch are plenty for the maps and three values for the image-pooling branch."""
    model = fit(Pooling(), shuffled(*images(seed), 3, seed), 300)
    return {"model": model, "loader": pictures(seed, count=32, size=3)}


@shared
def _trained_pooling(seed: int) -> Pooling:
    """Trained with a learning rate that falls, so that weights stand still while statistics follow."""
    model, stream = Pooling(), shuffled(*images(seed), 32, seed)
    fit(model, stream, 100)
    fit(model, stream, 60, lr=3e-4)
    return model


# N05 -----------------------------------------------------------------------------------------------------------------


def _dataset_loader(seed: int, x: Tensor, y: Tensor, size: int) -> "DataLoader[Any]":
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True, generator=generator(seed, "loader"))


@sick("N05", case="C38", half="tune")
def last_batch_of_one_point(seed: int) -> dict[str, Any]:
    """1000 points in batches of 37: the last batch of an epoch has one, and training stops with an error."""
    return {"model": trained_mlp(seed).train(), "loader": _dataset_loader(seed, *flat(seed, 1000), 37)}


@sick("N05", case="C39", half="judge")
def batch_forty_one_has_one_picture(seed: int) -> dict[str, Any]:
    """1281 pictures in batches of 32: only the image-pooling branch fails, in batch 41."""
    return {"model": _trained_pooling(seed), "loader": _dataset_loader(seed, *images(seed, 1281), 32)}


@sick("N05", case="C38", half="judge")
def last_batch_of_one_in_a_list(seed: int) -> dict[str, Any]:
    """A list of batches, the last with a single point."""
    return {"model": trained_mlp(seed).train(), "loader": batches(*flat(seed, 24 * 32 + 1), 32)}


@sick("N05", case="C39", half="tune")
def one_picture_left_over(seed: int) -> dict[str, Any]:
    """A list of batches of pictures, the last with a single one, for a network with an image-pooling branch."""
    return {"model": _trained_pooling(seed), "loader": batches(*images(seed, 24 * 32 + 1), 32)}
