"""What the next step of an optimizer would do to scale-invariant parameters, and where its steps lead."""

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnprobe.measures.scale_invariance.held import Held
from bnprobe.measures.scale_invariance.hypotheses import Array, host, wide

__all__ = ["Update", "equilibrium", "updates"]


@dataclass(frozen=True, eq=False)
class Update:
    """The step that the optimizer would take with the gradient that was measured.

    Attributes:
        learning_rate, weight_decay: of the parameter's group; NaN where it has none.
        momentum: of SGD; None where there is no law for the equilibrium.
        change: ``[C]`` norms of the step.
        angle: ``[C]``, between the weights before and after it, in radians.
        total: both of the whole tensor.
        why: why the step or its equilibrium is not known.
    """

    learning_rate: float
    weight_decay: float
    momentum: float | None
    change: Array
    angle: Array
    total: tuple[float, float]
    why: str = ""


def updates(
    optimizer: torch.optim.Optimizer, held: Sequence[Held], gradients: Sequence[Tensor | None]
) -> dict[int, Update]:
    """By place among the parameters; those that the optimizer does not have are missing.

    The step is taken by a copy of the optimizer, its state included: model and optimizer stay as they are, and no hook
    of the optimizer's is called.
    """
    twin, why = _stepped(optimizer, held, gradients)
    places = {id(one.tensor): place for place, one in enumerate(held)}
    found = {}
    for number, group in enumerate(optimizer.param_groups):
        for position, parameter in enumerate(group["params"]):
            place = places.get(id(parameter))
            if place is None or held[place].why:
                continue
            one = held[place]
            after = parameter if twin is None else twin.param_groups[number]["params"][position]
            change, angle, total = _moved(one, parameter.detach(), after.detach())
            momentum, no_law = _momentum(optimizer, group)
            if twin is None:
                change, angle, total = change * np.nan, angle * np.nan, (math.nan, math.nan)
            rate, decay = (_number(group.get(name)) for name in ("lr", "weight_decay"))
            found[place] = Update(rate, decay, momentum, change, angle, total, why or no_law)
    return found


def equilibrium(update: Update, weight: Array, gradient: Array) -> tuple[Array, Array]:
    """Norm and angle per step at which gradients and weight decay balance, from the norms of weight and gradient.

    Of SGD with coupled weight decay and heavy-ball momentum, for a scale-invariant weight whose gradient on the unit
    sphere keeps the norm that it has now: ``|w|^4 = eta G^2 / (lambda (1 - mu) (2 - eta lambda / (1 + mu)))`` and
    ``sqrt(2 eta lambda / (1 + mu))`` (R. Wan et al. 2020). NaN for other optimizers and without weight decay.
    """
    rate, decay, momentum = update.learning_rate, update.weight_decay, update.momentum
    if momentum is None or not rate * decay > 0:
        return weight * np.nan, weight * np.nan
    sphere = (weight * gradient) ** 2
    norm = (rate * sphere / (decay * (1 - momentum) * (2 - rate * decay / (1 + momentum)))) ** 0.25
    return norm, np.full_like(weight, math.sqrt(2 * rate * decay / (1 + momentum)))


def _stepped(
    optimizer: torch.optim.Optimizer, held: Sequence[Held], gradients: Sequence[Tensor | None]
) -> tuple[torch.optim.Optimizer | None, str]:
    """A copy of the optimizer that has stepped."""
    by_id = {id(one.tensor): gradient for one, gradient in zip(held, gradients, strict=True)}
    try:
        with torch.inference_mode(False):
            twin = copy.deepcopy(optimizer)
        for theirs, ours in zip(optimizer.param_groups, twin.param_groups, strict=True):
            for parameter, copied in zip(theirs["params"], ours["params"], strict=True):
                gradient = by_id.get(id(parameter))
                copied.grad = None if gradient is None or not parameter.requires_grad else gradient.to(copied.dtype)
        with torch.no_grad():
            inspect.unwrap(type(twin).step)(twin)  # below the wrappers that call global hooks
    except Exception as error:  # an optimizer is anybody's code: its step is not worth the other columns
        return None, f"the optimizer's step could not be taken: {type(error).__name__}: {error}"
    return twin, ""


def _moved(one: Held, before: Tensor, after: Tensor) -> tuple[Array, Array, tuple[float, float]]:
    """Norms of the difference and angles, by channel and in total."""
    old, new = wide(one.rows(before)), wide(one.rows(after))
    angles = host(torch.stack([_angle(old, new), torch.linalg.vector_norm(new - old, dim=1)]))
    total = (float(torch.linalg.vector_norm(new - old)), float(_angle(old.reshape(1, -1), new.reshape(1, -1))))
    return angles[1], angles[0], total


def _angle(old: Tensor, new: Tensor) -> Tensor:
    """Between rows; exact for small ones too."""
    a, b = (torch.nn.functional.normalize(one, dim=1, eps=1e-300) for one in (old, new))
    near, far = torch.linalg.vector_norm(a - b, dim=1), torch.linalg.vector_norm(a + b, dim=1)
    return 2 * torch.atan2(near, far)


def _momentum(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> tuple[float | None, str]:
    if not isinstance(optimizer, torch.optim.SGD):
        return None, f"no law here for the equilibrium of {type(optimizer).__name__}"
    if group.get("nesterov") or group.get("dampening") or group.get("maximize"):
        return None, "no law here for the equilibrium of SGD with these settings"
    return float(group["momentum"]), ""


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
