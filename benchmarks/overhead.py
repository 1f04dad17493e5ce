"""What recording costs: step times with and without a probe, interleaved in one process."""

import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import bnprobe
from benchmarks.models import SUBJECTS, Subject, train_step

__all__ = ["run"]

_BLOCK_SECONDS = 0.4  # long enough that a block holds flushes in their usual share


def run(seconds: float = 30.0, subjects: str = "mlp,resnet20,resnet18,encoder") -> dict[str, Any]:
    """Ratio of step times with the default probe at every step to those without, per subject.

    Args:
        seconds: how long each subject is measured.
        subjects: their names, separated by commas.

    Returns:
        Per subject and rival: median step times in milliseconds, the ratio of medians and its 95 % bootstrap interval.
    """
    torch.set_num_threads(2)
    chosen = [subject for subject in SUBJECTS if subject.name in subjects.split(",")]
    return {subject.name: _measure(subject, seconds) for subject in tqdm(chosen, desc="overhead", disable=None)}


def _measure(subject: Subject, seconds: float) -> dict[str, Any]:
    arms = {name: _arm(subject, name) for name in ("plain", "probe", "exact", "users_hook")}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for name in itertools.islice(itertools.cycle(arms), len(arms)):
        next(arms[name])  # warm up
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, arm in arms.items():
            times[name].append(next(arm))
    return {
        name: {"step_ms": 1e3 * statistics.median(values)} | ({} if name == "plain" else _ratio(times["plain"], values))
        for name, values in times.items()
    }


def _arm(subject: Subject, kind: str) -> Iterator[float]:
    """Mean step time of one block after another; a probe is attached for each block anew."""
    torch.manual_seed(0)
    model, batch = subject.model(), subject.batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    steps = max(1, round(_BLOCK_SECONDS / _once(model, optimizer, batch)))
    steps = steps if kind in ("plain", "probe") else max(1, steps // 20)  # the slow ones need no long blocks
    while True:
        with _listening(kind, model, optimizer) as probe:
            begin = time.perf_counter()
            for _ in range(steps):
                train_step(model, optimizer, batch)
            if isinstance(probe, bnprobe.Probe):
                probe.flush()  # what is in memory is part of the price
            yield (time.perf_counter() - begin) / steps


def _listening(kind: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> AbstractContextManager[Any]:
    if kind == "plain":
        return nullcontext()
    if kind == "users_hook":
        return _UsersHook(model)
    chosen: tuple[bnprobe.statistics.Statistic, ...] = ()
    if kind == "exact":
        s = bnprobe.statistics
        chosen = (
            s.Moments(exact=True),
            s.Quantiles(exact=True),
            s.Gradients(exact=True),
            s.RunningGap(),
            s.Saturation(exact=True),
        )
    return bnprobe.attach(model, *chosen, optimizer=optimizer)


class _UsersHook:
    """What people write today: mean, standard deviation, extremes and three quantiles of every layer's output."""

    def __init__(self, model: nn.Module) -> None:
        self.rows: list[list[float]] = []
        leaves = [module for module in model.modules() if not list(module.children())]
        self._handles = [module.register_forward_hook(self._hook) for module in leaves]

    def _hook(self, _module: nn.Module, _args: Any, output: Tensor) -> None:
        x = output.detach().float().flatten()
        levels = torch.tensor([0.15, 0.5, 0.85])
        self.rows.append(
            [x.mean().item(), x.std().item(), x.min().item(), x.max().item(), *torch.quantile(x, levels).tolist()]
        )

    def __enter__(self) -> "_UsersHook":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _once(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> float:
    for _ in range(3):
        begin = time.perf_counter()
        train_step(model, optimizer, batch)
    return time.perf_counter() - begin


def _ratio(plain: list[float], other: list[float]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    a, b = np.array(plain), np.array(other)
    pick = rng.integers(len(a), size=(2000, len(a)))  # pairs of neighbouring blocks: the machine's mood is shared
    ratios = np.median(b[pick], 1) / np.median(a[pick], 1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {"ratio": float(np.median(b) / np.median(a)), "interval": [float(low), float(high)], "blocks": len(a)}
