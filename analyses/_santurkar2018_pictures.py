"""Pictures and tables of the deep linear network of Santurkar et al. 2018."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import bnprobe
from analyses.pictures import ARM_COLORS, Lines, as_figure, learning_curves
from analyses.santurkar2018_deep_linear import RATE, VARIANTS, recorded
from analyses.trials import Finished
from bnprobe.plots import gradient_shift, landscape, style
from bnprobe.report import Figure, Table
from bnprobe.report.page import Cell

if TYPE_CHECKING:
    from analyses.santurkar2018_deep_linear import Results

__all__ = ["draw", "tables"]

_ARMS = ("without batch norm", "with batch norm")
_ABOVE_LEGEND = 40  # points

Array = NDArray[np.float64]


def draw(results: "Results") -> Mapping[str, Figure]:
    """Loss and cosine over training; the cosine layer by layer; the loss along its gradient."""
    return {"training": _training(results), "layers": _layers(results), "landscape": _landscape(results)}


def tables(results: "Results") -> Sequence[Table]:
    """What each arm did, and what other free choices would have given."""
    return [_arms(results), _landscapes(results)]


def _training(results: "Results") -> Figure:
    every, steps = results.scale.every, results.scale.steps
    looked = np.array([*range(0, steps, every), steps])
    arms = (results.without, results.normed)
    losses = [np.array([one.result["losses"] for one in arm], np.float64) for arm in arms]
    cosines = [np.array([one.mean(1) for one in arm]) for arm in results.cosines]
    with style.canvases(None, 11.0, 3.8, columns=2) as axes:
        learning_curves(axes[0], {name: Lines(looked, one) for name, one in zip(_ARMS, losses, strict=True)}, "")
        axes[0].set_yscale("log")
        axes[0].set_ylabel("squared error per sample")
        axes[0].legend(frameon=False)
        learning_curves(axes[1], {name: Lines(looked[:-1], one) for name, one in zip(_ARMS, cosines, strict=True)}, "")
        axes[1].set_ylabel("cosine, mean over layers")
        axes[1].set_ylim(min(0.0, float(min(one.min() for one in cosines))) - 0.05, 1.05)
        axes[1].legend(frameon=False)
    return as_figure(
        axes[0],
        "Left: the loss. Right: the cosine of the angle between a layer's gradient and what it becomes by one update "
        "of the layers before it, mean over all layers but the first. Lines are means over seeds, bands reach from the "
        "lowest to the highest seed.",
        "Two panels over training steps with a line for each network: its loss, and the mean cosine of its layers.",
        wide=True,
    )


def _layers(results: "Results") -> Figure:
    with style.canvases(None, 11.0, 5.6, columns=2) as axes:
        for found, name, ax in zip((results.without[0], results.normed[0]), _ARMS, axes, strict=True):
            gradient_shift(_run(found), ax)
            ax.set_title(name, loc="left")
    return as_figure(
        axes[0],
        "The same cosine layer by layer; seed 0. The first layer's is 1 by definition.",
        "Two heat maps of layers over training steps, coloured by the cosine of gradients.",
        wide=True,
    )


def _landscape(results: "Results") -> Figure:
    with style.canvases(None, 12.0, 3.8, columns=3) as axes:
        for statistic, ax in zip(("loss", "gradient_change", "effective_smoothness"), axes, strict=True):
            for found, name, color in zip((results.without[0], results.normed[0]), _ARMS, ARM_COLORS, strict=True):
                landscape(_run(found), ax, statistic=statistic, color=color, label=name)
            ax.set_title(ax.get_title(loc="left"), loc="left", pad=_ABOVE_LEGEND)
        axes[-1].axhline(2 / RATE, color=style.MISSING, linestyle="--", linewidth=1, zorder=0)
    return as_figure(
        axes[0],
        "What a step along the gradient meets, from 1/100 to 30 times the learning rate; seed 0. Bands reach over "
        "these lengths. The loss is a sum over samples. Dashed: two over the learning rate, the curvature beyond which "
        "gradient descent oscillates and grows (edge of stability: Cohen et al. 2021).",
        "Three panels over training steps with a band for each network: loss, change of the gradient, and its ratio to "
        "the distance.",
        wide=True,
    )


def _arms(results: "Results") -> Table:
    rows = [_row(name, "", arm) for name, arm in zip(_ARMS, (results.without, results.normed), strict=True)]
    for (what, _), pair in zip(VARIANTS, results.variants, strict=False):
        rows += [_row(name, what, [one]) for name, one in zip(_ARMS, pair, strict=True)]
    header = (
        "network",
        "changed",
        "seeds",
        "mean cosine",
        "lowest layer",
        "shift / gradient",
        "first loss",
        "last loss",
    )
    caption = (
        "Of all layers but the first. Mean cosine over layers, records and seeds; the mean of the layer where it is "
        "lowest; median of the l2 distance between the two gradients over the norm of the first; mean squared error "
        "per sample before and after training. In lines with a change, that free choice is another, in one seed: where "
        "these say otherwise than the first two, the claim hangs on it."
    )
    return Table(header, rows, caption)


def _row(name: str, changed: str, arm: Sequence[Finished]) -> list[Cell]:
    cosine = np.array([recorded(one, "gradient_cosine") for one in arm])
    shift = np.array([recorded(one, "gradient_shift") / recorded(one, "gradient_norm") for one in arm])
    first, last = (float(np.mean([one.result["losses"][end] for one in arm])) for end in (0, -1))
    lowest = float(cosine.mean((0, 1)).min())
    return [name, changed, len(arm), float(cosine.mean()), lowest, float(np.median(shift)), first, last]


def _landscapes(results: "Results") -> Table:
    rows: list[list[Cell]] = []
    for name, arm in zip(_ARMS, (results.without, results.normed), strict=True):
        rows.append([name, *(_median(arm, what) for what in ("loss_range", "gradient_change", "effective_smoothness"))])
    header = ("network", "range of the loss", "change of the gradient", "effective smoothness")
    caption = (
        "Along the gradient, from 1/100 to 30 times the learning rate; median over records and seeds. Judged by "
        "nobody: the two networks are at other losses at the same step."
    )
    return Table(header, rows, caption)


def _median(arm: Sequence[Finished], statistic: str) -> float:
    return float(np.median(np.concatenate([_run(one).frame(statistic=statistic)["value"] for one in arm])))


def _run(found: Finished) -> bnprobe.Run:
    return bnprobe.load(found.folder / "run")
