"""Statistics updated more than once a step (N09), or by a momentum that cannot be meant (N10)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.doctor.data import CNN, batches, cross_entropy, fit, flat, images, pictures, shuffled, trained_mlp
from benchmarks.doctor.setup import sick

_UNEVEN = {"offset": 0.5}  # colours of pictures differ: a batch of 16 holds some twenty independent values a channel


class Recomputed(CNN):
    """Recomputes its blocks in the backward pass to save memory."""

    def features(self, x: Tensor) -> Tensor:
        """As `CNN`, by activation checkpointing."""
        x = checkpoint(lambda x: F.relu(self.bn1(self.conv1(x))), x, use_reentrant=False)
        x = checkpoint(lambda x: F.relu(self.bn2(self.conv2(x))), x, use_reentrant=False)
        return x.mean(dim=(2, 3))


# N09 -----------------------------------------------------------------------------------------------------------------


@sick("N09", case="C69", half="tune", accepted={"N04"})
def checkpointing_updates_twice(seed: int) -> dict[str, Any]:
    """Every block is run forward twice a step, on few pictures."""
    model = Recomputed()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    stream = shuffled(*images(seed, **_UNEVEN), 16, seed)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model, next(stream)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(120):
        step()
    told = {"step": step, "optimizer": optimizer}
    return {"model": model, "loader": pictures(seed, count=32, size=16, **_UNEVEN), **told}


@sick("N09", case="C70", half="judge", accepted={"N04"})
def sharpness_aware_updates_twice(seed: int) -> dict[str, Any]:
    """Sharpness-aware minimization: the second forward, at perturbed weights, updates the statistics too."""
    model = CNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    stream = shuffled(*images(seed, **_UNEVEN), 16, seed)

    def step() -> None:
        batch, parameters = next(stream), list(model.parameters())
        ascent = torch.autograd.grad(cross_entropy(model, batch), parameters)
        length = torch.stack([one.norm() for one in ascent]).norm()
        moves = [0.05 * one / length for one in ascent]
        with torch.no_grad():
            torch._foreach_add_(parameters, moves)
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            torch._foreach_sub_(parameters, moves)
        optimizer.step()

    for _ in range(80):
        step()
    told = {"step": step, "optimizer": optimizer}
    return {"model": model, "loader": pictures(seed, count=32, size=16, **_UNEVEN), **told}


def _step_with_metric(model: nn.Module, stream: Any, optimizer: torch.optim.Optimizer, extra: int) -> Any:
    def step() -> None:
        batch = next(stream)
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for _ in range(extra):
                model(batch[0]).argmax(1)

    return step


@sick("N09", case="C69", half="judge", accepted={"N04"})
def metric_forward_in_train_mode(seed: int) -> dict[str, Any]:
    """Accuracy on the training batch is computed by another forward in train mode after each step."""
    model = trained_mlp(seed, 100, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    step = _step_with_metric(model, shuffled(*flat(seed), 16, seed), optimizer, 1)
    for _ in range(60):
        step()
    return {"model": model, "loader": batches(*flat(seed, 32 * 16), 16), "step": step, "optimizer": optimizer}


@sick("N09", case="C69", half="tune", accepted={"N04"})
def several_metrics_in_train_mode(seed: int) -> dict[str, Any]:
    """Three metrics, each with a forward of its own in train mode."""
    model = trained_mlp(seed, 100, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    step = _step_with_metric(model, shuffled(*flat(seed), 16, seed), optimizer, 3)
    for _ in range(60):
        step()
    return {"model": model, "loader": batches(*flat(seed, 32 * 16), 16), "step": step, "optimizer": optimizer}


# N10 -----------------------------------------------------------------------------------------------------------------


def _with_momentum(momentum: float) -> CNN:
    return CNN(lambda channels: nn.BatchNorm2d(channels, momentum=momentum))


@sick("N10", case="C26", half="tune", accepted={"N02", "N04"})
def momentum_of_the_other_convention(seed: int) -> dict[str, Any]:
    """0.99 copied from TensorFlow: running statistics are those of the last eight pictures."""
    model = fit(_with_momentum(0.99), shuffled(*images(seed, offset=0.5), 8, seed), 200)
    return {"model": model, "loader": pictures(seed, count=32, size=8, offset=0.5)}


@sick("N10", case="C25", half="judge", accepted={"N02", "N20"})
def momentum_zero(seed: int) -> dict[str, Any]:
    """A port with momentum 0: statistics never move while everything else trains."""
    model = fit(_with_momentum(0.0), shuffled(*images(seed), 32, seed))
    return {"model": model, "loader": pictures(seed)}


@sick("N10", case="C26", half="judge", accepted={"N02", "N04"})
def momentum_large_on_points(seed: int) -> dict[str, Any]:
    """Momentum 0.9 where 0.1 was meant, for points in batches of sixteen."""
    model = trained_mlp(seed, 300, 16, momentum=0.9)
    return {"model": model, "loader": batches(*flat(seed, 32 * 16), 16)}


@sick("N10", case="C25", half="tune", accepted={"N02", "N20"})
def momentum_zero_on_points(seed: int) -> dict[str, Any]:
    """Momentum 0 in a classifier of points."""
    model = trained_mlp(seed, 300, 32, momentum=0.0)
    return {"model": model, "loader": batches(*flat(seed, 24 * 32), 32)}
