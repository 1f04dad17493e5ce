"""What is recorded of scale-invariant weights, made from the numbers that were read around an update."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bnprobe.measures import norm_dynamics
from bnprobe.records import COMPUTED, Measured
from bnprobe.statistics.weight_reading import NUMBERS

__all__ = ["Rates", "columns", "cosines", "rates_of"]

Array = NDArray[np.float64]


class Rates(NamedTuple):
    """How an optimizer steps some weights; a rate that is a tensor has been copied, not waited for.

    Attributes:
        law: whose equilibrium is known: ``sgd``, ``nesterov`` or ``adamw``; else empty.
        learning_rate: NaN where the optimizer names none.
        weight_decay, momentum: as the law takes them.
        dampening: of the momentum.
    """

    law: str = ""
    learning_rate: Any = np.nan
    weight_decay: Any = 0.0
    momentum: Any = 0.0
    dampening: Any = 0.0


def rates_of(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Rates:
    """The rates of one of an optimizer's groups as they are now."""
    kind, rate = type(optimizer), _kept(group.get("lr", np.nan))
    # Of the very classes: somebody's own that inherits from them may step in another way.
    if kind is torch.optim.SGD:
        law = "nesterov" if group["nesterov"] else "sgd"
        dampening = group["dampening"] if group["momentum"] else 0.0
        return Rates(law, rate, _kept(group["weight_decay"]), group["momentum"], dampening)
    decoupled = group.get("decoupled_weight_decay", kind is torch.optim.AdamW)
    if kind in (torch.optim.Adam, torch.optim.AdamW) and decoupled and not group["amsgrad"]:
        return Rates("adamw", rate, _kept(group["weight_decay"]), _kept(group["betas"][0]))
    return Rates("", rate)


def columns(numbers: Array, sizes: Array, units: Array, rates: Sequence[Rates]) -> dict[str, Measured]:
    """Records of W weights at one update.

    Args:
        numbers: ``[6, W]`` what was read.
        sizes: ``[W]`` numbers of entries.
        units: ``[W]`` unit roundoffs of the sums.
        rates: W of them.
    """
    norm, grad_norm, dot_grad, after, change, dot_change = numbers
    # Rounding of a sum of n products is a random walk: sqrt(n) unit roundoffs of the product of norms, rarely more
    # (Higham & Mary 2019).
    rounding = np.sqrt(sizes) * units
    rate = np.array([float(one.learning_rate) for one in rates])
    with np.errstate(all="ignore"):
        turned = norm_dynamics.angle(after, change, dot_change)
        sine = np.sin(turned)  # over both norms, the root that the angle was taken of
        reach = np.sqrt(sine**2 + 4 * rounding * (change / norm) ** 2) - sine
        made = {
            "weight_norm": (norm, None),
            "weight_grad_norm": (grad_norm, None),
            "weight_dot_grad": (dot_grad, rounding * norm * grad_norm),
            "weight_grad_cosine": (dot_grad / (norm * grad_norm), rounding),
            "effective_learning_rate": (rate / norm**2, None),
            "angular_update": (turned, reach),
            "relative_update": (change / norm, None),
            "equilibrium_norm": (_equilibrium_norm(norm * grad_norm, sizes, rates), None),
            "equilibrium_angle": (_equilibrium_angle(rates), None),
        }
    return {name: _measured(value, error) for name, (value, error) in made.items() if not np.isnan(value).all()}


def cosines(numbers: Array) -> Array:
    """``[W]`` cosines of weight and gradient; NaN where one of them is 0."""
    norm, grad_norm, dot_grad = (numbers[NUMBERS.index(name)] for name in ("norm", "grad_norm", "dot_grad"))
    with np.errstate(all="ignore"):
        found: Array = np.where(norm * grad_norm > 0, dot_grad / (norm * grad_norm), np.nan)
    return found


def _equilibrium_norm(sphere_gradient: Array, sizes: Array, rates: Sequence[Rates]) -> Array:
    found = np.full(len(rates), np.nan)
    for i, one in enumerate(rates):
        if one.law == "adamw":
            found[i] = norm_dynamics.adamw_equilibrium_norm(
                sizes[i], _number(one.learning_rate), _number(one.weight_decay)
            )
        elif one.law:
            rate = _number(one.learning_rate) * (1 - one.dampening)  # which is all that dampening does
            found[i] = norm_dynamics.equilibrium_norm(sphere_gradient[i], rate, _number(one.weight_decay), one.momentum)
    return found


def _equilibrium_angle(rates: Sequence[Rates]) -> Array:
    known: dict[int, float] = {}  # weights of one group have one angle
    for one in rates:
        if one.law and id(one) not in known:
            rate, nesterov = _number(one.learning_rate) * (1 - one.dampening), one.law == "nesterov"
            decoupled = one.law == "adamw"
            turn = norm_dynamics.equilibrium_angle(
                rate, _number(one.weight_decay), _number(one.momentum), nesterov=nesterov, decoupled=decoupled
            )
            known[id(one)] = float(turn)
    return np.array([known.get(id(one), np.nan) for one in rates])


def _measured(value: Array, error: Array | None) -> Measured:
    return Measured(value, COMPUTED, None if error is None else np.where(np.isnan(value), np.nan, error))


def _number(value: Any) -> float:
    return float(value)


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
