"""The same samples in the company of other batch mates, and how much that changes what is predicted for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mode
from typing import Any

import torch
from scipy.stats import binom
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.measures.evidence.patient import Patient

__all__ = ["Change", "Company", "change", "company"]

PROBES, SETS, SINGLES = 16, 4, 4  # ours: a median of 16 samples has a 95 % interval, four sets find a grouped loader


@dataclass(frozen=True)
class Company:
    """Batches whose first samples are the same.

    Attributes:
        batches: as many samples in each as the loader gives; their mates come from other batches where there are any.
        probes: how many samples they have in common.
        singles: some of these samples as batches of one.
    """

    batches: list[Any]
    probes: int
    singles: list[Any]


@dataclass(frozen=True)
class Change:
    """Of the outputs of ``count`` samples, in standard deviations of outputs between samples.

    Attributes:
        value: the largest, over sets of mates, of the medians over samples.
        low, high: 95 % interval of that median, free of distribution; NaN below six samples.
        noise: median change where nothing changes, with the same random numbers.
        count: how many samples.
        scale: the standard deviation, in the outputs' own units.
    """

    value: float
    low: float
    high: float
    noise: float
    count: int
    scale: float


def company(patient: Patient) -> Company:
    """Samples of one batch among mates of others.

    Raises:
        NotMeasuredError: there are too few samples, or they cannot be put together.
    """
    sizes = [patient.samples(batch) for batch in patient.batches]
    size = mode(sizes)
    base = patient.batches[sizes.index(size)]
    others = [batch for batch in patient.batches if batch is not base]
    draw = torch.Generator().manual_seed(patient.seed)
    rows = torch.randperm(size, generator=draw)
    probes = max(1, min(PROBES, size // 2))
    common = patient.part(base, rows[:probes])
    mates = _from_others(patient, others, size - probes or 3, draw) or _from_rest(patient, base, rows[probes:], draw)
    batches = [patient.joined([common, one]) for one in mates]
    return Company(batches, probes, [patient.part(common, [row]) for row in range(min(SINGLES, probes))])


def change(predict: Callable[[Any], Tensor], found: Company) -> Change:
    """What other mates change.

    Args:
        predict: ``batch -> [N, D]``; it must begin each time in the same state, with the same random numbers.
        found: the batches.

    Raises:
        NotMeasuredError: outputs are not finite, or the same for all samples.
    """
    outputs = [predict(batch) for batch in found.batches]
    again = predict(found.batches[0])
    scale = spread(outputs)
    own = [one[: found.probes] for one in outputs]
    moved = [median(own[0], other, scale) for other in own[1:]]
    worst = max(range(len(moved)), key=lambda place: moved[place])
    low, high = _interval(apart(own[0], own[1 + worst], scale))
    noise = median(own[0], again[: found.probes], scale)
    return Change(moved[worst], low, high, noise, found.probes, scale)


def spread(outputs: Sequence[Tensor]) -> float:
    """Standard deviation of outputs between samples, root mean square over their entries."""
    try:
        rows = torch.cat(list(outputs))
    except RuntimeError as error:
        raise NotMeasuredError(f"outputs of different batches differ in shape: {error}") from error
    if not bool(torch.isfinite(rows).all()):
        raise NotMeasuredError("the outputs hold NaN or infinity")
    value = float(rows.var(0, correction=0).mean().sqrt())
    if not value > 1e-9 * float(rows.abs().max().clamp_min(1e-30)):
        raise NotMeasuredError("the outputs are the same for all samples, so that they have no scale")
    return value


def apart(one: Tensor, other: Tensor, scale: float) -> Tensor:
    """``[N]`` mean absolute difference of each sample's outputs, in standard deviations."""
    return (one - other).abs().mean(1) / scale


def median(one: Tensor, other: Tensor, scale: float) -> float:
    """Over samples, the middle two averaged."""
    return float(apart(one, other, scale).quantile(0.5))


def _interval(values: Tensor) -> tuple[float, float]:
    """Of the median, from order statistics (95 % or more)."""
    count = len(values)
    below = int(binom.ppf(0.025, count, 0.5))
    if below < 1:
        return float("nan"), float("nan")
    ordered = values.sort().values
    return float(ordered[below - 1]), float(ordered[count - below])


def _from_others(patient: Patient, others: Sequence[Any], wanted: int, draw: torch.Generator) -> list[Any]:
    """Sets of mates, each from one batch or the next ones; none where there are not enough that fit together."""
    if sum(map(patient.samples, others)) < wanted or len(others) < 2:
        return []
    order = torch.randperm(len(others), generator=draw).tolist()
    found = []
    try:
        for start in range(SETS):
            parts, missing = [], wanted
            for step in range(len(others)):
                batch = others[order[(start + step) % len(others)]]
                rows = torch.randperm(patient.samples(batch), generator=draw)[:missing]
                parts.append(patient.part(batch, rows))
                missing -= len(rows)
                if not missing:
                    break
            found.append(patient.joined(parts))
        patient.joined([found[0], patient.part(patient.batches[0], [0])])
    except NotMeasuredError:  # samples of different batches differ in shape
        return []
    return found


def _from_rest(patient: Patient, base: Any, rest: Tensor, draw: torch.Generator) -> list[Any]:
    if len(rest) < 2:
        raise NotMeasuredError(
            "needs more samples: no two sets of batch mates can be made of "
            f"{sum(map(patient.samples, patient.batches))} samples that fit together"
        )
    half = len(rest) // 2
    return [patient.part(base, rest[torch.randperm(len(rest), generator=draw)[:half]]) for _ in range(SETS)]
