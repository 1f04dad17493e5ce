"""``python -m benchmarks.doctor.check [NAME ...]``: what each set-up costs its network, without the doctor."""

import sys
import time
from typing import Any

import torch
from torch import nn

from benchmarks.doctor.data import cross_entropy
from benchmarks.doctor.harm import accuracy, swap, triangle
from benchmarks.doctor.setup import Setup, all_setups


def figures(made: dict[str, Any]) -> dict[str, float]:
    """Losses on the loader, and the reference's; how much outputs depend on mates in the mode handed over."""
    batches = list(made["loader"])
    loss = made.get("loss") or cross_entropy
    call = made.get("forward")
    if call is not None and "loss" not in made:
        loss = lambda model, batch: nn.functional.cross_entropy(call(model, batch), batch[1])  # noqa: E731
    full = [one for one in batches if not isinstance(one[0], torch.Tensor) or len(one[0]) > 1]
    found = triangle(made["model"], full, loss)
    if call is None and isinstance(full[0], tuple):
        found["swap"] = swap(made["model"], full)
    if loss is cross_entropy:
        found["accuracy"] = accuracy(made["model"].eval(), full)
    if "reference" in made:
        found |= {f"reference's {name}": value for name, value in triangle(made["reference"], full, loss).items()}
    if "val_loader" in made:
        found |= {f"val {name}": value for name, value in triangle(made["model"], made["val_loader"], loss).items()}
    return found


def line(setup: Setup, seed: int = 0) -> str:
    """A set-up and its figures; what cannot be measured in this generic way is said so."""
    start = time.perf_counter()
    made = setup.make(seed)
    took = time.perf_counter() - start
    try:
        told = "  ".join(f"{name} {value:.3g}" for name, value in figures(made).items())
    except Exception as error:
        told = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    expected = "|".join(sorted(setup.expected)) or "healthy"
    return f"{expected:<8} {setup.half:<5} {setup.case} {setup.name:<40} {took:4.1f} s  {told}"


if __name__ == "__main__":
    for one in sorted(all_setups(), key=lambda setup: (sorted(setup.expected), setup.half)):
        if not sys.argv[1:] or any(word in one.name for word in sys.argv[1:]):
            print(line(one), flush=True)
