"""How far hidden weights of one network turn per step, and how long they are, once weight decay has done its work."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

import bnprobe
from analyses import data
from analyses.training import Evaluator, Images, Recipe, sigmoid_mlp, train
from analyses.trials import Attempt
from bnprobe.statistics import WeightScale

__all__ = ["DEPTH", "follow_weights"]

DEPTH = 3


def follow_weights(settings: Mapping[str, Any], attempt: Attempt) -> Mapping[str, Any]:
    """Train one network as ``settings`` say, with a probe that follows its hidden weights.

    Args:
        settings: ``batch_norm``, ``seed``, ``width``, ``steps``, ``learning_rate``, ``momentum``, ``weight_decay``,
            ``batch``, ``data`` and its ``checksum``.
        attempt: the probe records in its ``run``.

    Returns:
        Per hidden layer ``angle`` and its ``law`` (root mean squares), ``fourth`` (mean fourth power of the norm) and
        its ``balance``, and ``drift`` (ratio of ``fourth`` in the last sixth to that in the sixth before), all over the
        last third of the steps; the accuracy, and whether all losses were finite.
    """
    dataset = data.load(settings["data"])
    seen, unseen = (Images.from_dataset(dataset, part, binary=False) for part in ("train", "test"))
    network = sigmoid_mlp(
        seen.x.shape[1],
        len(dataset.classes),
        width=settings["width"],
        depth=DEPTH,
        batch_norm=settings["batch_norm"],
        std=settings["width"] ** -0.5,
        seed=2 * settings["seed"] + 1,
    )
    evaluator = Evaluator(network, seen, unseen)
    optimizer = torch.optim.SGD(
        network.parameters(), settings["learning_rate"], settings["momentum"], weight_decay=settings["weight_decay"]
    )
    # With batch norm the probe is to find them by itself.
    hidden = [f"hidden{k + 1}.linear.weight" for k in range(DEPTH)]
    scale = WeightScale() if settings["batch_norm"] else WeightScale(hidden)
    recipe = Recipe(settings["steps"], settings["batch"], settings["steps"], 2 * settings["seed"])
    with bnprobe.attach(network, scale, optimizer=optimizer, out=attempt.folder / "run") as probe:
        curve = train(network, optimizer, seen, recipe, evaluator, attempt.progress)
    return {
        "layers": _layers(probe.run, settings["steps"]),
        "accuracy": curve.accuracy[-1],
        "finite": bool(np.isfinite([*curve.train_loss, *curve.test_loss]).all()),
    }


def _layers(run: bnprobe.Run, steps: int) -> dict[str, dict[str, float]]:
    if "weight_norm" not in run.statistics:
        return {}
    wanted = ["angular_update", "equilibrium_angle", "weight_norm", "equilibrium_norm"]
    frame = run.frame(statistic=wanted)
    frame = frame[frame["step"] >= 2 * steps // 3]
    return {str(layer): _numbers(mine) for layer, mine in frame.groupby("layer", observed=True)}


def _numbers(frame: pd.DataFrame) -> dict[str, float]:
    table = frame.pivot_table(index="step", columns="statistic", values="value")
    fourth = table["weight_norm"].to_numpy(np.float64) ** 4
    early, late = np.array_split(fourth, 2)
    return {
        "angle": float(np.sqrt((table["angular_update"] ** 2).mean())),
        "law": float(np.sqrt((table["equilibrium_angle"] ** 2).mean())),
        "fourth": float(fourth.mean()),
        "balance": float((table["equilibrium_norm"] ** 4).mean()),
        "drift": float(late.mean() / early.mean()),
    }
