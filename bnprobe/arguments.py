"""The arguments of :func:`bnprobe.attach`: checked at the door, and described for the run directory."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bnprobe.errors import ArgumentError
from bnprobe.schedule import Schedule
from bnprobe.statistics import Measurement, Quantiles, Statistic, Track

__all__ = ["as_tuple", "check", "describe"]


def as_tuple(optimizer: Any) -> tuple[Any, ...]:
    """No, one or several optimizers as a tuple."""
    if optimizer is None:
        return ()
    return tuple(optimizer) if isinstance(optimizer, list | tuple) else (optimizer,)


def check(model: Any, statistics: Sequence[Any], optimizers: Sequence[Any], scaler: Any, sample: Any) -> None:
    """Raise ArgumentError where an argument is not usable."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    for one in statistics:
        if isinstance(one, type) and issubclass(one, Statistic | Measurement | Track):
            raise ArgumentError(f"statistics are instances: write {one.__name__}(), not {one.__name__}")
        if not isinstance(one, Statistic | Measurement | Track):
            raise ArgumentError(f"statistics must come from bnprobe.statistics; got {one!r}")
    kinds = [type(one).__name__ for one in statistics]
    if len(set(kinds)) < len(kinds):
        raise ArgumentError(f"each statistic may be given once; got {', '.join(kinds)}")
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ArgumentError(f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}")
    if len({id(optimizer) for optimizer in optimizers}) < len(optimizers):
        raise ArgumentError("each optimizer may be given once")
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise ArgumentError(f"scaler must be a torch.amp.GradScaler; got {type(scaler).__name__}")
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 2:
        raise ArgumentError(f"sample must be an int of at least 2; got {sample!r}")


def describe(
    statistics: Sequence[Statistic | Measurement | Track],
    schedule: Schedule,
    optimizers: Sequence[torch.optim.Optimizer],
    sample: int,
    seed: int,
) -> dict[str, Any]:
    """The arguments as a run directory keeps them."""
    quantiles = next((one for one in statistics if isinstance(one, Quantiles)), None)
    return {
        "statistics": [repr(one) for one in statistics],
        "every": _name(schedule),
        "optimizer": ", ".join(type(optimizer).__name__ for optimizer in optimizers) or None,
        "sample": sample,
        "seed": seed,
        "quantile_channels": list(quantiles.channels) if quantiles else [],
    }


def _name(schedule: Callable[[int], bool]) -> str:
    return getattr(schedule, "__qualname__", None) or repr(schedule)
