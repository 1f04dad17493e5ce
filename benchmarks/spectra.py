"""Jacobian spectra: accuracy against double precision, speed and memory against what users do today.

Accuracy: of every value that ``bnprobe.spectrum`` returns of a model in single precision, the distance to the value in
double precision (same parameters, same input; :mod:`benchmarks.spectra_reference`), relative to the largest value. It
must be within the stated error or 1e-6. ``bounds``: the stated errors alone, on 1,000 random small layers and networks
that hypothesis draws (:mod:`benchmarks.spectra_bounds`).

Speed: ours and its rivals take turns in one process on the same model and input (A B C, B C A ...), each in blocks of
at least 50 ms after one call that is not timed; the speed-up is that of the medians over rounds, its interval comes
from drawing rounds again. Every rival's own distance to double precision stands beside its time.

Memory: the peak of a fresh process each (:mod:`benchmarks.spectra_memory`). ``resnet20``: ``bnprobe.spectra`` over all
layers.

Everything together takes long. ``--parts`` and ``--cases`` choose, and ``--add`` keeps what earlier runs have found:
``python -m benchmarks spectra --add --parts speed --cases conv_stack``.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

import bnprobe
from benchmarks.models import resnet
from benchmarks.spectra_bounds import bounds
from benchmarks.spectra_cases import ACCURACY, DUELS, Case, Duel
from benchmarks.spectra_memory import peak
from bnprobe.measures.jacobian import Spectrum

__all__ = ["accuracy", "add_arguments", "duel", "memory", "run", "table"]

_RELATIVE = 1e-6  # what a value may always be off, of the largest
_BLOCK_SECONDS = 0.05
_SLOW = 15.0  # seconds of a rival that runs once only
_REPEATS = 3  # processes of a memory figure
_TABLE_SECONDS = 90.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks spectra``."""
    parts = ("accuracy", "bounds", "speed", "memory", "resnet20")
    parser.add_argument("--parts", default=",".join(parts), help="separated by commas (default: all)")
    parser.add_argument("--cases", default="", help="of accuracy, speed and memory, separated by commas (default: all)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measuring time of a duel; three rounds at least")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (the targets are for two)")


def run(parts: str, cases: str = "", seconds: float = 5.0, threads: int = 2) -> dict[str, Any]:
    """Figures beside their targets.

    Args:
        parts: of ``accuracy``, ``bounds``, ``speed``, ``memory``, ``resnet20``; separated by commas.
        cases: names, separated by commas; empty: all.
        seconds: measuring time of a duel.
        threads: torch's threads.

    Returns:
        By part and case.
    """
    torch.set_num_threads(threads)
    wanted, chosen = parts.split(","), [one for one in cases.split(",") if one]
    names = {one.name for one in (*ACCURACY, *DUELS)}
    if unknown := [one for one in chosen if one not in names]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    result: dict[str, Any] = {"threads": torch.get_num_threads()}

    def of(every: tuple[Any, ...], measure: Callable[[Any], Any]) -> dict[str, Any]:
        found = {}
        for one in tqdm([one for one in every if not chosen or one.name in chosen], desc=part, disable=None):
            found[one.name] = measure(one)
            tqdm.write(json.dumps({one.name: found[one.name]}), file=sys.stderr)
        return found

    for part in wanted:
        if part == "accuracy":
            result[part] = of(ACCURACY, accuracy)
        elif part == "bounds":
            result[part] = bounds()
        elif part == "speed":
            result[part] = of(DUELS, lambda one: duel(one, seconds))
        elif part == "memory":
            result[part] = of(tuple(one for one in DUELS if one.memory), memory)
        elif part == "resnet20":
            result[part] = table()
        else:
            raise SystemExit(f"unknown part {part}")
    return result


def accuracy(case: Case) -> dict[str, Any]:
    """How far every value is off, and what was said of it."""
    model, x = _made(case)
    truth = _truth(case)
    found = bnprobe.spectrum(model, x, **case.options)
    off, error, largest = _off(found.values, truth), found.error, truth[:, :1]
    allowed = np.maximum(error, _RELATIVE * largest)
    seen = off > 64 * np.finfo(np.float64).eps * largest  # the reference itself may be off by as much
    return {
        "method": found.method,
        "coupled": found.coupled,
        "shape": found.shape,
        "values": found.values.size,
        "worst_relative_error": float((off / largest).max()),
        "largest_stated_error": float((error / largest).max()),
        "within_1e-6": float((off <= _RELATIVE * largest).mean()),
        "bound_over_error": float(np.median((error / np.maximum(off, 1e-300))[seen])) if seen.any() else None,
        "within": bool((off <= allowed).all()),
    }


def duel(case: Duel, seconds: float = 5.0) -> dict[str, Any]:
    """Times of ours and of its rivals, in turns."""
    model, x = _made(case)
    truth = _truth(case)
    ours: dict[str, Callable[[], Any]] = {"ours": lambda: bnprobe.spectrum(model, x, **case.options)}
    takers = ours | {name: _bound(way, model, x) for name, way in case.rivals.items()}
    result: dict[str, Any] = {}
    counts, once = {}, {}
    for name, take in takers.items():
        once[name], values = _timed(take)
        if once[name] < 1:  # the first call is slow for reasons of its own
            once[name], values = _timed(take)
        result[name] = {"relative_error": float((_off(_values(values), truth) / truth[:, :1]).max())}
        counts[name] = math.ceil(_BLOCK_SECONDS / once[name])
    times: dict[str, list[float]] = {name: [] for name in takers}
    begin, order = time.perf_counter(), list(takers)
    while len(times["ours"]) < 3 or (time.perf_counter() - begin < seconds and len(times["ours"]) < 200):
        for name in order:
            if once[name] < _SLOW or not times[name]:
                times[name].append(_block(takers[name], counts[name]) if once[name] < _SLOW else once[name])
        order = order[1:] + order[:1]
    for name, some in times.items():
        result[name] |= {"median_ms": 1e3 * statistics.median(some), "min_ms": 1e3 * min(some), "rounds": len(some)}
        if name != "ours":
            result[name] |= _faster(some, times["ours"])
    return result | {"targets": _targets(case, result)}


def memory(case: Duel) -> dict[str, Any]:
    """Peaks of fresh processes in megabytes (2^20 bytes): the whole process, and beyond what it held before."""
    peaks = {name: [peak(case.name, name) for _ in range(_REPEATS)] for name in ("ours", *case.rivals)}
    result: dict[str, Any] = {
        name: {key: statistics.median(one[key] for one in some) for key in some[0]} for name, some in peaks.items()
    }
    for name, share in case.memory.items():
        of_peak, of_extra = (result["ours"][key] / result[name][key] for key in ("peak_mb", "extra_mb"))
        result[name] |= {"ours_share": of_peak, "ours_share_of_extra": of_extra, "target": share}
        result[name]["within"] = of_peak <= share
    return result


def table(blocks: int = 3, size: int = 32, batch: int = 8) -> dict[str, Any]:
    """Every layer of ResNet-20: ten largest values and three smallest."""
    torch.manual_seed(0)
    model, x = resnet((16, 32, 64), blocks), torch.randn(batch, 3, size, size)
    begin = time.perf_counter()
    frame = bnprobe.spectra(model, x, k=(10, 3))
    took = time.perf_counter() - begin
    return {
        "seconds": took,
        "target": _TABLE_SECONDS,
        "within": took <= _TABLE_SECONDS,
        "layers": len(frame),
        "not_measured": int((frame["why"] != "").sum()),
        "methods": frame["method"].value_counts().to_dict(),
        "worst_error_of_largest": float((frame["max_error"] / frame["max"]).max()),
        "smallest_known_to_1e-3": int((frame["min_error"] <= 1e-3 * frame["max"]).sum()),
    }


def _made(case: Case) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return case.make()


def _truth(case: Case) -> NDArray[np.float64]:
    model, x = _made(case)
    found: NDArray[np.float64] = case.reference(model.double(), x.double(), case.options).detach().numpy()
    return found


def _bound(way: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: way(model, x)


def _values(found: Spectrum | Tensor) -> NDArray[np.float64]:
    return found.values if isinstance(found, Spectrum) else found.detach().double().numpy()


def _off(values: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    if (values.shape[0] not in (1, len(truth)) and len(truth) != 1) or values.shape[1] != truth.shape[1]:
        raise ValueError(f"values {values.shape} are not those of the reference {truth.shape}")
    off: NDArray[np.float64] = np.abs(values - truth)
    return off


def _timed(take: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    found = take()
    return time.perf_counter() - begin, found


def _block(take: Callable[[], Any], count: int) -> float:
    """Mean seconds of a call."""
    if count > 1:
        take()  # the caches are still the rival's
    begin = time.perf_counter()
    for _ in range(count):
        take()
    return (time.perf_counter() - begin) / count


def _faster(theirs: list[float], ours: list[float]) -> dict[str, Any]:
    a, b = np.array(theirs), np.array(ours)
    rng = np.random.default_rng(0)
    pick = rng.integers(len(a), size=(4000, len(a)))
    other = pick if len(a) == len(b) else rng.integers(len(b), size=(4000, len(b)))  # rounds share the machine's mood
    drawn = np.median(a[pick], 1) / np.median(b[other], 1)
    return {
        "ours_faster": float(np.median(a) / np.median(b)),
        "interval": [float(one) for one in np.quantile(drawn, [0.025, 0.975])],
        "ours_faster_by_min": float(a.min() / b.min()),
    }


def _targets(case: Duel, result: dict[str, Any]) -> list[dict[str, Any]]:
    """What was promised, what came, and whether it is kept."""
    found = [
        {"rival": name, "at_least_times_faster": least, "came": result[name]["ours_faster"]}
        for name, least in case.least.items()
    ]
    if case.best_of:
        best = min(case.best_of, key=lambda name: result[name]["median_ms"])
        found.append({"rival": best, "at_least_times_faster": 1.0, "came": result[best]["ours_faster"]})
    for one in found:
        one["within"] = one["came"] >= one["at_least_times_faster"]
    if case.limit is not None:
        came = result["ours"]["median_ms"]
        found.append({"at_most_ms": case.limit, "came": came, "within": came <= case.limit})
    return found
