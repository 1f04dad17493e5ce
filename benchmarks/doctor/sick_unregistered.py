"""Norms that belong to no registered module (N21)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.doctor.data import CNN, batches, fit, flat, images, mlp, pictures, shuffled
from benchmarks.doctor.setup import sick

_BOTH = {"N01", "N21"}


class BuiltInForward(CNN):
    """Builds its norms in forward: always new, always in train mode."""

    def __init__(self) -> None:
        super().__init__(lambda _: nn.Identity())

    def features(self, x: Tensor) -> Tensor:
        """As `CNN`."""
        x = F.relu(nn.BatchNorm2d(16).to(x.device)(self.conv1(x)))
        x = F.relu(nn.BatchNorm2d(32).to(x.device)(self.conv2(x)))
        return x.mean(dim=(2, 3))


@sick("N21", "N01", case="C14", half="tune", accepted=_BOTH)
def norms_built_in_forward(seed: int) -> dict[str, Any]:
    """A norm made in forward has no place for statistics, and eval() does not know it."""
    model = fit(BuiltInForward(), shuffled(*images(seed), 32, seed))
    return {"model": model.eval(), "loader": pictures(seed, "val"), "intent": "serve"}


class InAList(nn.Module):
    """Layers in a ModuleList, norms in a list of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 32)])
        self.norms = [nn.BatchNorm1d(32), nn.BatchNorm1d(32)]
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x)))
        logits: Tensor = self.head(x)
        return logits


@sick("N21", "N01", case="C13", half="judge", accepted=_BOTH)
def norms_in_a_list(seed: int) -> dict[str, Any]:
    """Norms in a list of Python: not trained, not saved, not put in eval."""
    model = fit(InAList(), shuffled(*flat(seed), 32, seed), 300)
    return {"model": model.eval(), "loader": batches(*flat(seed, 24 * 32, "val"), 32), "intent": "serve"}


class Functional(CNN):
    """Normalizes by the function, always by batch statistics."""

    def __init__(self) -> None:
        super().__init__(lambda _: nn.Identity())

    def features(self, x: Tensor) -> Tensor:
        """As `CNN`."""
        x = F.relu(F.batch_norm(self.conv1(x), None, None, training=True))
        x = F.relu(F.batch_norm(self.conv2(x), None, None, training=True))
        return x.mean(dim=(2, 3))


@sick("N21", "N01", case="C14", half="judge", accepted=_BOTH)
def functional_norm_always_training(seed: int) -> dict[str, Any]:
    """F.batch_norm(..., training=True), whatever the mode."""
    model = fit(Functional(), shuffled(*images(seed), 32, seed))
    return {"model": model.eval(), "loader": pictures(seed, "val"), "intent": "serve"}


class Whitened(nn.Module):
    """Standardizes each feature over the batch by hand before a registered network."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(16)
        self.variance = torch.ones(16)
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(F.batch_norm(x, self.mean, self.variance, training=True))
        return logits


@sick("N21", "N01", case="C13", half="tune", accepted=_BOTH)
def statistics_in_plain_attributes(seed: int) -> dict[str, Any]:
    """A functional norm whose statistics are plain tensors, beside norms that are registered and in eval."""
    model = fit(Whitened(), shuffled(*flat(seed), 32, seed), 300)
    return {"model": model.eval(), "loader": batches(*flat(seed, 24 * 32, "val"), 32), "intent": "serve"}
