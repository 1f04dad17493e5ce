"""Small made-up runs whose every number follows from its key, so that a test can say what must be read back."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from bnprobe.records import Layer, Measured, Record
from bnprobe.store import Placed, build_table

LEVELS = (0.0, 0.5, 1.0)
LAYERS = tuple(Layer(name, "BatchNorm1d", "batch_norm", 2, 1e-5, 0.1, observed=True) for name in ("late", "early"))


def value_of(step: int, session: int = 0) -> float:
    return step + session / 16


def records_of(
    steps: Iterable[int], layers: Sequence[Layer] = LAYERS, places: Sequence[str] = ("input",)
) -> list[Record]:
    return [Record(step, "train", layer.name, 0, place, 7) for step in steps for layer in layers for place in places]


def table_of(
    steps: Iterable[int],
    layers: Sequence[Layer] = LAYERS,
    places: Sequence[str] = ("input",),
    session: int = 0,
    statistics: Sequence[str] = ("mean",),
    levels: Sequence[float] = LEVELS,
) -> pa.Table:
    """``statistics`` with two channels each, and quantiles, all `value_of` the step."""
    records = records_of(steps, layers, places)
    rows = np.arange(len(records))
    value = np.array([value_of(record.step, session) for record in records])
    channels = np.stack([value - 1, value + 1], axis=1)
    moments = [Placed(rows, Measured(value, "computed", None, channels))]
    grid = value[:, None] + np.array(levels)
    quantiles = [Placed(rows, Measured(np.empty(0), "sampled", np.full(rows.size, 0.05), None, grid))]
    return build_table(records, {**dict.fromkeys(statistics, moments), "quantile": quantiles})
