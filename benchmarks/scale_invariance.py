"""Cost of finding the scale-invariant parameters of a ResNet-20 (CIFAR size), in training steps."""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import bnprobe
from benchmarks.models import resnet

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Size of the batch, and how often each is timed."""
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)


def run(batch: int = 64, repeats: int = 9, threads: int = 2) -> dict[str, Any]:
    """Medians of interleaved timings, and their ratios to that of a training step."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = resnet((16, 32, 64), 3)
    pair = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(pair[0]), pair[1]).backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()

    for _ in range(3):
        step()
    kinds: dict[str, Callable[[], Any]] = {
        "step": step,
        "screening": lambda: bnprobe.scale_invariance(model, None, pair, confirm=False),
        "whole": lambda: bnprobe.scale_invariance(model, None, pair, optimizer=optimizer),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for repeat in range(repeats + 1):
        for name, call in kinds.items():
            begin = time.perf_counter()
            found = call()
            if repeat:  # the first warms up
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "batch": batch,
        "threads": threads,
        "seconds": medians,
        "screening_in_steps": round(medians["screening"] / medians["step"], 2),
        "whole_in_steps": round(medians["whole"] / medians["step"], 2),
        "passes": found.passes,
        "scale_invariant": len(found.parameters),
        "groups": len(found.groups),
    }
