"""Several forward passes in one training step, and no harm in it."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from benchmarks.doctor.data import CNN, Batch, batches, cross_entropy, images, pictures, shuffled, trained_cnn
from benchmarks.doctor.healthy_nets import cooled, stepper, stream
from benchmarks.doctor.setup import healthy


def _accumulated(seed: int, size: int, count: int) -> dict[str, Any]:
    x, y = images(seed)
    model = CNN()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    supply = shuffled(x, y, size, seed)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(count):
            one, label = next(supply)
            (F.cross_entropy(model(one), label) / count).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(100):
        step()
    optimizer.zero_grad()
    return {"model": model, "loader": stream(x, y, size, seed), "optimizer": optimizer, "step": step}


@healthy(case="H21", half="judge", tempts=("N09", "N04"))
def accumulated_micro_batches_of_16(seed: int) -> dict[str, Any]:
    """Four micro-batches a step; statistics move four times, each time by a good estimate."""
    return _accumulated(seed, 16, 4)


@healthy(case="H21", half="tune", tempts=("N09", "N04"))
def accumulated_micro_batches_of_32(seed: int) -> dict[str, Any]:
    """Two micro-batches a step."""
    return _accumulated(seed, 32, 2)


class _Checkpointed(nn.Module):
    """A CNN whose middle is computed twice, and whose norm there is told so by its momentum."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32, momentum=momentum), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.middle, self.enter(x), use_reentrant=False)
        return self.head(h.mean((2, 3)))  # type: ignore[no-any-return]


def _checkpointed(seed: int, momentum: float) -> dict[str, Any]:
    x, y = images(seed)
    model = _Checkpointed(momentum)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    cooled(model, shuffled(x, y, 64, seed), 120, optimizer=optimizer)
    loader = stream(x, y, 64, seed)
    return {"model": model, "loader": loader, "optimizer": optimizer, "step": stepper(model, optimizer, loader)}


@healthy(case="plain", half="tune", tempts=("N09", "N10"))
def checkpointed_with_corrected_momentum(seed: int) -> dict[str, Any]:
    """Two updates a step at momentum 1 - sqrt(1 - 0.1) are one at 0.1."""
    return _checkpointed(seed, 1 - 0.9**0.5)


@healthy(case="plain", half="judge", tempts=("N09",))
def checkpointed_with_good_batches(seed: int) -> dict[str, Any]:
    """Two updates a step at the default momentum; estimates from 64 pictures are good enough for it."""
    return _checkpointed(seed, 0.1)


def _bypassed(model: nn.Module, momentum: float) -> None:
    for one in model.modules():
        if isinstance(one, _BatchNorm):
            one.momentum = momentum


@healthy(case="plain", half="tune", tempts=("N09", "N10"))
def sharpness_aware_with_bypassed_statistics(seed: int) -> dict[str, Any]:
    """Two forwards a step; the second, at perturbed weights, runs with momentum 0 and leaves statistics alone."""
    x, y = images(seed)
    model = CNN()
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    supply = shuffled(x, y, 32, seed)

    def step() -> None:
        batch = next(supply)
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()  # type: ignore[no-untyped-call]
        parameters = [one for one in model.parameters() if one.grad is not None]
        norm = torch.stack([one.grad.norm() for one in parameters if one.grad is not None]).norm()
        moves = [0.05 * one.grad / norm for one in parameters if one.grad is not None]
        with torch.no_grad():
            torch._foreach_add_(parameters, moves)
        _bypassed(model, 0.0)
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()  # type: ignore[no-untyped-call]
        _bypassed(model, 0.1)
        with torch.no_grad():
            torch._foreach_sub_(parameters, moves)
        optimizer.step()

    for _ in range(100):
        step()
    optimizer.zero_grad()
    return {"model": model, "loader": stream(x, y, 32, seed), "optimizer": optimizer, "step": step}


def _attacked(model: nn.Module, batch: Batch, radius: float) -> Tensor:
    """The batch moved against the model by the sign of the gradient (Goodfellow et al. 2015)."""
    x = batch[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(model, (x, batch[1])), x)
    return batch[0] + radius * slope.sign()


@healthy(case="F23", half="judge", tempts=("N09", "N07", "N18"))
def attacked_in_train_mode(seed: int) -> dict[str, Any]:
    """Adversarial training whose attack runs in train mode: two updates a step by nearly the same distribution."""
    x, y = images(seed)
    model = CNN()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    supply = itertools.cycle(batches(x, y, 64))

    def step() -> None:
        batch = next(supply)
        moved = _attacked(model, batch, 0.05)
        optimizer.zero_grad()
        cross_entropy(model, (moved, batch[1])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(80):
        step()
    optimizer.zero_grad()
    return {"model": model, "loader": stream(x, y, 64, seed), "optimizer": optimizer, "step": step}


@healthy(case="plain", half="tune", tempts=("N07", "N09"))
def trained_cnn_called_for_a_metric(seed: int) -> dict[str, Any]:
    """The step looks at accuracy in eval mode and goes back to train mode before it trains."""
    model = trained_cnn(seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    supply, check = itertools.cycle(pictures(seed)), pictures(seed, "val", count=1)[0]

    def step() -> None:
        model.eval()
        with torch.no_grad():
            model(check[0])
        model.train()
        optimizer.zero_grad()
        cross_entropy(model, next(supply)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(3):
        step()
    optimizer.zero_grad()
    return {"model": model, "loader": stream(*images(seed), 32, seed), "optimizer": optimizer, "step": step}
