"""Pictures and tables of Ioffe & Szegedy 2015, section 4.1."""

from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.ticker import MaxNLocator

import bnprobe
from analyses._ioffe2015_results import LAST, SHARED, STD, Arm, Results
from analyses.pictures import ARM_COLORS, Lines, as_figure, learning_curves, percentile_band, shares
from analyses.travel import LEVELS, UnitPaths, over_units
from bnprobe.plots import drift_map, style
from bnprobe.report import Figure, Table
from bnprobe.report.page import Cell

__all__ = ["draw", "tables"]

TARGET = 0.95  # the accuracy whose first step is told (ours)
_NAMES = ("without batch norm", "with batch norm")


def draw(results: Results) -> Mapping[str, Figure]:
    """The paper's figure 1 from our trials, the drift of every layer, and the travel of every unit."""
    return {
        "figure-1": _figure_1(results),
        "drift": _drift(results),
        "travel": _travels(results),
        "own-rates": _own_rates(results),
    }


def tables(results: Results) -> Sequence[Table]:
    """Accuracies, the search for learning rates, stability, and drift by layer."""
    return [
        _accuracies(results),
        *(_search(results, std) for std in dict.fromkeys(arm.std for arm in results.pilots)),
        _stability(results),
        _drift_table(results),
    ]


# --- pictures -------------------------------------------------------------------------------------------------------


def _figure_1(results: Results) -> Figure:
    with style.canvases(None, 13.0, 3.9, columns=3) as (left, *rest):
        curves = {name: Lines(*results.curves(arm)) for name, arm in zip(_NAMES, SHARED, strict=True)}
        learning_curves(left, curves, "test accuracy")
        left.axvline(results.scale.compare_at, color=style.INK, linewidth=0.8, linestyle=":")
        left.set_title("a) test accuracy")
        for letter, name, arm, color, ax in zip("bc", _NAMES, SHARED, ARM_COLORS, rest, strict=True):
            paths = results.paths(arm)[0]
            unit = results.settled(arm)[0].typical()
            percentile_band(ax, paths.steps, {level: paths.with_band(level, unit) for level in LEVELS}, color)
            ax.set_title(f"{letter}) {name}, unit {unit}")
        rest[0].set_ylabel(f"input of a sigmoid of {LAST.split('.')[0]}")
        _common_limits(rest)
    rate = SHARED[0].learning_rate
    return as_figure(
        left,
        f"As figure 1 of the paper, on {results.dataset.name}, both networks at learning rate {rate:g}. "
        f"a) Test accuracy, {_over_seeds(results)}; the dotted line is "
        "the step of comparison. b, c) Percentiles over the test images of the input of one sigmoid of the last hidden "
        "layer, the one of median travel in its network, seed 0; band: 95 % for all levels at once, since the test "
        "images are a sample.",
        "Three panels: test accuracy over training steps with and without batch norm, and the 15th, 50th and 85th "
        "percentile of a sigmoid's input over training steps without and with batch norm.",
        wide=True,
    )


def _over_seeds(results: Results) -> str:
    n = results.scale.seeds
    return f"mean over {n} seeds, band: lowest to highest seed" if n > 1 else "one seed"


def _common_limits(axes: Sequence[Axes]) -> None:
    limits = np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set_ylim(limits[:, 0].min(), limits[:, 1].max())


def _drift(results: Results) -> Figure:
    with style.canvases(None, 13.0, 4.4, columns=2) as axes:
        for name, arm, ax in zip(_NAMES, SHARED, axes, strict=True):
            drift_map(results.runs(arm)[0], ax=ax, place="input", phase="eval")
            ax.set_title(name)
        _common_colors([ax.collections[0] for ax in axes])
    return as_figure(
        axes[0],
        "How far the distribution of each layer's input over the test images has moved since before the first step: "
        "Wasserstein-1 distance in standard deviations of the first record, seed 0. Both maps have the same colours. "
        "The first layer reads the images, which do not change: what it shows is the error of sampled quantiles.",
        "Two heat maps, layers down and training steps across: the drift of each layer's input without and with batch "
        "norm.",
        wide=True,
    )


def _common_colors(maps: Sequence[Collection]) -> None:
    """One scale, so that two heat maps can be compared."""
    top = max(one.get_clim()[1] for one in maps)
    ticks = [float(tick) for tick in MaxNLocator(nbins=5).tick_values(0, top) if tick <= top]
    for one in maps:
        one.set_clim(0, top)
        if one.colorbar is not None:
            one.colorbar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])


def _travels(results: Results) -> Figure:
    with style.canvas(None, 6.2, 3.8) as ax:
        for name, arm, color in zip(_NAMES, SHARED, ARM_COLORS, strict=True):
            for seed, path in enumerate(results.settled(arm)):
                shares(ax, path.travel(), color, name if seed == 0 else None)
        ax.set_xlabel("travel of the median, in interquartile ranges")
        ax.set_ylabel("share of units")
        ax.legend(loc="best", frameon=False)
    return as_figure(
        ax,
        f"Travel of all units of the last hidden layer from step {results.scale.settle:,} on, one line a seed: the "
        "share of units that travel at most so far. Claim C1b is judged by the middle of these lines.",
        "Cumulative shares of units over the travel of their median, for each seed with and without batch norm.",
    )


def _own_rates(results: Results) -> Figure:
    own = results.own()
    with style.canvas(None, 6.2, 3.8) as ax:
        arms = {
            f"{name}, rate {arm.learning_rate:g}": Lines(*_until(results, arm))
            for name, arm in zip(_NAMES, own, strict=True)
        }
        learning_curves(ax, arms, "test accuracy")
    return as_figure(
        ax,
        "Test accuracy with each network at its own best learning rate, up to the step of comparison, "
        f"{_over_seeds(results)}.",
        "Test accuracy over training steps, each network at its own learning rate.",
    )


def _until(results: Results, arm: Arm) -> tuple[np.ndarray, np.ndarray]:
    steps, accuracy = results.curves(arm)
    kept = steps <= results.scale.compare_at
    return steps[kept], accuracy[:, kept]


# --- tables ---------------------------------------------------------------------------------------------------------


def _accuracies(results: Results) -> Table:
    rows: list[list[Cell]] = []
    for comparison, arms in (("same learning rate", SHARED), ("own learning rates", results.own())):
        for name, arm in zip(_NAMES, arms, strict=True):
            accuracy, moving = 100 * results.accuracy(arm), 100 * results.accuracy(arm, "moving_accuracy")
            rows.append(
                [
                    comparison,
                    name,
                    f"{arm.learning_rate:g}",
                    f"{accuracy.mean():.2f} %",
                    f"{accuracy.min():.2f} to {accuracy.max():.2f} %",
                    f"{moving.mean():.2f} %" if arm.batch_norm else None,
                    _steps_told(results, arm),
                ]
            )
    header = ("comparison", "network", "rate", "accuracy", "range over seeds", "with moving averages",
              f"steps to {100 * TARGET:g} %")  # fmt: skip
    caption = (
        f"Test accuracy at step {results.scale.compare_at:,}. {_speed_told(results, SHARED, 'At the same rate')} "
        f"{_speed_told(results, results.own(), 'At their own rates')}"
    )
    return Table(header, rows, caption)


def _steps_told(results: Results, arm: Arm) -> str:
    """Median over all seeds; a seed that never got there counts as later than every step."""
    found = results.steps_to(TARGET, arm)
    last = int(results.curves(arm)[0][-1])
    middle = median(np.inf if step is None else step for step in found)
    told = f"{middle:,.0f}" if np.isfinite(middle) else f"more than {last:,}"
    missing = sum(step is None for step in found)
    return f"{told} ({missing} of {len(found)} seeds never within {last:,})" if missing else told


def _speed_told(results: Results, arms: Sequence[Arm], where: str) -> str:
    """How many times as many steps the network without batch norm needs; what was not reached is told as a bound."""
    base, norm = (results.steps_to(TARGET, arm) for arm in arms)
    pairs = [(a, b) for a, b in zip(base, norm, strict=True) if a is not None and b]
    target = f"{100 * TARGET:g} %"
    if pairs and len(pairs) == len(base):
        ratio = np.exp(np.mean([np.log(a / b) for a, b in pairs]))
        return f"{where}, {target} takes {ratio:.2f} times as many steps without batch norm as with it."
    later = [int(results.curves(arms[0])[0][-1]) / b for a, b in zip(base, norm, strict=True) if a is None and b]
    if later and len(later) + len(pairs) == len(base):
        bound = np.exp(np.mean(np.log([*later, *(a / b for a, b in pairs)])))
        return f"{where}, {target} takes more than {bound:.2f} times as many steps without batch norm as with it."
    return f"{where}, {target} was not reached by both networks."


def _search(results: Results, std: float) -> Table:
    best = results.own(std)
    rows = []
    for rate in results.rates(std):
        cells: list[Cell] = []
        for arm in (Arm(False, rate, std), Arm(True, rate, std)):
            mark = " (best)" if arm in best else ""
            cells.append(f"{100 * results.held_out(arm)[0]:.2f} %{mark}")
            cells.append(f"{100 * results.accuracy(arm).mean():.2f} %" if arm in results.arms else None)
        rows.append([f"{rate:g}", *cells])
    plural = "s" if results.scale.pilots > 1 else ""
    header = ["rate", *(f"{name}, {what}" for name in _NAMES for what in ("held out", "test"))]
    caption = (
        f"Accuracy at step {results.scale.compare_at:,} by learning rate, initial weights of standard deviation "
        f"{std:g}; held out: mean over {results.scale.pilots} pilot run{plural} that did not train on these images. "
        f"Verdicts use {STD:g}."
    )
    return Table(header, rows, caption)


def _stability(results: Results) -> Table:
    rows: list[list[Cell]] = []
    for name, arm in zip(_NAMES, SHARED, strict=True):
        paths = results.settled(arm)
        w1 = [_mean_step(run, results.scale.settle) for run in results.runs(arm)]
        rows.append(
            [
                name,
                *(
                    float(np.mean([over_units(measure(path)) for path in paths]))
                    for measure in (
                        UnitPaths.travel,
                        UnitPaths.travel_beyond_band,
                        UnitPaths.floor,
                        UnitPaths.travel_by_record,
                    )
                ),
                float(np.mean(w1)),
            ]
        )
    header = ("network", "travel", "travel beyond the band", "half-width of the band", "travel in ranges of the moment",
              "W1 from record to record")  # fmt: skip
    caption = (
        f"Inputs of {LAST} from step {results.scale.settle:,} on, mean over seeds. Travel of the median, what of it "
        "leaves the error band, and the band itself: medians over units, in interquartile ranges, one for the whole "
        "path of a unit; in ranges of the moment, times at which a unit hardly tells images apart weigh most. W1 is "
        "the Wasserstein-1 distance of all units together, in standard deviations."
    )
    return Table(header, rows, caption)


def _mean_step(run: bnprobe.Run, since: int) -> float:
    frame = bnprobe.drift(run, reference="previous", layer=LAST, place="input", phase="eval", standardize=True)
    return float(frame.loc[frame["step"] > since, "value"].mean())


def _drift_table(results: Results) -> Table:
    columns = [_last_drift(results, arm) for arm in SHARED]
    names = list(dict.fromkeys(name for column in reversed(columns) for name in column))
    rows: list[list[Cell]] = [[name, *(column.get(name) for column in columns)] for name in names]
    caption = (
        "Drift of each layer's input over the test images from before the first step to after the last: Wasserstein-1 "
        "distance in standard deviations of the first record, mean over seeds."
    )
    return Table(("layer", *_NAMES), rows, caption)


def _last_drift(results: Results, arm: Arm) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in results.runs(arm):
        frame = bnprobe.drift(run, place="input", phase="eval", standardize=True)
        last = frame[frame["step"] == frame["step"].max()]
        for name, value in zip(last["layer"], last["value"], strict=True):
            found.setdefault(str(name), []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}
