"""Growth of gradients through deep nets with batch norm, beside the law of Yang et al. 2019 (theorem 8)."""

import argparse
import math
import time
from typing import Any

import numpy as np
import torch
from torch import nn

import bnprobe
from bnprobe.measures.jacobian.laws import gradient_growth_of_relu

__all__ = ["add_arguments", "run"]

_BATCHES = (8, 16, 32, 64, 128)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Size of the nets and their number."""
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--depth", type=int, default=14, help="blocks of batch norm, ReLU and Gaussian weights")
    parser.add_argument("--nets", type=int, default=5, help="random nets for each batch size")


def run(width: int = 1000, depth: int = 14, nets: int = 5) -> dict[str, Any]:
    """Rates at several batch sizes, and whether they are within max(4 standard errors, 2 %) of the law."""
    begin = time.perf_counter()
    rates: dict[int, list[float]] = {batch: [] for batch in _BATCHES}
    for seed in range(nets):
        generator = torch.Generator().manual_seed(seed)
        model = deep_net(width, depth, generator)
        for batch in _BATCHES:
            x = torch.randn(batch, width, generator=generator)
            rates[batch].append(bnprobe.gradient_growth(model, x, generator=generator).rate)
    rows = [_row(batch, rates[batch]) for batch in _BATCHES]
    return {
        "width": width,
        "depth": depth,
        "nets": nets,
        "rates": rows,
        "all_within": all(row["within"] for row in rows),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def deep_net(width: int, depth: int, generator: torch.Generator) -> nn.Sequential:
    """Blocks of batch norm, ReLU and Gaussian weights of variance 1 / width, with nothing for epsilon to hide."""
    blocks: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(width, width, generator=generator) / math.sqrt(width))
        blocks += [nn.BatchNorm1d(width, eps=1e-10), nn.ReLU(), linear]
    return nn.Sequential(*blocks)


def _row(batch: int, rates: list[float]) -> dict[str, Any]:
    law, mean = gradient_growth_of_relu(batch), float(np.mean(rates))
    error = float(np.std(rates, ddof=1) / math.sqrt(len(rates)))
    return {
        "batch": batch,
        "rate": round(mean, 4),
        "standard_error": round(error, 4),
        "law": round(law, 4),
        "within": abs(mean - law) <= max(4 * error, 0.02 * law),
    }
