"""A run such as training a small network leaves behind, made without training one.

Linear -> BatchNorm1d -> Sigmoid blocks: what the Linear gives drifts and widens, the norm layer holds mean and
variance, and the distribution's shape changes slowly. Numbers follow from formulas, so tests can foretell them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from bnprobe.records import COMPUTED, DEFAULT_LEVELS, SAMPLED, SAVED, Layer, Measured, Record
from bnprobe.store import Placed, Run, Writer, build_table

LEVELS = np.array(DEFAULT_LEVELS)
ERROR = 0.03
COUNT = 6000
_SCORES = norm.ppf(np.clip(LEVELS, 0.0005, 0.9995))
_CHANNELS = 4
_PART = 100  # steps


def inventory(blocks: int, prefix: str = "") -> list[Layer]:
    """Three layers a block, a last Linear, and one layer that nothing was seen of."""
    layers = []
    for block in range(blocks):
        names = [f"{prefix}{kind}{block + 1}" for kind in ("fc", "bn", "act")]
        after = f"{prefix}fc{block + 2}" if block + 1 < blocks else f"{prefix}head"
        layers += [
            Layer(names[0], "Linear", "linear", 100, feeds=(names[1],), observed=True),
            Layer(names[1], "BatchNorm1d", "batch_norm", 100, 1e-5, 0.1, (names[2],), observed=True),
            Layer(names[2], "Sigmoid", "nonlinearity", feeds=(after,), observed=True),
        ]
    layers.append(Layer(f"{prefix}head", "Linear", "linear", 10, observed=True))
    layers.append(Layer(f"{prefix}spare", "Dropout", "other", observed=False, why="never called"))
    return layers


def quantiles(layer: Layer, place: str, progress: float, block: int) -> np.ndarray:
    """The quantile function ``[levels]`` of a layer's input or output at a share of training."""
    raw = (1.0 + 0.5 * block) * (0.6 * np.sin(3 * progress) + (1 + 2 * progress) * _skewed(progress))
    normalized = 0.8 * progress + (1 + 0.3 * progress) * _skewed(progress)
    if layer.family == "nonlinearity":
        return normalized if place == "input" else expit(normalized)
    if layer.family == "batch_norm":
        return raw if place == "input" else normalized
    return expit(normalized) if place == "input" else raw


def _skewed(progress: float) -> np.ndarray:
    """Standard normal at first, then longer to the right."""
    return _SCORES + 0.1 * progress * (_SCORES**2 - 1)


def moments_of(grid: np.ndarray) -> tuple[float, float]:
    """Mean and variance of a quantile function."""
    mean = float(np.trapezoid(grid, LEVELS))
    return mean, float(np.trapezoid((grid - mean) ** 2, LEVELS))


def make_run(
    directory: Path,
    *,
    steps: Sequence[int] = range(200),
    blocks: int = 3,
    prefix: str = "",
    layers: Sequence[Layer] | None = None,
    without: Sequence[str] = (),
    close: bool = True,
) -> Run:
    """Writes a run and opens it.

    Args:
        directory: of the run.
        steps: the recorded ones.
        blocks: of Linear, BatchNorm1d, Sigmoid.
        prefix: of every layer's name.
        layers: an inventory of one's own in place of the blocks.
        without: statistics to leave out.
        close: False leaves the run as a killed process does.
    """
    layers = inventory(blocks, prefix) if layers is None else layers
    writer = Writer(directory, settings={"every": 1, "seed": 0}, layers=layers, levels=LEVELS)
    for start in range(0, len(steps), _PART):
        writer.append(_table(layers, steps[start : start + _PART], steps[-1] or 1, without))
    if close:
        writer.close()
    else:
        writer._lock.release()
    return Run(directory)


def _table(layers: Sequence[Layer], steps: Sequence[int], last: int, without: Sequence[str]) -> object:
    seen = [(index, layer) for index, layer in enumerate(layers) if layer.observed]
    cells = [
        (step, index, layer, place)
        for step in steps
        for index, layer in seen
        for place in ("input", "output", "grad_output")
    ]
    records = [Record(step, "train", layer.name, 0, place, COUNT) for step, _, layer, place in cells]
    progress = np.array([step / last for step, *_ in cells])
    grids = np.array(
        [
            quantiles(layer, place, share, index // 3)
            for (_, index, layer, place), share in zip(cells, progress, strict=True)
        ]
    )
    gradient = np.array([place == "grad_output" for *_, place in cells])
    grids[gradient] *= 1e-3
    mean = np.trapezoid(grids, LEVELS, axis=1)
    variance = np.trapezoid((grids - mean[:, None]) ** 2, LEVELS, axis=1)
    values = np.flatnonzero(~gradient)
    flat = _rows(cells, "nonlinearity", "input")
    norms = _rows(cells, "batch_norm", "input")
    share = np.clip(0.1 + 0.6 * progress[flat] - 0.02 * np.array([cells[row][1] for row in flat]), 0, 1)
    gap = 1.5 * np.exp(-8 * progress[norms]) + 0.02 + 0.01 * np.sin(40 * progress[norms])
    every = np.arange(len(cells))
    channels = [np.repeat(grids[row][None], 2, axis=0).reshape(-1) for row in values]
    placed = {
        "mean": [Placed(every, Measured(mean, COMPUTED, channels=np.repeat(mean[:, None], _CHANNELS, axis=1)))],
        "variance": [Placed(every, Measured(variance, SAVED))],
        "quantile": [
            Placed(
                values,
                Measured(np.empty(0), SAMPLED, np.full(len(values), ERROR), channels=channels, grid=grids[values]),
            )
        ],
        "saturated": [Placed(flat, Measured(share, SAMPLED, np.full(len(flat), 0.02)))],
        "mean_gap": [Placed(norms, Measured(gap, COMPUTED))],
        "variance_gap": [Placed(norms, Measured(2 * gap, COMPUTED))],
    }
    return build_table(records, {name: groups for name, groups in placed.items() if name not in without})


def _rows(cells: Sequence[tuple[int, int, Layer, str]], family: str, place: str) -> np.ndarray:
    return np.array(
        [row for row, (_, _, layer, where) in enumerate(cells) if (layer.family, where) == (family, place)], int
    )


def with_spectra(run: Run, spectra: np.ndarray, *, whole: bool = True) -> Run:
    """A run beside another one, with singular values ``[steps, values]`` of its first layer; all, or some of them."""
    directory = run.path.with_name(f"{run.path.name}-{'all' if whole else 'some'}")
    if directory.exists():
        return Run(directory)
    layer = Layer(run.layers["name"][0], "Linear", "linear", observed=True)
    ordered = np.sort(spectra, 1)[:, ::-1]
    listed = Measured(
        ordered.mean(1) if whole else np.full(len(ordered), np.nan),
        COMPUTED,
        None,
        list(ordered),
        channel_errors=list(np.full_like(ordered, ERROR)),
    )
    records = [Record(step, "train", layer.name, 0, "jacobian", ordered.shape[1]) for step in range(len(ordered))]
    with Writer(directory, settings={}, layers=[layer], levels=LEVELS) as writer:
        writer.append(build_table(records, {"singular_value": [Placed(np.arange(len(ordered)), listed)]}))
    return Run(directory)


def with_measurements(run: Run, steps: Sequence[int] = range(0, 60, 10)) -> Run:
    """A run beside another one, with gradient shifts of its layers and a landscape of the loss."""
    directory = run.path.with_name(f"{run.path.name}-measured-{len(steps)}")
    if directory.exists():
        return Run(directory)
    names = [name for name in run.layers["name"] if "fc" in name or "bn" in name]
    layers = [Layer(name, "Linear", "linear", observed=True) for name in names] + [
        Layer("", "Net", "other", observed=True)
    ]
    records = [Record(step, "train", name, 0, "grad_weight", 100) for step in steps for name in names]
    records += [Record(step, "train", "", 0, "loss", 1000) for step in steps]
    shifts = np.arange(len(steps) * len(names))
    rest = len(shifts) + np.arange(len(steps))
    along = [np.array([1.0, 2.0, 4.0]) * 10.0 ** (-index) for index in range(len(steps))]
    loss = Measured(np.array([2.5 * one[0] for one in along]), COMPUTED, channels=along)
    with Writer(directory, settings={}, layers=layers, levels=LEVELS) as writer:
        placed = {
            "gradient_cosine": [Placed(shifts, Measured(np.cos(shifts / 9), COMPUTED))],
            "gradient_shift": [Placed(shifts, Measured(1.0 + shifts, COMPUTED))],
            "loss": [Placed(rest, loss)],
            "gradient_change": [
                Placed(rest, Measured(np.array([4.0 + one[2] for one in along]), COMPUTED, channels=along))
            ],
        }
        writer.append(build_table(records, placed))
    return Run(directory)


def with_weights(run: Run, *, steps: int = 240, layers: int = 3) -> Run:
    """A run beside another one, with norms and angles of its first layers' weights on their way to equilibrium."""
    directory = run.path.with_name(f"{run.path.name}-weights-{steps}-{layers}")
    if directory.exists():
        return Run(directory)
    inventory_ = [Layer(name, "Linear", "linear", observed=True) for name in run.layers["name"][:layers]]
    cells = [(step, index) for step in range(steps) for index in range(layers)]
    records = [Record(step, "train", inventory_[index].name, 0, "weight", 100) for step, index in cells]
    step, index = np.array(cells, np.float64).T
    noise = np.random.default_rng(0).normal(size=(2, len(cells)))
    made = {
        "weight_norm": (index + 1) * (1 + np.exp(-step / 40)),
        "equilibrium_norm": (index + 1) * np.exp(0.1 * noise[0]),
        "angular_update": 0.01 * (1 - 0.5 * np.exp(-step / 40)) * np.exp(0.1 * noise[1]),
        "equilibrium_angle": np.full(len(cells), 0.01),
    }
    every = np.arange(len(cells))
    with Writer(directory, settings={}, layers=inventory_, levels=LEVELS) as writer:
        writer.append(build_table(records, {k: [Placed(every, Measured(v, COMPUTED))] for k, v in made.items()}))
    return Run(directory)
