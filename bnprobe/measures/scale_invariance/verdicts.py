"""From what the passes showed to one finding a parameter."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bnprobe.measures.scale_invariance.confirmation import Trial
from bnprobe.measures.scale_invariance.held import Held
from bnprobe.measures.scale_invariance.hypotheses import Array, Hypothesis, Products
from bnprobe.measures.scale_invariance.prediction import UNKNOWN, Predicted
from bnprobe.measures.scale_invariance.result import Finding
from bnprobe.measures.scale_invariance.updates import Update, equilibrium

__all__ = ["Evidence", "findings"]

_SAFETY = 3.0  # two roundings' difference against the error of one (ours)

Refuted = tuple[Hypothesis, NDArray[np.bool_], str, str]


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that was found.

    Attributes:
        held: the parameters.
        screened: weights and gradients of the screening pass.
        base: of the pass as written; None where there was the screening only.
        candidates: hypotheses that were not put to the test.
        kept: hypotheses that hold.
        refuted: what did not hold, see :class:`bnprobe.measures.scale_invariance.confirmation.Tester`.
        trial: of all that hold.
        predicted: for each of them what epsilon does.
        signs: places among them of those that are equivariant, and of those that were tried.
        updates: by place among the parameters.
    """

    held: Sequence[Held]
    screened: Sequence[Products]
    base: Sequence[Products] | None
    candidates: Sequence[Hypothesis] = ()
    kept: Sequence[Hypothesis] = ()
    refuted: Sequence[Refuted] = ()
    trial: Trial | None = None
    predicted: Sequence[Predicted] = ()
    signs: tuple[set[int], set[int]] = (set(), set())
    updates: Mapping[int, Update] = field(default_factory=dict)


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """One for each parameter, then one for each group that is invariant only together."""
    single = [_of_parameter(evidence, place) for place in range(len(evidence.held))]
    groups = [_of_group(evidence, place, one) for place, one in enumerate(evidence.kept) if len(one.members) > 1]
    return (*single, *groups)


def _of_parameter(evidence: Evidence, place: int) -> Finding:
    held = evidence.held[place]
    verdict, why, channels = _judged(evidence, place)
    sign, numbers, each = "", dict[str, float](), dict[str, Array]()
    if not held.why and evidence.base is not None and evidence.base[place].reached:
        numbers, each = _basic(evidence.base[place])
    kept = _kept(evidence, place)
    if kept is not None:
        hypothesis = evidence.kept[kept]
        if not hypothesis.shift:
            sign = _sign(evidence, kept)
            _add_trial(evidence, place, kept, numbers, each)
    if place in evidence.updates and numbers:
        _add_update(evidence.updates[place], verdict, [one for one, _ in channels], numbers, each)
        why = "; ".join(one for one in (why, evidence.updates[place].why) if one)
    return Finding(
        name=held.name,
        members=(),
        verdict=verdict,
        why=why,
        sign=sign,
        trained=held.tensor.requires_grad,
        numbers=numbers,
        channel_verdicts=tuple(one for one, _ in channels),
        channel_why=tuple(one for _, one in channels),
        channel_numbers=each,
    )


def _of_group(evidence: Evidence, kept: int, one: Hypothesis) -> Finding:
    names = tuple(evidence.held[member].name for member in one.members)
    predicted, base, trial = evidence.predicted[kept], evidence.base or (), evidence.trial
    squares = {
        name: sum(float((getattr(base[member], field) ** 2).sum()) for member in one.members)
        for name, field in (("norm", "weight"), ("gradient_norm", "gradient"))
    }
    numbers = {name: math.sqrt(value) for name, value in squares.items()}
    numbers["inner_product"] = sum(float(base[member].inner.sum()) for member in one.members)
    numbers["cosine"] = _cosine(numbers)
    if trial is not None:
        inner = sum(float(part.sum()) for part in trial.inner[trial.hypotheses.index(one)])
        numbers["inner_product_error"] = _SAFETY * abs(inner - numbers["inner_product"])
        numbers |= {name: float(values[0]) for name, values in _of_units(trial, predicted, one).items()}
    layer = evidence.held[one.members[0]].layer_name
    trained = any(evidence.held[member].tensor.requires_grad for member in one.members)
    return Finding(layer, names, "scale-invariant", "", _sign(evidence, kept), trained, numbers)


def _judged(evidence: Evidence, place: int) -> tuple[str, str, list[tuple[str, str]]]:
    """Verdict and reason, of the whole and of each channel."""
    held, screened = evidence.held[place], evidence.screened[place]
    if held.why:
        return "undecided", f"not measured: {held.why}", []
    if not screened.reached:
        return _all(held, "not", "no gradient reaches it: the loss does not depend on it, or does so without autograd")
    if not screened.gradient.any():
        why = "its gradient is exactly zero: the units behind it are dead or constant, or a factor behind it is zero"
        shifted = _kept(evidence, place)
        return _by_units(evidence, place, shifted) if shifted is not None else _all(held, "undecided", why)
    kept = _kept(evidence, place)
    if kept is not None:
        return _by_units(evidence, place, kept)
    group = [one for one in evidence.kept if len(one.members) > 1 and place in one.members]
    if group:
        others = [evidence.held[member].name for member in group[0].members if member != place]
        return _all(held, "not", f"only together with {', '.join(others)}")
    refuted = [one for one in evidence.refuted if place in one[0].members]
    if refuted:
        return _all(held, refuted[0][2], refuted[0][3])
    if any(place in one.members for one in evidence.candidates):
        return _all(held, "undecided", "screening only: the gradient is orthogonal to it; it was not scaled")
    return _not_a_candidate(evidence, place)


def _not_a_candidate(evidence: Evidence, place: int) -> tuple[str, str, list[tuple[str, str]]]:
    held, screened = evidence.held[place], evidence.screened[place]
    if not screened.weight.any():
        if held.tensor.dim() > 1:
            return _all(held, "undecided", "it is zero: scaling it changes nothing")
        return _all(held, "not", "it is zero and its gradient is not")
    kind = held.tensor.dtype
    least = np.finfo(np.float16).smallest_subnormal if str(kind) == "torch.float16" else 0.0
    if screened.gradient.max() < 64 * float(least) * math.sqrt(held.tensor.numel()):
        return _all(held, "undecided", "its gradient is too small for half precision: rounding hides it")
    return _all(held, "not", "the gradient is not orthogonal to it")


def _by_units(evidence: Evidence, place: int, kept: int) -> tuple[str, str, list[tuple[str, str]]]:
    """Where something holds for the parameter, or for some of its channels."""
    held, hypothesis, screened = evidence.held[place], evidence.kept[kept], evidence.screened[place]
    verdict = "translation-invariant" if hypothesis.shift else "scale-invariant"
    units = hypothesis.units[0]
    size = int(np.bincount(units[units >= 0]).max())
    channels = []
    for channel, unit in enumerate(units):
        if unit < 0:
            channels.append(("not", _why_not_channel(hypothesis, screened, channel)))
        elif size > 1:
            channels.append(("not", f"only together with the other channels of its block of {size}"))
        elif not hypothesis.shift and not screened.alive[channel]:
            channels.append(("undecided", "its weights or its gradient are exactly zero"))
        else:
            channels.append((verdict, ""))
    left = [channel for channel, unit in enumerate(units) if unit < 0]
    if evidence.predicted and evidence.predicted[kept] is UNKNOWN:
        return verdict, "no normalization of PyTorch's own was seen that it feeds: nothing is predicted", channels
    if not left:
        return verdict, "" if size == 1 or not hypothesis.shift else _only_together(size, len(units)), channels
    some = f"only {len(units) - len(left)} of its {held.channels} channels are {verdict}"
    return "not", some, channels


def _why_not_channel(hypothesis: Hypothesis, screened: Products, channel: int) -> str:
    if not screened.gradient[channel]:
        return "its gradient is exactly zero"
    return "the gradient is not orthogonal to it" if not hypothesis.shift else "the loss depends on it"


def _only_together(size: int, count: int) -> str:
    return "only all entries by the same amount" if size == count else f"only blocks of {size} by the same amount"


def _all(held: Held, verdict: str, why: str) -> tuple[str, str, list[tuple[str, str]]]:
    return verdict, why, [(verdict, why)] * held.channels


def _kept(evidence: Evidence, place: int) -> int | None:
    """Which hypothesis holds of it; that it may be shifted says more than that it may be scaled."""
    holding = [number for number, one in enumerate(evidence.kept) if one.members == (place,)]
    return max(holding, key=lambda number: evidence.kept[number].shift, default=None)


def _sign(evidence: Evidence, kept: int) -> str:
    good, tried = evidence.signs
    return "equivariant" if kept in good else "neither" if kept in tried else ""


def _basic(base: Products) -> tuple[dict[str, float], dict[str, Array]]:
    """Norms and products, of the whole and by channel."""
    numbers = {
        "norm": float(np.linalg.norm(base.weight)),
        "gradient_norm": float(np.linalg.norm(base.gradient)),
        "inner_product": float(base.inner.sum()),
    }
    numbers["cosine"] = _cosine(numbers)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = {
            "norm": base.weight,
            "gradient_norm": base.gradient,
            "inner_product": base.inner,
            "cosine": base.inner / base.size,
        }
    return numbers, each


def _cosine(numbers: Mapping[str, float]) -> float:
    size = numbers["norm"] * numbers["gradient_norm"]
    return numbers["inner_product"] / size if size else math.nan


def _add_trial(evidence: Evidence, place: int, kept: int, numbers: dict[str, float], each: dict[str, Array]) -> None:
    """What scaling it did, beside what the laws say."""
    hypothesis, predicted, trial = evidence.kept[kept], evidence.predicted[kept], evidence.trial
    if trial is None or evidence.base is None or hypothesis not in trial.hypotheses:
        return
    number = trial.hypotheses.index(hypothesis)
    base = evidence.base[place]
    moved = trial.inner[number][0] - base.inner
    with np.errstate(divide="ignore", invalid="ignore"):
        typical = math.sqrt(float(np.nanmean((moved / base.size) ** 2))) if base.size.any() else 0.0
    error = _SAFETY * np.maximum(np.abs(moved), typical * base.size)
    numbers["inner_product_error"] = float(np.linalg.norm(error)) if hypothesis.count > 1 else float(error.sum())
    units = _of_units(trial, predicted, hypothesis)
    worst = _worst(units["predicted_deviation"])
    numbers |= {name: float(values[worst]) for name, values in units.items()}
    numbers["predicted_inner_product"] = float(units["predicted_inner_product"].sum())
    if hypothesis.count == 1:
        return
    share = _squares(base, hypothesis) / _squares(base, hypothesis).sum()
    together, change = (
        math.sqrt(float((one**2 * share).sum())) for one in (trial.ratios[number], trial.mismatches[number])
    )
    numbers |= {
        "factor": math.nan,
        "gradient_ratio": together,
        "predicted_gradient_ratio": 1.0,
        "gradient_mismatch": change,
    }
    if np.bincount(hypothesis.units[0][hypothesis.units[0] >= 0]).max() == 1:
        each |= {name: hypothesis.of_channels(values, place, math.nan) for name, values in units.items()}
        each["inner_product_error"] = error


def _of_units(trial: Trial, predicted: Predicted, hypothesis: Hypothesis) -> dict[str, Array]:
    """``[units]`` by column."""
    number = trial.hypotheses.index(hypothesis)
    factor = trial.numbers[number]
    return {
        "factor": factor,
        "input_factor": predicted.factor,
        "deviation": predicted.measured - 1,
        "predicted_deviation": predicted.predicted - 1,
        "predicted_inner_product": predicted.euler,
        "epsilon_share": predicted.share,
        "gradient_ratio": trial.ratios[number] / factor,
        "predicted_gradient_ratio": 1 / factor,
        "gradient_mismatch": trial.mismatches[number],
    }


def _worst(deviation: Array) -> int:
    return 0 if np.isnan(deviation).all() else int(np.nanargmax(np.abs(deviation)))


def _squares(base: Products, hypothesis: Hypothesis) -> Array:
    """``[units]`` squared norms of the gradient."""
    units = hypothesis.units[0]
    return np.asarray(np.bincount(units[units >= 0], base.gradient[units >= 0] ** 2, hypothesis.count), np.float64)


def _add_update(
    update: Update, verdict: str, channels: Sequence[str], numbers: dict[str, float], each: dict[str, Array]
) -> None:
    """What the optimizer does to it; where that leads, of what is scale-invariant."""
    numbers |= {"learning_rate": update.learning_rate, "weight_decay": update.weight_decay}
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.array([numbers["norm"]])
        numbers["relative_update"] = float((update.total[0] / whole)[0])
        numbers["angular_update"] = update.total[1]
        if verdict == "scale-invariant":
            numbers["effective_learning_rate"] = float((update.learning_rate / whole**2)[0])
        invariant = np.array([one == "scale-invariant" for one in channels])
        weight = each["norm"]
        norm, angle = equilibrium(update, weight, each["gradient_norm"])
        each |= {
            "relative_update": update.change / weight,
            "angular_update": update.angle,
            "effective_learning_rate": np.where(invariant, update.learning_rate / weight**2, np.nan),
            "equilibrium_norm": np.where(invariant, norm, np.nan),
            "equilibrium_angle": np.where(invariant, angle, np.nan),
            "norm_over_equilibrium": np.where(invariant, weight / norm, np.nan),
        }
        if verdict != "scale-invariant":
            return
        if not invariant.any():
            own, angle = equilibrium(update, whole, np.array([numbers["gradient_norm"]]))
        else:  # each channel has an equilibrium of its own
            own = np.array([np.sqrt((norm**2).sum())])
        numbers |= {
            "equilibrium_norm": float(own[0]),
            "equilibrium_angle": float(angle[0]),
            "norm_over_equilibrium": float(numbers["norm"] / own[0]),
        }
