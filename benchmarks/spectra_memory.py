"""``python -m benchmarks.spectra_memory CASE WAY``: the peak of a fresh process that measures one spectrum, as JSON.

The process first measures a spectrum of a tiny model, so that libraries are there, and forgets its peak so far.
"""

import argparse
import json
import subprocess
import sys

import psutil
import torch
from torch import nn

import bnprobe
from benchmarks import spectra_ways as ways
from benchmarks.memory import forget_peak, peak_so_far
from benchmarks.spectra_cases import DUELS

__all__ = ["main", "peak"]


def peak(case: str, way: str) -> dict[str, float]:
    """``peak_mb`` of the process, and ``extra_mb`` beyond what it held before it began."""
    command = [sys.executable, "-m", "benchmarks.spectra_memory", case, way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {key: float(value) for key, value in json.loads(done.stdout).items()}


def main() -> None:
    """Measure one spectrum in one way, and print this process's peak."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spectra_memory")
    parser.add_argument("case", choices=[one.name for one in DUELS])
    parser.add_argument("way")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    (case,) = [one for one in DUELS if one.name == arguments.case]
    tiny = (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()), torch.randn(1, 2, 4, 4))
    bnprobe.spectrum(*tiny)
    ways.jacrev_once(*tiny)
    torch.manual_seed(0)
    model, x = case.make()
    forget_peak()
    before = psutil.Process().memory_info().rss / 2**20
    if arguments.way == "ours":
        bnprobe.spectrum(model, x, **case.options)
    else:
        case.rivals[arguments.way](model, x)
    now = peak_so_far()
    json.dump({"peak_mb": now, "extra_mb": now - before}, sys.stdout)


if __name__ == "__main__":
    main()
