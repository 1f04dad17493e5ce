"""``python -m benchmarks.doctor.check [NAME ...]``: what each set-up costs its network, without the doctor."""

import copy
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.doctor.data import Loss
from benchmarks.doctor.harm import accuracy, effective_values, swap, triangle
from benchmarks.doctor.setup import Setup, all_setups


def figures(made: dict[str, Any]) -> dict[str, float]:
    """Losses on the loader by stored, batch and pooled statistics; what the further arguments show."""
    model, batches = made["model"], list(made["loader"])
    call = made.get("forward") or (lambda model, batch: model(batch[0]))
    loss = made.get("loss") or (lambda model, batch: F.cross_entropy(call(model, batch), batch[1]))
    full = [one for one in batches if len(one[0]) > 1]
    found: dict[str, float] = {}
    if "forward" not in made and len({one[0].shape[1:] for one in full}) == 1:
        found["swap"] = swap(copy.deepcopy(model), full)
    found |= triangle(model, full, loss)
    found["values"] = effective_values(model, full, call)
    if loss is not made.get("loss") and "forward" not in made:
        found["accuracy"] = accuracy(copy.deepcopy(model).eval(), full)
    return found | _further(made, full, loss)


def _further(made: dict[str, Any], full: list[Any], loss: Loss) -> dict[str, float]:
    model, found = made["model"], {}
    for name in ("reference", "val_loader"):
        if name in made:
            pair = (made[name], full) if name == "reference" else (model, made[name])
            found |= {f"{name}'s {kind}": value for kind, value in triangle(*pair, loss).items()}
    if "exported" in made:
        with torch.no_grad():
            want, have = model(full[0][0]), made["exported"](full[0][0])
        found["off by"] = float((want - have).abs().max() / want.std())
    if "step" in made:
        before = _counted(model)
        made["step"]()
        found["updates a step"] = _counted(model) - before
    if "evaluate" in made:
        made["evaluate"]()
        found["stored after evaluate"] = triangle(model, full, loss)["stored"]
    return found


def _counted(model: nn.Module) -> int:
    return max(int(one) for name, one in model.named_buffers() if name.endswith("num_batches_tracked"))


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
