"""Percentiles of one layer over training: figure 1 b and c of Ioffe and Szegedy (2015)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from bnprobe.errors import ArgumentError, RunError
from bnprobe.plots import style
from bnprobe.store import Run

__all__ = ["percentiles"]

_MOST_POINTS = 600  # more do not show at any size that a screen has
_LEVELS = (0.15, 0.5, 0.85)  # Ioffe & Szegedy 2015, figure 1


@dataclass(frozen=True)
class _Tensor:
    """Which tensor of a run, and which of its channels."""

    layer: str
    place: str
    channel: int | None
    phase: str
    call: int

    def __str__(self) -> str:
        call = f", call {self.call}" if self.call else ""
        channel = "" if self.channel is None else f", channel {self.channel}"
        return f"{self.place} of {self.layer}{call}{channel}"


@dataclass(frozen=True)
class _Curves:
    """Quantiles ``[drawn, levels]`` and their band, NaN where no error is known; ``recorded`` holds all steps."""

    recorded: NDArray[np.int64]
    steps: NDArray[np.int64]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@overload
def percentiles(
    run: Run,
    layer: str,
    place: str = ...,
    ax: Axes | None = ...,
    channel: int | None = ...,
    levels: Sequence[float] = ...,
    *,
    phase: str = ...,
    call: int = ...,
) -> Axes: ...
@overload
def percentiles(
    run: Mapping[str, Run] | Sequence[Run],
    layer: str,
    place: str = ...,
    ax: Sequence[Axes] | None = ...,
    channel: int | None = ...,
    levels: Sequence[float] = ...,
    *,
    phase: str = ...,
    call: int = ...,
) -> list[Axes]: ...
def percentiles(
    run: Run | Mapping[str, Run] | Sequence[Run],
    layer: str,
    place: str = "input",
    ax: Axes | Sequence[Axes] | None = None,
    channel: int | None = None,
    levels: Sequence[float] = _LEVELS,
    *,
    phase: str = "train",
    call: int = 0,
) -> Axes | list[Axes]:
    """Draws percentiles of what a layer saw or gave, over training, with their error band.

    The band of level p holds the quantiles of p - e to p + e, where e is the recorded bound on the rank
    (Dvoretzky-Kiefer-Wolfowitz-Massart for a sample, 0 for exact quantiles).

    Args:
        run: a run, or several (a mapping gives their titles): then one Axes a run, with a common y axis.
        layer: name of the layer.
        place: ``input``, ``output`` or ``grad_output``.
        ax: where to draw; as many as there are runs. None makes a new figure.
        channel: draw this channel instead of all values of the layer. No error is recorded for a single
            channel, so it has no band.
        levels: which percentiles, as probabilities; default as in the paper's figure 1.
        phase: ``train`` or ``eval``.
        call: which call of the layer within a step, where it is called more than once.

    Returns:
        The Axes, or a list of them for several runs.

    Raises:
        ArgumentError: levels are not probabilities, or there are not as many Axes as runs.
        RunError: a run has no quantiles there.
    """
    wanted = _checked(levels)
    tensor = _Tensor(layer, place, channel, phase, call)
    runs, titles = _runs(run, style.sentence(str(tensor)))
    given = [ax] if isinstance(ax, Axes) else ax
    if given is not None and len(given) != len(runs):
        raise ArgumentError(f"ax must hold one Axes a run, {len(runs)} in all; got {len(given)}")
    with style.canvases(given, 1.2 + 3.8 * len(runs), columns=len(runs)) as panels:
        for panel, title, one in zip(panels, titles, runs, strict=True):
            _draw(panel, _curves(one, tensor, wanted), wanted, title)
    if isinstance(run, Run):
        return panels[0]
    _share_y(panels)
    for panel in panels:
        panel.set_ylabel(style.plain(str(tensor)) if panel is panels[0] else "")
    return panels


def _runs(run: Run | Mapping[str, Run] | Sequence[Run], title: str) -> tuple[list[Run], list[str]]:
    """The runs with what to write above each."""
    if isinstance(run, Run):
        return [run], [title]
    named = list(run.items()) if isinstance(run, Mapping) else [(one.path.name, one) for one in run]
    if not named:
        raise ArgumentError("run must be a Run, or at least one in a list or mapping; got an empty one")
    return [one for _, one in named], [name for name, _ in named]


def _checked(levels: Sequence[float]) -> NDArray[np.float64]:
    wanted = np.asarray(levels, dtype=np.float64)
    if wanted.ndim != 1 or not wanted.size or not ((wanted >= 0) & (wanted <= 1)).all():
        raise ArgumentError(f"levels must be probabilities from 0 to 1, such as (0.15, 0.5, 0.85); got {levels!r}")
    return np.sort(wanted)


def _curves(run: Run, tensor: _Tensor, levels: NDArray[np.float64]) -> _Curves:
    if tensor.channel is None:
        steps, known, grid, error = _of_layer(run, tensor)
    else:
        steps, known, grid, error = _of_channel(run, tensor, tensor.channel)
    if levels[0] < known[0] or levels[-1] > known[-1]:
        raise ArgumentError(
            f"levels must lie between {known[0]:g} and {known[-1]:g}, as the run has them; got {levels}"
        )
    kept = style.thin(len(steps), _MOST_POINTS)
    grid, error = grid[kept], error[kept, None]
    return _Curves(
        steps,
        steps[kept],
        _at(grid, known, np.broadcast_to(levels, (len(kept), len(levels)))),
        _at(grid, known, levels - error),
        _at(grid, known, levels + error),
    )


_Quantiles = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _of_layer(run: Run, tensor: _Tensor) -> _Quantiles:
    grid = run.grid(layer=tensor.layer, place=tensor.place, phase=tensor.phase)
    here = (grid.keys["call"] == tensor.call).to_numpy()
    if not here.any():
        raise RunError(f"the run has no quantiles of the {tensor} in phase {tensor.phase!r}")
    steps = grid.keys["step"].to_numpy(np.int64)[here]
    return steps, np.asarray(grid.levels), np.asarray(grid.values)[here], np.asarray(grid.error)[here]


def _of_channel(run: Run, tensor: _Tensor, channel: int) -> _Quantiles:
    table = run.channels(tensor.layer, "quantile", place=tensor.place, phase=tensor.phase, call=tensor.call)
    there = table.columns.get_level_values(0).unique().to_list()
    if channel not in there:
        raise RunError(f"the run has no quantiles of the {tensor}; channels with quantiles: {there}")
    one = table[channel]
    steps, known = one.index.to_numpy(np.int64), one.columns.to_numpy(np.float64)
    return steps, known, one.to_numpy(np.float64), np.full(len(steps), np.nan)


def _at(grid: NDArray[np.float64], known: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantile functions ``grid`` ``[R, Q]`` at ``levels`` ``[R, P]``, beyond the grid its ends."""
    return np.stack([np.interp(level, known, row) for level, row in zip(levels, grid, strict=True)])


def _draw(ax: Axes, curves: _Curves, levels: NDArray[np.float64], title: str) -> None:
    handles, labels = [], []
    for index, (level, color) in reversed(list(enumerate(zip(levels, style.colors(len(levels)), strict=True)))):
        ax.fill_between(curves.steps, curves.low[:, index], curves.high[:, index], color=color, alpha=0.25, linewidth=0)
        handles += ax.plot(curves.steps, curves.value[:, index], color=color, linewidth=1.4)
        labels.append(f"{100 * level:g} %")
    style.step_axis(ax, curves.recorded, len(curves.steps))
    style.plain_numbers(ax.yaxis)
    ax.set_ylabel("value")
    style.title(ax, title)
    style.legend_above(ax, handles, labels)


def _share_y(panels: Sequence[Axes]) -> None:
    limits = np.array([panel.get_ylim() for panel in panels])
    for panel in panels:
        panel.set_ylim(limits[:, 0].min(), limits[:, 1].max())
