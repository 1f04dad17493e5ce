"""Training a classifier in a way that two arms can be compared: same images, same order, same initial weights.

Everything random comes from generators seeded with the trial's seed; torch's global stream is neither read nor moved.
"""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from analyses.data import Dataset

__all__ = [
    "Curve",
    "Evaluator",
    "Images",
    "Recipe",
    "data_order",
    "population",
    "sigmoid_mlp",
    "some_rows",
    "train",
    "weights_digest",
]

# Images used to re-estimate a network's population statistics: a mean over 10,000 images is off by 1 % of a standard
# deviation, well below what any curve shows, and a pass over them is fast enough to be made at every record (ours).
POPULATION_IMAGES = 10_000
_PROGRESS_STEPS = 50  # between two calls of ``progress``


@dataclass(frozen=True)
class Images:
    """Inputs ``[N, D]`` (uint8 or float32) and class numbers ``[N]`` on one device; ``scale`` makes inputs floats."""

    x: Tensor
    y: Tensor
    scale: float

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The rows as float32 inputs and class numbers."""
        return self.x[rows].float().mul_(self.scale), self.y[rows]

    def inputs(self) -> Tensor:
        """All inputs as float32."""
        return self.x.float().mul_(self.scale)

    def __len__(self) -> int:
        return len(self.y)

    def part(self, rows: Tensor) -> "Images":
        """Some of the images."""
        return Images(self.x[rows], self.y[rows], self.scale)

    @classmethod
    def from_dataset(cls, data: Dataset, part: str, *, binary: bool, device: str = "cpu") -> "Images":
        """The ``train`` or ``test`` part of a data set, one row an image.

        Args:
            data: images with 256 grey levels.
            part: ``train`` or ``test``.
            binary: 1 where a pixel is brighter than half, else 0; otherwise grey levels from 0 to 1.
            device: where to put them.
        """
        x = torch.from_numpy(getattr(data, f"x_{part}")).flatten(1)
        y = torch.from_numpy(getattr(data, f"y_{part}"))
        pixels, scale = ((x > 127).to(torch.uint8), 1.0) if binary else (x, 1 / 255)
        return cls(pixels.to(device), y.to(device), scale)


@dataclass(frozen=True)
class Recipe:
    """How to train, and when to look.

    Attributes:
        steps: number of updates.
        batch: images an update.
        every: look at the network every so many steps; also before the first and after the last.
        seed: of the order of the images.
    """

    steps: int
    batch: int
    every: int
    seed: int

    def looks(self, step: int) -> bool:
        """Whether the network is looked at after ``step`` updates."""
        return step % self.every == 0 or step == self.steps


@dataclass
class Curve:
    """What was seen of a network after so many updates."""

    steps: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    moving_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)


def sigmoid_mlp(
    inputs: int, classes: int, *, width: int, depth: int, batch_norm: bool, std: float, seed: int
) -> nn.Sequential:
    """Fully connected sigmoid layers and a linear classifier, with or without batch norm before each sigmoid.

    Weights are Gaussian with mean 0 and standard deviation ``std``, biases 0. The weights depend on ``seed`` alone:
    both arms begin with the same ones. With batch norm a hidden layer has no bias, since beta takes its place.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = OrderedDict(
        (f"hidden{k + 1}", _hidden(inputs if k == 0 else width, width, batch_norm)) for k in range(depth)
    )
    network = nn.Sequential(OrderedDict(**hidden, classifier=_empty_linear(width, classes, bias=True)))
    with torch.no_grad():
        for layer in _linear(network):
            layer.weight.normal_(0.0, std, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
    return network


def _hidden(inputs: int, width: int, batch_norm: bool) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict(linear=_empty_linear(inputs, width, bias=not batch_norm))
    if batch_norm:
        parts["norm"] = nn.BatchNorm1d(width)
    parts["sigmoid"] = nn.Sigmoid()
    return nn.Sequential(parts)


def _empty_linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    """Without torch's own initialization, which would draw from the global random stream."""
    with torch.device("meta"):
        layer = nn.Linear(inputs, outputs, bias=bias)
    return layer.to_empty(device="cpu")


def _linear(network: nn.Module) -> Iterator[nn.Linear]:
    return (layer for layer in network.modules() if isinstance(layer, nn.Linear))


def weights_digest(network: nn.Module) -> str:
    """A short checksum of the weights of all linear layers: the same for two arms that begin alike."""
    digest = hashlib.sha256()
    for layer in _linear(network):
        digest.update(np.ascontiguousarray(layer.weight.detach().cpu().numpy()).data)
    return digest.hexdigest()[:16]


def data_order(images: int, steps: int, batch: int, seed: int) -> Tensor:
    """``[steps, batch]`` image numbers: one pass after the other over all images, each pass shuffled anew."""
    generator = torch.Generator().manual_seed(seed)
    passes = -(-steps * batch // images)
    order = torch.cat([torch.randperm(images, generator=generator) for _ in range(passes)])
    return order[: steps * batch].view(steps, batch)


def some_rows(images: int, wanted: int) -> Tensor:
    """Numbers of at most ``wanted`` images, chosen at random but always the same ones, ascending.

    At random, because data sets have an order: MNIST alternates between easy and hard writers, so that every sixth
    image is an unfair choice.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(images, generator=generator)[:wanted].sort().values


def population(network: nn.Module, inputs: Tensor) -> Mapping[str, Tensor]:
    """Batch-norm buffers with the statistics of ``inputs`` as one batch, for the weights as they are.

    Each layer's statistics are those that it has when the layers before it normalize with theirs. The network's own
    buffers end as they are returned: hand in a copy.
    """
    norms = {name: layer for name, layer in network.named_modules() if isinstance(layer, _BatchNorm)}
    for layer in norms.values():
        layer.momentum = 1.0  # the buffers then hold this batch alone
    if norms:
        network.train()
        with torch.no_grad():
            network(inputs)
    return {
        f"{name}.{buffer}": getattr(layer, buffer)
        for name, layer in norms.items()
        for buffer in ("running_mean", "running_var")
    }


@contextmanager
def _with_buffers(network: nn.Module, buffers: Mapping[str, Tensor]) -> Iterator[None]:
    """Other buffer values for a while."""
    own = dict(network.named_buffers())
    kept = {name: own[name].clone() for name in buffers}
    for name, value in buffers.items():
        own[name].copy_(value)
    try:
        yield
    finally:
        for name, value in kept.items():
            own[name].copy_(value)


class Evaluator:
    """Test accuracy of a network in training, in evaluation mode.

    Made before probes are attached: it keeps a copy of the network for passes that no probe should see. The one pass of
    the network itself, over all test images, is the one that probes record.

    Args:
        network: the network.
        train: training images: the population statistics are re-estimated from at most ``POPULATION_IMAGES`` of them.
        test: test images.
    """

    def __init__(self, network: nn.Module, train: Images, test: Images) -> None:
        self._network, self._copy = network, copy.deepcopy(network)
        self._seen = train.part(some_rows(len(train), POPULATION_IMAGES).to(train.y.device)).inputs()
        self._x, self._y = test.inputs(), test.y
        self._has_norm = any(isinstance(layer, _BatchNorm) for layer in network.modules())

    def look(self, step: int, curve: Curve) -> None:
        """Append test accuracy and loss, with re-estimated population statistics and with the moving averages."""
        self._copy.load_state_dict(self._network.state_dict())
        moving = self._test(self._copy)[0] if self._has_norm else None
        with _with_buffers(self._network, population(self._copy, self._seen)):
            accuracy, loss = self._test(self._network)
        curve.steps.append(step)
        curve.accuracy.append(accuracy)
        curve.moving_accuracy.append(accuracy if moving is None else moving)
        curve.test_loss.append(loss)

    def _test(self, network: nn.Module) -> tuple[float, float]:
        network.eval()
        with torch.no_grad():
            scores = network(self._x)
            right = (scores.argmax(1) == self._y).double().mean()
            loss = F.cross_entropy(scores, self._y)
        network.train()
        return float(right), float(loss)


def train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Images,
    recipe: Recipe,
    evaluator: Evaluator,
    progress: Callable[[int, int], Any] = lambda _done, _total: None,
) -> Curve:
    """Train and look.

    Args:
        network: in training mode afterwards.
        optimizer: of its parameters.
        images: training images.
        recipe: how.
        evaluator: made from ``network`` before anything was attached to it.
        progress: called now and then with the steps done and their number.

    Returns:
        The curve; ``train_loss`` is the loss of the batch that follows each look (of the last one, after the last).
    """
    curve = Curve()
    order = data_order(len(images), recipe.steps, recipe.batch, recipe.seed).to(images.y.device)
    network.train()
    loss = torch.full((), torch.nan)
    for step in range(recipe.steps):
        look = recipe.looks(step)
        if look:
            evaluator.look(step, curve)
        if step % _PROGRESS_STEPS == 0:
            progress(step, recipe.steps)
        x, y = images.batch(order[step])
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own lack of types
        optimizer.step()
        if look:
            curve.train_loss.append(float(loss.detach()))
    evaluator.look(recipe.steps, curve)
    curve.train_loss.append(float(loss.detach()))
    return curve
