"""One deep linear network of Santurkar et al. 2018, trained and watched."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bnprobe
from analyses.trials import Attempt
from bnprobe.statistics import GradientShift, Landscape

__all__ = ["deep_linear", "squared_error", "train_network"]

_PROGRESS_STEPS = 50
# Of the learning rate, as the paper has it for this network: [1/100, 30]; how many in between is ours.
_STEPS_ALONG = tuple(float(one) for one in np.geomspace(0.01, 30, 6))


def deep_linear(depth: int, width: int, *, batch_norm: bool, init: str, seed: int) -> nn.Sequential:
    """Square linear layers without biases in double precision; with batch norm behind each of them but the last.

    The weights depend on ``seed`` alone: both arms begin with the same ones.

    Args:
        depth: number of linear layers.
        width: of each.
        batch_norm: whether there is batch norm between them.
        init: ``glorot`` (Gaussian, variance 1 / width) or ``orthogonal``.
        seed: of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential()
    for k in range(depth):
        with torch.device("meta"):  # torch's own initialization would draw from the global random stream
            layer = nn.Linear(width, width, bias=False, dtype=torch.float64)
        layer = layer.to_empty(device="cpu")
        gaussian = torch.randn(width, width, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            layer.weight.copy_(torch.linalg.qr(gaussian)[0] if init == "orthogonal" else gaussian / math.sqrt(width))
        network.add_module(f"linear{k + 1}", layer)
        if batch_norm and k + 1 < depth:
            network.add_module(f"norm{k + 1}", nn.BatchNorm1d(width, dtype=torch.float64))
    return network


def squared_error(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Sum over all samples and outputs."""
    x, y = batch
    found: Tensor = (network(x) - y).square().sum()
    return found


def train_network(settings: Mapping[str, Any], attempt: Attempt) -> Mapping[str, Any]:
    """Full-batch gradient descent on Gaussian data.

    Args:
        settings: ``batch_norm``, ``init``, ``seed``, ``depth``, ``width``, ``samples``, ``steps``, ``every``,
            ``learning_rate``.
        attempt: a probe records gradient shift and landscape in its ``run``.

    Returns:
        The loss per sample before each recorded step and at the end, of all data; the checksum of the initial weights.
    """
    generator = torch.Generator().manual_seed(1_000_003 + settings["seed"])
    width, steps, every, rate = (settings[name] for name in ("width", "steps", "every", "learning_rate"))
    x = torch.randn(settings["samples"], width, dtype=torch.float64, generator=generator)
    y = x @ torch.randn(width, width, dtype=torch.float64, generator=generator).T
    network = deep_linear(
        settings["depth"], width, batch_norm=settings["batch_norm"], init=settings["init"], seed=settings["seed"]
    )
    digest = hashlib.sha256(b"".join(_bytes(one) for one in network if isinstance(one, nn.Linear))).hexdigest()[:16]
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    watched = (
        GradientShift(squared_error, (x, y), every, nn.Linear),
        Landscape(squared_error, (x, y), [rate * one for one in _STEPS_ALONG], every),
    )
    losses: list[float] = []
    with bnprobe.attach(
        network, *watched, layers=nn.Linear, every=every, optimizer=optimizer, out=attempt.folder / "run"
    ):
        for step in range(steps):
            if step % _PROGRESS_STEPS == 0:
                attempt.progress(step, steps)
            loss = squared_error(network, (x, y))
            if step % every == 0:
                losses.append(loss.item() / len(x))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own lack of types
            optimizer.step()
    with torch.no_grad():
        losses.append(squared_error(network, (x, y)).item() / len(x))
    return {"losses": losses, "weights": digest, "finite": bool(np.isfinite(losses).all())}


def _bytes(layer: nn.Linear) -> bytes:
    return np.ascontiguousarray(layer.weight.detach().numpy()).tobytes()
