"""One network of Ioffe & Szegedy 2015, section 4.1, trained with probes listening."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import bnprobe
from analyses import data
from analyses._ioffe2015_results import BATCH, DEPTH, LAST, WIDTH
from analyses.training import Evaluator, Images, Recipe, sigmoid_mlp, some_rows, train, weights_digest
from analyses.travel import wanted_levels
from analyses.trials import Attempt
from bnprobe.statistics import Quantiles

__all__ = ["HELD_OUT", "train_network"]

HELD_OUT = 6  # one in six training images is held out for pilots (ours: 10,000 of MNIST's 60,000)


def train_network(settings: Mapping[str, Any], attempt: Attempt) -> Mapping[str, Any]:
    """Train one network as ``settings`` say.

    Args:
        settings: the arm (``batch_norm``, ``learning_rate``, ``std``), ``seed``, ``steps``, ``every``, ``data`` and
            its ``checksum``, ``device``; ``pilot``: test on held-out training images; ``probe``: record every layer in
            ``run``, and the quantiles of every unit of the last hidden layer in ``units``.
        attempt: where these run directories go.

    Returns:
        The curve, the checksum of the initial weights, and whether all losses were finite.
    """
    dataset = data.load(settings["data"])
    seen, unseen = _images(dataset, settings)
    order_seed, weight_seed = 2 * settings["seed"], 2 * settings["seed"] + 1
    network = sigmoid_mlp(
        seen.x.shape[1],
        len(dataset.classes),
        width=WIDTH,
        depth=DEPTH,
        batch_norm=settings["batch_norm"],
        std=settings["std"],
        seed=weight_seed,
    ).to(settings["device"])
    weights = weights_digest(network)
    evaluator = Evaluator(network, seen, unseen)
    optimizer = torch.optim.SGD(network.parameters(), lr=settings["learning_rate"])
    recipe = Recipe(settings["steps"], BATCH, settings["every"], order_seed)
    with _probes(network, optimizer, settings, attempt.folder, len(unseen)):
        curve = train(network, optimizer, seen, recipe, evaluator, attempt.progress)
    finite = bool(np.isfinite([*curve.train_loss, *curve.test_loss]).all())
    return asdict(curve) | {"weights": weights, "finite": finite}


def _images(dataset: data.Dataset, settings: Mapping[str, Any]) -> tuple[Images, Images]:
    """Images to train on and images to test on."""
    train_part, test_part = (
        Images.from_dataset(dataset, part, binary=dataset.name == "mnist", device=settings["device"])
        for part in ("train", "test")
    )
    if not settings["pilot"]:
        return train_part, test_part
    held_out = torch.zeros(len(train_part), dtype=torch.bool, device=settings["device"])
    held_out[some_rows(len(train_part), len(train_part) // HELD_OUT)] = True
    return train_part.part(~held_out), train_part.part(held_out)


@contextmanager
def _probes(
    network: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any], folder: Path, images: int
) -> Iterator[None]:
    with ExitStack() as stack:
        if settings["probe"]:
            every = settings["every"]
            stack.enter_context(bnprobe.attach(network, every=every, optimizer=optimizer, out=folder / "run"))
            units = Quantiles(wanted_levels(images), tuple(range(WIDTH)), exact=True, places=("input",))
            stack.enter_context(
                bnprobe.attach(network, units, layers=LAST, every=every, optimizer=optimizer, out=folder / "units")
            )
        yield
