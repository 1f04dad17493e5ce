"""What the loss is like along its gradient: how far it moves, and how far its gradient does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.measures.gradients import LossGradients, flat, loss_gradients
from bnprobe.measures.loss import Loss

__all__ = ["DEFAULT_LENGTHS", "LossLandscape", "as_lengths", "landscape"]

Array = NDArray[np.float64]

# Santurkar et al. 2018, figure 4: from 1/2 to 4 times the learning rate 0.1; how many in between is ours.
DEFAULT_LENGTHS: tuple[float, ...] = tuple(float(one) for one in np.geomspace(0.05, 0.4, 8).round(4))


@dataclass(frozen=True)
class LossLandscape:
    """Loss and gradient at n places along the gradient g of a loss at weights w.

    Attributes:
        lengths: ``[n]`` multiples of the gradient: the places are w - length g.
        loss: at w.
        gradient_norm: norm of g.
        losses: ``[n]``, at the places.
        gradient_changes: ``[n]``, l2 distance of the gradient there from g.
        distances: ``[n]``, of the places from w: length times the norm of g.
        loss_error: what rounding makes of a loss, estimated, see :func:`landscape`.
        gradient_error: the same of a distance between gradients.
    """

    lengths: Array
    loss: float
    gradient_norm: float
    losses: Array
    gradient_changes: Array
    distances: Array
    loss_error: float
    gradient_error: float

    @property
    def loss_range(self) -> tuple[float, float]:
        """Smallest and largest of the losses; NaN where one is."""
        return float(self.losses.min()), float(self.losses.max())

    @property
    def predictiveness(self) -> tuple[float, float]:
        """Smallest and largest change of the gradient: the smaller, the better it foretells those nearby."""
        return float(self.gradient_changes.min()), float(self.gradient_changes.max())

    @property
    def ratios(self) -> Array:
        """``[n]``, change of the gradient over distance; NaN where the gradient is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios: Array = np.where(self.distances > 0, self.gradient_changes / self.distances, np.nan)
        return ratios

    @property
    def effective_smoothness(self) -> float:
        """The largest of the ratios, "effective beta-smoothness": no Lipschitz constant of the gradient is smaller."""
        return float(self.ratios.max())

    @property
    def effective_smoothness_error(self) -> float:
        """What rounding makes of it: that of the gradients over the smallest distance."""
        return self.gradient_error / float(self.distances.min()) if self.distances.min() > 0 else np.nan

    def frame(self) -> pd.DataFrame:
        """One row a length."""
        columns = {
            "length": self.lengths,
            "distance": self.distances,
            "loss": self.losses,
            "gradient_change": self.gradient_changes,
            "ratio": self.ratios,
        }
        return pd.DataFrame(columns)


def landscape(model: nn.Module, loss: Loss | None, batch: Any, lengths: Sequence[float] | None = None) -> LossLandscape:
    r"""Loss and gradient along the gradient (Santurkar et al. 2018, section 3.1).

    With g the gradient of the loss L in all parameters that train, at the weights w, it takes for each length

    .. math::
        L(w - \ell g), \qquad \|\nabla L(w - \ell g) - g\|_2, \qquad
        \frac{\|\nabla L(w - \ell g) - g\|_2}{\|\ell g\|_2}:

    the range of the loss, the "predictiveness" of the gradient, and with the largest ratio the "effective
    beta-smoothness". These say how a step of plain gradient descent fares; an optimizer's own direction may be another.
    That batch norm makes all three smaller in general is contested: Yao et al. (PyHessian, 2019) find sharper spectra
    of the Hessian with batch norm in shallow networks; see :func:`bnprobe.hessian_eigenvalues`.

    *Cost*: two forwards and backward passes and one more for each length. *Error*: how far loss and gradient move where
    each weight is moved by one rounding of its dtype, times the square root of two for differences of two. One draw, so
    an estimate and no bound.

    Args:
        model: any module, in the mode in which it is to be measured; it is left as it was. The loss is given it with
            its wrappers (``DistributedDataParallel``, ``torch.compile``) taken off.
        loss: ``(model, batch) -> scalar``. None: cross entropy, where the batch is ``(x, y)`` with class labels y.
        batch: what the loss is given; tensors in it are copied for each forward.
        lengths: multiples of the gradient, as a learning rate is one; positive. Default eight from 0.05 to 0.4, evenly
            spaced in their logarithms: from 1/2 to 4 times the learning rate 0.1, the paper's for VGG. Theirs for the
            deep linear network are from 1/100 to 30 times its learning rate.

    Raises:
        ArgumentError: an argument is not usable.
        NotMeasuredError: the loss is not one number with a gradient.
    """
    places = as_lengths(lengths)
    with loss_gradients(model, loss, batch) as gradients:
        found = _along(gradients, places)
    start, nudged, *rest = torch.stack(found).cpu().double().numpy()
    losses, changes = np.array(rest).T
    return LossLandscape(
        lengths=np.array(places),
        loss=float(start[0]),
        gradient_norm=float(start[1]),
        losses=losses,
        gradient_changes=changes,
        distances=np.array(places) * float(start[1]),
        loss_error=float(abs(nudged[0] - start[0]) + gradients.rounding * abs(start[0])),
        gradient_error=float(np.sqrt(2) * nudged[1]),
    )


def as_lengths(lengths: Sequence[float] | None) -> tuple[float, ...]:
    """The lengths, checked.

    Raises:
        ArgumentError: none, or one that is no positive number.
    """
    try:
        found = DEFAULT_LENGTHS if lengths is None else tuple(float(one) for one in lengths)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(math.isfinite(one) and one > 0 for one in found):
        raise ArgumentError(f"lengths must be positive numbers, at least one; got {lengths!r}")
    return found


def _along(gradients: LossGradients, lengths: Sequence[float]) -> list[Tensor]:
    """Loss and norm of g; then loss and norm of the gradient's change at nudged weights, and at each place."""
    loss, first = gradients.of()
    if all(one is None for one in first):
        raise NotMeasuredError("the loss depends on no parameter that trains")
    direction = flat(first, gradients.parameters)
    found = [torch.stack([loss, direction.norm()])]
    steps = [gradients.nudged(), *(_moved(gradients.weights, first, length) for length in lengths)]
    for weights in steps:
        gradients.put(weights)
        loss, there = gradients.of()
        found.append(torch.stack([loss, (flat(there, gradients.parameters) - direction).norm()]))
    return found


def _moved(weights: Sequence[Tensor], first: Sequence[Tensor | None], length: float) -> list[Tensor]:
    return [
        one
        if gradient is None
        else one - length * (gradient if gradient.layout is torch.strided else gradient.to_dense())
        for one, gradient in zip(weights, first, strict=True)
    ]
