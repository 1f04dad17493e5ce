"""What recording costs in memory: ``python -m benchmarks.memory SUBJECT ARM`` prints one process's peak as JSON.

Method: a fresh process an arm. Every one first loads the same libraries (a probe on a small network writes and closes
a run), then makes the subject and forgets the peak so far (``/proc/self/clear_refs``; where that is not allowed, the
peak since the process's start is taken, and the result says so). Then it trains for a whole flush period, at least 70
steps or 12 s. The price is the peak resident size with the watcher less that without, the median over three processes
each; the differences among the processes of one arm, reported beside it, are what the allocator and the system
contribute. Here the allocator is as it comes.

Activations are the distinct storages that autograd saves for the backward pass of one step, without parameters,
buffers and the batch.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bnprobe
from benchmarks.allocator import settings
from benchmarks.arms import ARMS, Arm, Plain
from benchmarks.models import SUBJECTS, Subject, mlp, train_step

__all__ = ["activation_bytes", "extra_memory", "forget_peak", "main", "peak_so_far"]

_REPEATS, _STEPS, _SECONDS = 3, 70, 12.0
_ALLOWED_MB, _ALLOWED_SHARE = 10.0, 0.03  # the target: 10 MB and 3 % of the activations


def extra_memory(subject: Subject, arm: str = "probe") -> dict[str, Any]:
    """The peak with a watcher against the peak without, in megabytes (2^20 bytes), and what is allowed."""
    alone, watched = (sorted(_peak(subject.name, name) for _ in range(_REPEATS)) for name in (Plain.name, arm))
    activations = activation_bytes(subject) / 2**20
    extra = statistics.median(watched) - statistics.median(alone)
    allowed = _ALLOWED_MB + _ALLOWED_SHARE * activations
    return {
        "activations_mb": activations,
        "plain_peaks_mb": alone,
        "peaks_mb": watched,
        "extra_mb": extra,
        "allowed_mb": allowed,
        "within": extra <= allowed,
        "peak_since": "training began" if forget_peak() else "the process began",
    }


def activation_bytes(subject: Subject) -> int:
    """Bytes that autograd keeps between the forward and the backward pass of one step."""
    model, batch = subject.model(), subject.batch()
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers(), *batch)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(batch[0])  # what is saved stays alive with the output, so no address is used twice
    del output
    return sum(kept.values())


def main() -> None:
    """Train one subject with one arm, and print this process's peak."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("subject", choices=[one.name for one in SUBJECTS])
    parser.add_argument("arm", choices=[one.name for one in (Plain, *ARMS)])
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    (subject,) = [one for one in SUBJECTS if one.name == arguments.subject]
    (arm,) = [one for one in (Plain, *ARMS) if one.name == arguments.arm]
    _load_libraries()
    steps = _train(subject, arm)
    json.dump({"peak_mb": peak_so_far(), "steps": steps}, sys.stdout)


def _load_libraries() -> None:
    model, batch = mlp(), (torch.randn(8, 784), torch.randint(10, (8,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with bnprobe.attach(model, optimizer=optimizer):
        train_step(model, optimizer, batch)


def _train(subject: Subject, arm: type[Arm]) -> int:
    torch.manual_seed(0)
    model, batch = subject.model(), subject.batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watcher = arm(model, optimizer)
    forget_peak()
    begin, steps = time.perf_counter(), 0
    while steps < _STEPS and time.perf_counter() - begin < _SECONDS:
        subject.step(watcher.forward, optimizer, batch)
        watcher.step()
        steps += 1
    watcher.finish()
    watcher.close()
    return steps


def forget_peak() -> bool:
    """Whether the system has let us forget this process's peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_so_far() -> float:
    """This process's peak of resident memory in megabytes, since it was forgotten."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _peak(subject: str, arm: str) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", subject, arm]
    as_it_comes = {name: value for name, value in os.environ.items() if name not in settings()}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=as_it_comes)
    return float(json.loads(done.stdout)["peak_mb"])


if __name__ == "__main__":
    main()
