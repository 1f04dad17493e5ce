"""How the cost of recording grows: with the steps done (it must not), with layers, with the size of activations.

* Steps: one probe stays on an MLP for 5,200 steps. Its step time over three periods of flushes at the beginning (steps
  64 to 255) is compared with that over three at the end (steps 4,992 to 5,183), each relative to an unwatched step
  that is timed right after it. (The unwatched model's hooks find nothing to do: a dictionary is asked once a module.)
* Layers: MLPs of 3 to 48 hidden layers, alone and watched in turns as in ``benchmarks/overhead.py``; a straight line
  is fitted to the extra milliseconds a step.
* Size: a small convolutional network at batches of 16 to 512; the slope of log extra time over log batch, below 1
  where the cost grows less than the activations.

Freed memory is kept on both sides (``benchmarks/allocator.py``): else page faults of large batches are all that shows.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

import bnprobe
from benchmarks.allocator import add_argument as add_allocator
from benchmarks.arms import Probe
from benchmarks.contest import FLUSH_STEPS, Contest
from benchmarks.models import Subject, labelled, mlp, small_cnn, train_step

__all__ = ["add_arguments", "draw", "run"]

_EARLY, _LATE = range(FLUSH_STEPS, 4 * FLUSH_STEPS), range(78 * FLUSH_STEPS, 81 * FLUSH_STEPS)
_REPEATS = 3
_DEPTHS = (3, 6, 12, 24, 48)
_BATCHES = (16, 32, 64, 128, 256, 512)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks growth``."""
    parser.add_argument("--parts", default="steps,layers,batch", help="separated by commas (default: all)")
    parser.add_argument("--seconds", type=float, default=10.0, help="measuring time of a point on a curve")
    add_allocator(parser)
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--figure", type=Path, default=None, help="draw the curves into this file (docs/growth.png)")


def run(
    parts: str = "steps,layers,batch", seconds: float = 10.0, threads: int = 2, figure: Path | None = None
) -> dict[str, Any]:
    """The curves, each with the number that says whether it grows as it may; those that were asked for."""
    torch.set_num_threads(threads)
    wanted, result = parts.split(","), {}
    if "layers" in wanted:
        layers = _curve("layers", _DEPTHS, lambda n: Subject(f"mlp{n}", lambda: mlp(n), labelled(60, 784)), seconds)
        result["layers"] = layers | _line(layers["points"])
    if "batch" in wanted:
        sizes = _curve("batch", _BATCHES, lambda n: Subject(f"cnn{n}", small_cnn, labelled(n, 3, 32, 32)), seconds)
        result["batch"] = sizes | _slope(sizes["points"])
    if "steps" in wanted:
        result["steps"] = _with_steps()
    if figure is not None:
        draw(result, figure)
    return result


def _with_steps() -> dict[str, Any]:
    times = [_early_and_late() for _ in tqdm(range(_REPEATS), desc="steps", disable=None)]
    early, late = (statistics.median(one[i] for one in times) for i in (0, 1))
    return {
        "early_ratio": early,
        "late_ratio": late,
        "late_over_early": late / early,
        "repeats": times,
        "early_steps": [_EARLY.start, _EARLY.stop],
        "late_steps": [_LATE.start, _LATE.stop],
    }


def _early_and_late() -> tuple[float, float]:
    """Step time with a probe over that of an unwatched step at the same moment: at the beginning, and much later."""
    torch.manual_seed(0)
    watched, alone, batch = mlp(), mlp(), labelled(60, 784)()
    of_watched, of_alone = (torch.optim.SGD(one.parameters(), lr=0.01) for one in (watched, alone))
    ratios = []
    with bnprobe.attach(watched, optimizer=of_watched):
        done = 0
        for window in (_EARLY, _LATE):
            for _ in range(done, window.start):
                train_step(watched, of_watched, batch)
            begin = time.perf_counter()
            for _ in window:
                train_step(watched, of_watched, batch)
            between = time.perf_counter()
            for _ in window:
                train_step(alone, of_alone, batch)
            ratios.append((between - begin) / (time.perf_counter() - between))
            done = window.stop
    return ratios[0], ratios[1]


def _curve(name: str, values: tuple[int, ...], subject: Any, seconds: float) -> dict[str, Any]:
    points = [
        {name: value} | Contest(subject(value), Probe, seconds).run() for value in tqdm(values, desc=name, disable=None)
    ]
    return {"points": points}


def _line(points: list[dict[str, Any]]) -> dict[str, float]:
    """Extra milliseconds a hidden layer, and what share of the variation a straight line explains."""
    x, y = np.array([[one["layers"], one["extra_ms"]] for one in points]).T
    slope, start = np.polyfit(x, y, 1)
    return {
        "ms_a_layer": float(slope),
        "ms_at_none": float(start),
        "explained": float(np.corrcoef(x, y)[0, 1] ** 2),
    }


def _slope(points: list[dict[str, Any]]) -> dict[str, float]:
    """Exponents of the batch by which the extra time and the plain step grow; from the first to the last point."""
    x = np.log([one["batch"] for one in points])
    result = {}
    for name in ("extra_ms", "plain_ms"):
        y = np.array([one[name] for one in points])
        good = y > 0  # on a noisy machine a difference may come out negative: it is not made up, it is left out
        result[f"exponent_of_{name}"] = (
            float(np.polyfit(x[good], np.log(y[good]), 1)[0]) if good.sum() > 1 else float("nan")
        )
    return result


def draw(result: dict[str, Any], path: Path) -> None:
    """Extra time a step over layers and over the batch, with bootstrap intervals, beside the step's own time."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    import seaborn as sns

    labels = {"layers": "hidden layers of an MLP, batch 60", "batch": "batch of a small CNN at 32 x 32"}
    shown = {name: label for name, label in labels.items() if name in result}
    with sns.axes_style("whitegrid"), mpl.rc_context({"font.size": 9}):
        figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown), 3), layout="constrained", squeeze=False)
        for axis, (name, label) in zip(axes.flat, shown.items(), strict=True):
            points = pd.DataFrame(result[name]["points"])
            for (column, who), colour in zip(
                {"extra_ms": "what the probe adds", "plain_ms": "the step itself"}.items(),
                itertools.cycle(sns.color_palette("colorblind")),
                strict=False,
            ):
                sns.lineplot(points, x=name, y=column, ax=axis, marker="o", color=colour, label=who)
            low, high = np.array(points.extra_interval_ms.tolist()).T
            axis.fill_between(points[name], low, high, alpha=0.2, color=sns.color_palette("colorblind")[0], lw=0)
            axis.set(xlabel=label, ylabel="ms a step")
            axis.legend(frameon=False)
            if name == "batch":
                axis.set(xscale="log", yscale="log")
                axis.set_xticks(list(_BATCHES), [str(one) for one in _BATCHES])
                axis.minorticks_off()
        sns.despine(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        plt.close(figure)
