"""Pictures and tables of the Jacobian conjecture of Ioffe & Szegedy 2015."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import bnprobe
from analyses.pictures import as_figure
from bnprobe.measures.jacobian.laws import quarter_circle
from bnprobe.plots import recorded_spectrum, sorted_spectra, style
from bnprobe.report import Figure, Table
from bnprobe.report.page import Cell

if TYPE_CHECKING:
    from analyses.ioffe2015_jacobian import Results

__all__ = ["draw", "tables"]

_ARMS = (("without batch norm", False), ("with batch norm", True))
_WATCHED = "hidden3.linear"
_ABOVE_LEGEND = 42  # points


def draw(results: "Results") -> Mapping[str, Figure]:
    """The spectra beside their law, and one over training."""
    return {"sorted": _sorted(results), "training": _training(results)}


def tables(results: "Results") -> Sequence[Table]:
    """Of Jacobians and of weights."""
    return [_jacobians(results), _weights(results)]


def _sorted(results: "Results") -> Figure:
    shown = {
        "linear layer, Gaussian weights": results.values("gaussian")[0],
        "linear layer, orthogonal weights": results.values("orthogonal")[0],
        "hidden layer, before training": results.values("before")[0],
        "hidden layer, after training": results.values("after")[0],
    }
    with style.canvas(None, 8.6, 4.6) as ax:
        ax.axhspan(0.9, 1.1, color=style.INK, alpha=0.1, linewidth=0)
        sorted_spectra(shown, ax, {"quarter circle": quarter_circle()})
        top = max(float(np.quantile(values, 0.98)) for values in shown.values())
        ax.set_ylim(0, max(2.1, 1.1 * top))
        ax.set_title("")
    return as_figure(
        ax,
        "Singular values between two normalized vectors, from the largest down, over the share of values that are "
        "larger; seed 0, of the hidden layer at 4 test images together. Grey: what counts as close to 1. Dashed: the "
        "law of a square matrix of independent entries. Values above the axis, if any, are cut off.",
        "Lines of singular values over their rank for a linear layer with Gaussian and with orthogonal weights and for "
        "a hidden layer before and after training; only the orthogonal one stays at 1.",
    )


def _training(results: "Results") -> Figure:
    with style.canvases(None, 12.0, 4.2, columns=2) as axes:
        for run, (name, _), ax in zip(results.runs, _ARMS, axes, strict=True):
            recorded_spectrum(run, _WATCHED, ax)
            ax.set_title(name, loc="left", pad=_ABOVE_LEGEND)
        low = min(ax.get_ylim()[0] for ax in axes)
        high = max(ax.get_ylim()[1] for ax in axes)
        for ax in axes:
            ax.set_ylim(low, high)
    return as_figure(
        axes[0],
        f"Singular values of {_WATCHED}, which are those of its weights, as a probe recorded them during training; "
        "seed 0.",
        "Two panels of bands over training steps: the singular values of a linear layer without and with batch norm.",
        wide=True,
    )


def _jacobians(results: "Results") -> Table:
    rows: list[list[Cell]] = []
    cases = [("linear layer, Gaussian weights", "gaussian", True), ("linear layer, orthogonal", "orthogonal", True)]
    cases += [
        (f"hidden layer {name}, {when} training", when, norm) for name, norm in _ARMS for when in ("before", "after")
    ]
    for label, what, norm in cases:
        rows.append([label, *_numbers(results.values(what, norm))])
    law = quarter_circle()
    near = 100 * float(law.cumulative(1.1) - law.cumulative(0.9))
    small = 100 * float(law.cumulative(0.1))
    rows.append(["quarter circle (law of the first line)", f"{near:.1f} %", f"{small:.1f} %", 1.0, 1.0, None, None])
    header = (
        "layer",
        "in [0.9, 1.1]",
        "below 0.1",
        "mean square",
        "spread of squares",
        "sd of log",
        "largest/smallest",
    )
    caption = (
        "Singular values of Jacobians between two layers' inputs of sigmoids (with batch norm: normalized vectors), "
        "mean over seeds; of the last column the median. Spread of squares is Var(s^2) / E(s^2)^2: batch norm sets the "
        "scale of a spectrum, it does not make it narrow."
    )
    return Table(header, rows, caption)


def _numbers(values: Sequence[NDArray[np.float64]]) -> list[Cell]:
    near = np.mean([((v >= 0.9) & (v <= 1.1)).mean() for v in values])
    small = np.mean([(v < 0.1).mean() for v in values])
    square = np.mean([(v**2).mean() for v in values])
    spread = np.mean([np.var(v**2) / np.mean(v**2) ** 2 for v in values])
    logs = np.mean([np.log(v).std(1).mean() for v in values])
    ratio = np.median([(v[:, 0] / v[:, -1]).mean() for v in values])
    return [f"{100 * near:.1f} %", f"{100 * small:.1f} %", float(square), float(spread), float(logs), f"{ratio:,.0f}"]


def _weights(results: "Results") -> Table:
    rows: list[list[Cell]] = []
    for (name, _), found in zip(_ARMS, (results.without, results.normed), strict=True):
        runs = [bnprobe.load(one.folder / "run") for one in found]
        for layer in ("hidden2.linear", _WATCHED):
            first, last = zip(*(_ends(one, layer) for one in runs), strict=True)
            rows.append([name, layer, *_pair(first), *_pair(last)])
    header = ("network", "layer", "sd of log, first", "largest/smallest, first", "sd of log, last",
              "largest/smallest, last")  # fmt: skip
    caption = (
        "Singular values of linear layers (of their weights) at the first and the last record of the probe: standard "
        "deviation of their logarithm, mean over seeds, and the largest over the smallest, median over seeds."
    )
    return Table(header, rows, caption)


def _ends(run: bnprobe.Run, layer: str) -> tuple[tuple[float, float], tuple[float, float]]:
    values = run.channels(layer, "singular_value", place="jacobian").to_numpy()
    first, last = ((float(np.log(v).std()), float(v[0] / v[-1])) for v in (values[0], values[-1]))
    return first, last


def _pair(found: Sequence[tuple[float, float]]) -> list[Cell]:
    logs, ratios = zip(*found, strict=True)
    return [float(np.mean(logs)), f"{np.median(ratios):,.0f}"]
