"""What recording costs on a GPU: ResNet-50 at 224, batch 128, bfloat16 autocast, channels last, eager and compiled.

Blocks of steps alternate as in ``benchmarks/overhead.py``; both ends of a block wait for the device. Memory is torch's
own account of the peak. Synchronisations are counted by ``torch.cuda.set_sync_debug_mode("warn")`` over steps between
two flushes, on the watched model and on the unwatched one. The probe is attached before the model is compiled, and
warmed up before each block.

Without CUDA it says so and stops; ``--tiny`` runs the same code on whatever there is, on small pictures, to see that
it works.
"""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.arms import Arm, Every10, Plain, Probe, UsersHook
from benchmarks.contest import Contest, Entrant
from benchmarks.models import Batch, Subject, resnet50

__all__ = ["add_arguments", "run"]

_ARMS: tuple[type[Arm], ...] = (Probe, Every10, UsersHook)
_TARGET = 1.03
_COUNTED_STEPS = 10


@dataclass(frozen=True)
class _Size:
    batch: int
    pixels: int


_FULL, _TINY = _Size(128, 224), _Size(2, 32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks gpu``."""
    parser.add_argument("--seconds", type=float, default=60.0, help="measuring time of an arm")
    parser.add_argument("--modes", default="eager,compiled", help="separated by commas")
    parser.add_argument(
        "--tiny", action="store_true", help="small pictures, on the CPU if need be: a test of the code, no result"
    )


def run(seconds: float = 60.0, modes: str = "eager,compiled", tiny: bool = False) -> dict[str, Any]:
    """Ratio of step times, extra memory and synchronisations, by mode and arm.

    Raises:
        SystemExit: there is no CUDA device.
    """
    if not torch.cuda.is_available() and not tiny:
        raise SystemExit(
            "python -m benchmarks gpu needs a CUDA device, and torch sees none; --tiny tests its code without one"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = _TINY if tiny else _FULL
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu (no result)",
        "batch": size.batch,
        "pixels": size.pixels,
        "capability": torch.cuda.get_device_capability() if device.type == "cuda" else None,
        **{
            mode: _measure(mode, device, size, seconds, tiny)
            for mode in tqdm(modes.split(","), desc="gpu", disable=None)
        },
    }


def _measure(mode: str, device: torch.device, size: _Size, seconds: float, tiny: bool) -> dict[str, Any]:
    subject = Subject(
        f"resnet50_{mode}",
        partial(_model, device, mode == "compiled"),
        partial(_batch, device, size),
        _TARGET,
        partial(_train_step, device.type),
    )
    result: dict[str, Any] = {}
    for arm in _ARMS:
        if arm is UsersHook and mode == "compiled":
            continue  # its hooks break the graph at every layer: minutes of compiling for a figure that nobody uses
        contest = Contest(subject, arm, seconds, pairs=1 if tiny else 5, wait=_wait(device), steps=2 if tiny else None)
        result[arm.name] = contest.run() | {
            "memory": _memory(subject, arm),
            "synchronisations": _synchronisations(subject, arm),
        }
    result["probe"] |= {"target": _TARGET, "within": result["probe"]["ratio"] <= _TARGET}
    result["plain"] = {"memory": _memory(subject, Plain), "synchronisations": _synchronisations(subject, Plain)}
    result["graphs"] = int(torch._dynamo.utils.counters["stats"]["unique_graphs"]) if mode == "compiled" else 0
    torch._dynamo.reset()
    return result


def _model(device: torch.device, compiled: bool) -> nn.Module:
    model = resnet50().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own
    return torch.compile(model) if compiled else model


def _batch(device: torch.device, size: _Size) -> Batch:
    x = torch.randn(size.batch, 3, size.pixels, size.pixels, device=device).to(memory_format=torch.channels_last)
    return x, torch.randint(10, (size.batch,), device=device)


def _train_step(kind: str, forward: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    optimizer.zero_grad()
    with torch.autocast(kind, torch.bfloat16):
        loss = F.cross_entropy(forward(batch[0]), batch[1])
    loss.backward()
    optimizer.step()


def _wait(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def _memory(subject: Subject, arm: type[Arm]) -> dict[str, float] | None:
    """Peak of the memory that torch has allocated over a few steps and a flush, in megabytes."""
    if not torch.cuda.is_available():
        return None
    entrant = Entrant(subject, arm, torch.cuda.synchronize)
    entrant.block(3)  # compiles, and picks its algorithms
    torch.cuda.reset_peak_memory_stats()
    entrant.block(70)
    return {"peak_mb": torch.cuda.max_memory_allocated() / 2**20}


def _synchronisations(subject: Subject, arm: type[Arm]) -> dict[str, Any] | None:
    """Waits for the device over a few steps between two flushes, and where they come from."""
    if not torch.cuda.is_available():
        return None
    entrant = Entrant(subject, arm, torch.cuda.synchronize)
    with entrant.watching() as (take, _):
        take(_COUNTED_STEPS)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                take(_COUNTED_STEPS)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in caught if "synchroniz" in str(one.message).lower()]
    return {
        "steps": _COUNTED_STEPS,
        "waits": len(waits),
        "where": sorted({f"{one.filename}:{one.lineno}" for one in waits}),
    }
