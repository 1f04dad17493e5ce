"""Singular values of layers of one network of Ioffe & Szegedy 2015, before, during and after training."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import bnprobe
from analyses import data
from analyses.training import Evaluator, Images, Recipe, population, sigmoid_mlp, some_rows, train, weights_digest
from analyses.trials import Attempt
from bnprobe.statistics import Spectra

__all__ = ["measure_network"]

_IMAGES = 4  # at which the Jacobian of a hidden layer is taken
_BATCH_OF_LAWS = 4096  # standard deviations of a linear layer's outputs are then known to 1 %


def measure_network(settings: Mapping[str, Any], attempt: Attempt) -> Mapping[str, Any]:
    """Train one network as ``settings`` say, and measure the layer from its second to its third normalized vector.

    Args:
        settings: ``batch_norm``, ``seed``, ``width``, ``steps``, ``every``, ``learning_rate``, ``batch``, ``data`` and
            its ``checksum``.
        attempt: a probe records the spectra of the linear layers in its ``run``.

    Returns:
        Singular values of the hidden layer ``before`` and ``after`` training, of a linear layer between uncorrelated
        normalized vectors with ``gaussian`` and with ``orthogonal`` weights, each with its largest error; the accuracy,
        the checksum of the initial weights, and whether all losses were finite.
    """
    dataset = data.load(settings["data"])
    seen, unseen = (Images.from_dataset(dataset, part, binary=dataset.name == "mnist") for part in ("train", "test"))
    width, seed = settings["width"], settings["seed"]
    network = sigmoid_mlp(
        seen.x.shape[1],
        len(dataset.classes),
        width=width,
        depth=3,
        batch_norm=settings["batch_norm"],
        std=width**-0.5,
        seed=2 * seed + 1,
    )
    found = {"before": _hidden_layer(network, seen, unseen)}
    weights = weights_digest(network)
    evaluator = Evaluator(network, seen, unseen)
    optimizer = torch.optim.SGD(network.parameters(), lr=settings["learning_rate"])
    recipe = Recipe(settings["steps"], settings["batch"], settings["steps"], 2 * seed)
    spectra = Spectra(unseen.inputs()[:2], every=settings["every"], layers=nn.Linear, k=None)
    with bnprobe.attach(network, spectra, every=settings["every"], optimizer=optimizer, out=attempt.folder / "run"):
        curve = train(network, optimizer, seen, recipe, evaluator, attempt.progress)
    found["after"] = _hidden_layer(network, seen, unseen)
    for name in ("gaussian", "orthogonal"):
        found[name] = _linear_layer(width, name == "orthogonal", seed)
    return {
        **{name: {"values": one.values.tolist(), "error": float(one.error.max())} for name, one in found.items()},
        "accuracy": curve.accuracy[-1],
        "weights": weights,
        "finite": bool(np.isfinite([*curve.train_loss, *curve.test_loss]).all()),
    }


def _hidden_layer(network: nn.Module, seen: Images, unseen: Images) -> bnprobe.Spectrum:
    """From what goes into the second layer's sigmoid to what goes into the third's, statistics those of all images."""
    still = copy.deepcopy(network)
    population(still, seen.inputs())
    end = "hidden3.norm" if "hidden3.norm" in dict(still.named_modules()) else "hidden3.linear"
    at = unseen.inputs()[some_rows(len(unseen), _IMAGES)]
    return bnprobe.spectrum(still.eval().double(), at.double(), layer=("hidden2.sigmoid", end))


def _linear_layer(width: int, orthogonal: bool, seed: int) -> bnprobe.Spectrum:
    """A linear layer and batch norm, at uncorrelated inputs of mean 0 and variance 1, as the conjecture assumes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(_BATCH_OF_LAWS, width, dtype=torch.float64, generator=generator)
    weight = torch.randn(width, width, dtype=torch.float64, generator=generator)
    linear = nn.Linear(width, width, bias=False, dtype=torch.float64)
    layer = nn.Sequential(linear, nn.BatchNorm1d(width, dtype=torch.float64))
    with torch.no_grad():
        linear.weight.copy_(torch.linalg.qr(weight)[0] if orthogonal else weight * width**-0.5)
    population(layer, x)
    return bnprobe.spectrum(layer.eval(), x[:1])
