"""What recording costs: step times with and without a probe, in turns in one process, and the extra peak of memory.

How a step is timed: blocks of steps alternate, alone and watched (A B, B A, A B ...), in one process, on models and
batches of their own made from the same seed. In a watched block the watcher is put on, warmed up for three steps and
emptied; then the block's steps are timed until the watcher has worked off all it holds (the probe: has flushed). A
block of the probe is whole periods of its own flushes, 64 steps or 10 s, so that flushes are in it in their natural
share; for a step of a millisecond it is eight such periods. Watchers that cost a multiple of the step get shorter
blocks. The ratio is that of the medians over blocks; its interval comes from drawing pairs of neighbouring blocks
again. Freed memory is kept for both (``benchmarks/allocator.py``).

Beside the probe, on the layers that it listens to by default: the probe with every statistic exact, the probe at every
tenth step, a user's own hooks, TensorBoard's histograms, and other tools (``benchmarks/peers.py``), each with its
version, if they are installed. Memory: see ``benchmarks/memory.py``.
"""

import argparse
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.allocator import add_argument as add_allocator
from benchmarks.arms import ARMS, Arm
from benchmarks.contest import Contest
from benchmarks.memory import extra_memory
from benchmarks.models import SUBJECTS, Subject
from benchmarks.peers import PEERS

__all__ = ["add_arguments", "run"]

_EVERYBODY: dict[str, type[Arm]] = {arm.name: arm for arm in (*ARMS, *PEERS)}
_SLOW_SHARE, _SLOW_PAIRS = 0.25, 3  # of the time, for watchers whose price is plain to see


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks overhead``."""
    names = [subject.name for subject in SUBJECTS]
    parser.add_argument("--subjects", default=",".join(names), help="separated by commas (default: all)")
    parser.add_argument("--arms", default=",".join(_EVERYBODY), help="separated by commas (default: all)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="measuring time of a quick arm; slow ones get a quarter"
    )
    add_allocator(parser)
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (the targets are for two)")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="measure time alone")


def run(subjects: str, arms: str, seconds: float = 60.0, threads: int = 2, memory: bool = True) -> dict[str, Any]:
    """Ratio of step times with a watcher at every step to those without, per subject and watcher.

    Args:
        subjects: names, separated by commas.
        arms: names, separated by commas.
        seconds: measuring time of a quick arm on one subject.
        threads: torch's threads.
        memory: whether the probe's extra peak of memory is measured as well.

    Returns:
        Per subject and arm: median step times in milliseconds, the ratio of medians and its 95 % bootstrap interval,
        the target where there is one; and which tools are not installed.
    """
    torch.set_num_threads(threads)
    chosen = _choose(subjects, {one.name: one for one in SUBJECTS})
    watchers = _choose(arms, _EVERYBODY)
    present = [one for one in watchers if not one.missing()]
    return {
        "threads": torch.get_num_threads(),
        "versions": {one.name: one.version() for one in present if one.requires},
        "not_installed": [one.name for one in watchers if one.missing()],
        "what": {one.name: (one.__doc__ or "").split("\n")[0] for one in present},
        "subjects": {
            subject.name: _measure(subject, present, seconds, memory)
            for subject in tqdm(chosen, desc="overhead", disable=None)
        },
    }


def _choose(names: str, things: dict[str, Any]) -> list[Any]:
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in things]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(things)}")
    return [things[name] for name in wanted]


def _measure(subject: Subject, arms: list[type[Arm]], seconds: float, memory: bool) -> dict[str, Any]:
    result = {
        arm.name: _contest(subject, arm, seconds) for arm in tqdm(arms, desc=subject.name, leave=False, disable=None)
    }
    if "probe" in result and subject.target is not None:
        result["probe"] |= {"target": subject.target, "within": result["probe"]["ratio"] <= subject.target}
    return result | ({"memory": extra_memory(subject)} if memory else {})


def _contest(subject: Subject, arm: type[Arm], seconds: float) -> dict[str, Any]:
    if arm.quick:
        return Contest(subject, arm, seconds).run()
    try:
        return Contest(subject, arm, seconds * _SLOW_SHARE, _SLOW_PAIRS).run()
    except (
        Exception
    ) as error:  # another tool that breaks on a model is a result, and the others still have to be measured
        if not arm.requires:
            raise
        return {"failed": f"{type(error).__name__}: {error}"}
