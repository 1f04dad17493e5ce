"""What reading costs: a run of 1,000 steps and 100 layers, written by a probe's own table builder."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import bnprobe
from bnprobe.records import DEFAULT_LEVELS, Layer, Measured, Record
from bnprobe.store import Placed, Writer, build_table

__all__ = ["add_arguments", "run"]

_STEPS, _LAYERS, _FLUSH, _CHANNELS = 1000, 100, 50, 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks reading``: none."""


def run() -> dict[str, Any]:
    """Seconds and extra memory of loading, framing and drifting."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run"
        _write(path)
        size = sum(file.stat().st_size for file in path.rglob("*.parquet"))
        result: dict[str, Any] = {"steps": _STEPS, "layers": _LAYERS, "directory_mb": size / 2**20}
        for name, read in {
            "frame_one_statistic_one_layer": lambda: bnprobe.load(path).frame(statistic="mean", layer="layer3"),
            "frame_one_statistic": lambda: bnprobe.load(path).frame(statistic="mean"),
            "channels": lambda: bnprobe.load(path).channels("layer3", "mean"),
            "drift": lambda: bnprobe.drift(bnprobe.load(path), place="input"),
        }.items():
            before, begin = psutil.Process().memory_info().rss, time.perf_counter()
            rows = len(read())
            took = time.perf_counter() - begin
            result[name] = {
                "seconds": took,
                "rows": rows,
                "extra_mb": (psutil.Process().memory_info().rss - before) / 2**20,
            }
        return result


def _write(path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = [Layer(f"layer{i}", "BatchNorm2d", "batch_norm", _CHANNELS, observed=True) for i in range(_LAYERS)]
    places = ("input", "output", "grad_output")
    with Writer(path, settings={}, layers=layers, levels=DEFAULT_LEVELS) as writer:
        for first in range(0, _STEPS, _FLUSH):
            records = [
                Record(step, "train", layer.name, 0, place, 4096)
                for step in range(first, first + _FLUSH)
                for layer in layers
                for place in places
            ]
            rows, n = np.arange(len(records)), len(records)
            grid = np.sort(rng.standard_normal((n, len(DEFAULT_LEVELS))), 1)
            names = ("mean", "variance", "skewness", "excess_kurtosis", "min", "max", "zeros", "nonfinite")
            placed = {
                name: [Placed(rows, Measured(rng.standard_normal(n), "sampled", np.full(n, 0.1)))] for name in names
            }
            channels = rng.standard_normal((n, _CHANNELS))
            placed["mean"] = [Placed(rows, Measured(rng.standard_normal(n), "saved", None, list(channels)))]
            placed["quantile"] = [Placed(rows, Measured(np.full(n, np.nan), "sampled", np.full(n, 0.03), None, grid))]
            writer.append(build_table(records, placed))
