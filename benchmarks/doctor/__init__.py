"""How often the doctor is right: trained networks known to be sick or healthy, and what ``bnprobe.diagnose`` says.

Thresholds of the rules are set on the set-ups of the half ``tune``; the table counts those of the half ``judge``.
"""

import argparse
import time
import warnings
from dataclasses import asdict
from typing import Any

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which set-ups, which seeds."""
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each set-up")
    parser.add_argument("--half", choices=("tune", "judge", "both"), default="judge", help="which set-ups")
    parser.add_argument("--only", default="", help="only set-ups whose name, case or expected code contains this")
    parser.add_argument("--processes", type=int, default=2, help="how many work at once, one thread each")


def run(seeds: int, half: str, only: str, processes: int) -> dict[str, Any]:
    """All of it, as plain data."""
    from joblib import Parallel, delayed  # here, as every benchmark imports all of them

    from benchmarks.doctor.confusion import confusion
    from benchmarks.doctor.setup import all_setups

    chosen = [
        one
        for one in all_setups()
        if half in ("both", one.half) and only in " ".join((one.name, one.case, *sorted(one.expected)))
    ]
    work = Parallel(n_jobs=processes, verbose=1)
    outcomes = work(delayed(examined)(one.name, seed) for one in chosen for seed in range(seeds))
    wrong = [asdict(one) for one in outcomes if not one.right or one.wrong]
    halves = {name: sorted(one.name for one in all_setups() if one.half == name) for name in ("tune", "judge")}
    return {
        "half": half,
        "seeds": seeds,
        **confusion(outcomes),
        "setups": {one.name: {"case": one.case, "half": one.half, "expected": sorted(one.expected)} for one in chosen},
        "halves": halves,
        "not right": wrong,
    }


def examined(name: str, seed: int) -> Any:
    """One set-up at one seed."""
    import torch

    import bnprobe
    from benchmarks.doctor.confusion import outcome
    from benchmarks.doctor.setup import all_setups
    from bnprobe.rules import Severity

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    setup = next(one for one in all_setups() if one.name == name)
    made = setup.make(seed)
    start = time.perf_counter()
    try:
        findings = bnprobe.diagnose(**made).findings
        serious = [one.code for one in findings if one.severity >= Severity.WARNING]
        return outcome(setup, seed, serious, time.perf_counter() - start)
    except Exception as error:  # whatever it is, it is counted against the doctor
        return outcome(setup, seed, [], time.perf_counter() - start, f"{type(error).__name__}: {error}")
