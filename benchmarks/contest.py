"""Two ways to do the same work, timed in turns in one process."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.arms import Arm, Plain
from benchmarks.models import Subject

__all__ = ["Contest", "Entrant", "bootstrap"]

# The probe flushes every 64 recorded steps or every 10 s, whichever comes first (bnprobe/attach.py).
FLUSH_STEPS, FLUSH_SECONDS = 64, 10.0
_BLOCK_SECONDS = 0.5  # ours: shorter blocks drown in the machine's jitter
_WARM_STEPS = 3


class Entrant:
    """A model of its own and the watcher that is put on it for a block at a time."""

    def __init__(self, subject: Subject, arm: type[Arm], wait: Callable[[], None] = lambda: None) -> None:
        torch.manual_seed(0)
        self.arm, self._wait = arm, wait
        self.model, self._batch = subject.model(), subject.batch()
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self._step = subject.step

    def block(self, steps: int, warm: int = _WARM_STEPS) -> float:
        """Mean seconds of a step: the watcher is put on, warmed up and emptied, then timed until it is emptied again.

        So a block holds the watcher's work in its natural share. Putting it on and taking it off is not timed.
        """
        with self.watching(warm) as (take, empty):
            gc.collect()
            self._wait()
            begin = time.perf_counter()
            take(steps)
            empty()
            self._wait()
            return (time.perf_counter() - begin) / steps

    @contextmanager
    def watching(self, warm: int = _WARM_STEPS) -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
        """A watcher that is warmed up and emptied: what takes so many steps, and what empties it."""
        watcher = self.arm(self.model, self._optimizer)

        def take(steps: int) -> None:
            for _ in range(steps):
                self._step(watcher.forward, self._optimizer, self._batch)
                watcher.step()

        try:
            take(warm)
            watcher.finish()
            yield take, watcher.finish
        finally:
            watcher.close()


@dataclass(frozen=True)
class Contest:
    """The step time of a watched training run against that of the same run alone: A B, B A, A B ...

    Attributes:
        subject: what is trained.
        arm: the watcher.
        seconds: measuring time.
        pairs: neighbouring blocks at least, however long they take.
        wait: called at both ends of a block, where a device works on its own.
        steps: steps a block; None: whole flush periods for what is quick, a few seconds for what is not.
    """

    subject: Subject
    arm: type[Arm]
    seconds: float
    pairs: int = 5
    wait: Callable[[], None] = lambda: None
    steps: int | None = None

    def run(self) -> dict[str, Any]:
        """Medians, the ratio of medians, and its 95 % bootstrap interval."""
        plain, watched = (Entrant(self.subject, arm, self.wait) for arm in (Plain, self.arm))
        alone = plain.block(3)
        steps = self.steps or self.block_steps(alone, watched)
        plain_steps = steps if self.arm.quick or self.steps else max(steps, math.ceil(_BLOCK_SECONDS / alone))
        times: list[tuple[float, float]] = []
        begin = time.perf_counter()
        while len(times) < self.pairs or time.perf_counter() - begin < self.seconds:
            if len(times) % 2:
                b = watched.block(steps)
                a = plain.block(plain_steps)
            else:
                a = plain.block(plain_steps)
                b = watched.block(steps)
            times.append((a, b))
        return {**bootstrap(times), "steps_a_block": steps}

    def block_steps(self, alone: float, watched: Entrant | None) -> int:
        """Whole flush periods for what is quick, a few seconds for what is not.

        Args:
            alone: seconds of an unwatched step.
            watched: what is timed where the watcher is not quick.
        """
        if not self.arm.quick and watched is not None:
            return max(1, min(FLUSH_STEPS, round(4 * _BLOCK_SECONDS / watched.block(1, warm=1))))
        if alone * FLUSH_STEPS > FLUSH_SECONDS:
            return math.ceil(FLUSH_SECONDS / alone)
        return FLUSH_STEPS * math.ceil(_BLOCK_SECONDS / (alone * FLUSH_STEPS))


def bootstrap(times: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Medians of both, their ratio, and its interval over pairs drawn again: neighbours share the machine's mood."""
    a, b = np.array(times).T
    pick = np.random.default_rng(0).integers(len(a), size=(4000, len(a)))
    ratios, extras = np.median(b[pick], 1) / np.median(a[pick], 1), np.median(b[pick] - a[pick], 1)
    return {
        "plain_ms": 1e3 * float(np.median(a)),
        "step_ms": 1e3 * float(np.median(b)),
        "ratio": float(np.median(b) / np.median(a)),
        "interval": [float(one) for one in np.quantile(ratios, [0.025, 0.975])],
        "extra_ms": 1e3 * statistics.median(b - a),
        "extra_interval_ms": [1e3 * float(one) for one in np.quantile(extras, [0.025, 0.975])],
        "pairs": len(a),
    }
