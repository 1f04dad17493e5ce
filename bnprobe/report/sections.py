"""The sections of a run's report: each has its figures, or one sentence that says what was not recorded."""

from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from bnprobe import plots
from bnprobe.errors import RunError
from bnprobe.plots import style
from bnprobe.plots.drift_map import draw_drift
from bnprobe.report.layer_table import layer_table
from bnprobe.report.overview import overview
from bnprobe.report.page import Figure, Note, Part, Section
from bnprobe.report.recorded import Recorded
from bnprobe.store import Run

__all__ = ["sections"]

_MOST_PERCENTILES = 6  # figures; a page of 200 would be neither read nor small
_MOST_NORM_LAYERS = 3  # two figures each
_MOST_NAMED = 3


def sections(run: Run) -> list[Section]:
    """The standard sections of a run: overview, percentiles, drift, moments, norm layers, saturation, gaps, layers."""
    there = Recorded(run)
    return [
        overview(there),
        _section("Percentiles over training", _percentiles, there),
        _section("Drift of every layer", _drift, there),
        _section("Moments over depth", _moments, there),
        _section("Before and after normalization", _before_after, there),
        _section("Saturation", _saturation, there),
        _section("Running statistics", _running_gap, there),
        layer_table(there),
    ]


def _section(title: str, parts: Callable[[Recorded], Sequence[Part]], there: Recorded) -> Section:
    try:
        return Section(title, parts(there))
    except RunError as error:
        return Section(title, [Note([f"Not recorded: {error}."])])


def _percentiles(there: Recorded) -> list[Part]:
    names = there.with_quantiles(there.place)
    if not names:
        raise RunError("the run has no quantiles of inputs or outputs")
    nonlinear = [name for name in there.of_family("nonlinearity") if name in set(names)]
    names = nonlinear or names
    shown = _spread(names, _MOST_PERCENTILES)
    share = _share(shown, names, *(("nonlinearity", "nonlinearities") if nonlinear else ("layer", "layers")))
    text = (
        f"The 15th, 50th and 85th percentile of the {there.place} of {share}. Bands are the "
        "error of the sampled percentiles; where none is seen, it is thinner than the line."
    )
    if len(shown) < len(names):
        text += " Any other is drawn by bnprobe.plots.percentiles(run, layer)."
    parts: list[Part] = [text]
    for name, ((first,), (last,)) in there.ends(shown, there.place, [0.5]).items():
        ax = plots.percentiles(there.run, name, there.place, phase=there.phase)
        ends = f"The median begins at {style.number(first)} and ends at {style.number(last)}."
        alt = f"Lines of three percentiles of the {there.place} of {name} over training. {ends}"
        parts.append(Figure(_drawing(ax), ends, alt))
    return parts


def _drift(there: Recorded) -> list[Part]:
    drifts = there.drifts
    if drifts is None:
        raise RunError("the run has no quantiles of inputs or outputs, from which drift is computed")
    title, label = f"Drift of the {drifts.place} against the first step", f"Wasserstein-1 distance, in {drifts.unit}"
    ax = draw_drift(drifts.frame, there.layers["name"].to_list(), None, title, label)
    farthest = drifts.last().nlargest(_MOST_NAMED)
    if farthest.empty:
        raise RunError("no layer has a drift that could be computed")
    moved = ", ".join(f"{name} ({style.number(value)})" for name, value in farthest.items())
    caption = (
        f"Wasserstein-1 distance between a layer's {drifts.place} at each step and at its first recorded step, in "
        f"{drifts.unit.replace('sd', 'standard deviations (sd)')}. {_within_error(drifts.frame)} Grey: not recorded."
    )
    alt = f"Heat map, layers down and training steps across. The largest drifts at the last step: {moved}."
    return [f"Largest at the last recorded step: {moved}.", Figure(_drawing(ax), caption, alt, wide=True)]


def _within_error(frame: pd.DataFrame) -> str:
    later = frame[(frame["step"] > frame["reference_step"]).fillna(False).astype(bool)]
    known = later[["value", "error"]].dropna()
    if known.empty:
        return "No error bound is known."
    share = float((known["value"] <= known["error"]).mean())
    return f"{100 * share:.0f} % of the later drifts are within their error bound."


def _moments(there: Recorded) -> list[Part]:
    parts: list[Part] = []
    for place, meaning in (("output", "outputs"), ("grad_output", "gradients at the outputs")):
        steps = there.first_and_last_with_moments(place)
        if not steps:
            continue
        ax = plots.moments_over_depth(there.run, steps, place=place, phase=there.phase)
        caption = f"Mean (dot) and standard deviation (bar to both sides) of the {meaning}, layers from top to bottom."
        alt = (
            f"Dots with bars, one row a layer: mean and standard deviation of the {meaning} at the first and last step."
        )
        parts.append(Figure(_drawing(ax), caption, alt))
    if not parts:
        raise RunError("the run has no mean and variance of outputs")
    return parts


def _before_after(there: Recorded) -> list[Part]:
    both = set(there.with_quantiles("input")) & set(there.with_quantiles("output"))
    names = [name for name in there.of_family("_norm") if name in both]
    if not names:
        raise RunError("no normalization layer has quantiles of both input and output")
    shown = _spread(names, _MOST_NORM_LAYERS)
    share = _share(shown, names, "normalization layer", "normalization layers")
    text = (
        f"What goes into {share}, and what comes out. A ridge is the density at "
        "one step, all scaled to the same height; the axes differ, so compare shapes and read the scales."
    )
    parts: list[Part] = [text]
    middles = {place: there.ends(shown, place, [0.15, 0.85]) for place in ("input", "output")}
    for name in shown:
        with style.canvas(None, 4.8, 3.6) as before, style.canvas(None, 4.8, 3.6) as after:
            plots.before_after(there.run, name, (before, after), phase=there.phase)
        for ax, place in ((before, "input"), (after, "output")):
            (low, high), (last_low, last_high) = (map(style.number, end) for end in middles[place][name])
            caption = (
                f"The middle 70 % of values: {low} to {high} at the first step, {last_low} to {last_high} at the last."
            )
            alt = (
                f"Ridges of the distribution of the {place} of {name}, first step on top, last at the bottom. {caption}"
            )
            parts.append(Figure(_drawing(ax), caption, alt))
    return parts


def _saturation(there: Recorded) -> list[Part]:
    parts: list[Part] = []
    for statistic, meaning, error in (
        (
            "saturated",
            "Share of inputs where the slope is far below the nonlinearity's largest.",
            "Error of the sample: at most {:.2g} percentage points.",
        ),
        (
            "dead",
            "Share of channels whose output was nowhere positive in the batch.",
            "From a sample: up to {:.2g} % of a dead channel's values may be positive.",
        ),
    ):
        if statistic in there.run.statistics:
            ax = plots.saturation(there.run, statistic=statistic, phase=there.phase)
            largest = there.run.frame(statistic=statistic, phase=there.phase)["error"].max()
            caption = f"{meaning} {error.format(100 * largest)}" if largest > 0 else meaning
            parts.append(Figure(_drawing(ax), caption, f"{meaning[:-1]}, per layer over training steps."))
    if not parts:
        raise RunError("the run has no statistic 'saturated' or 'dead' (bnprobe.statistics.Saturation)")
    return parts


def _running_gap(there: Recorded) -> list[Part]:
    ax = plots.running_gap(there.run, phase=there.phase)
    caption = (
        "How far the statistics used in evaluation are from those of the batch: mean over channels of |batch mean - "
        "running mean| in standard deviations, and of |log(batch variance / running variance)|. A gap that stays large "
        "makes evaluation differ from training."
    )
    return [Figure(_drawing(ax), caption, "Dots with bars, one row a batch-norm layer: its gaps of mean and variance.")]


def _spread(names: Sequence[str], most: int) -> list[str]:
    return [names[index] for index in style.thin(len(names), most)]


def _share(shown: Sequence[str], names: Sequence[str], one: str, many: str) -> str:
    if len(names) == 1:
        return f"one {one}"
    return f"all {len(names)} {many}" if len(shown) == len(names) else f"{len(shown)} of {len(names)} {many}"


def _drawing(ax: Axes) -> Drawing:
    drawing = ax.figure
    assert isinstance(drawing, Drawing), "made here, not inside a subfigure"
    return drawing
