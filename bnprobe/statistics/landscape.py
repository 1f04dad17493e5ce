"""The loss along its gradient during training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bnprobe.hooks.sites import LayerChoice, Site, find_sites
from bnprobe.measures.landscape import LossLandscape, as_lengths, landscape
from bnprobe.measures.loss import Loss, loss_or_cross_entropy
from bnprobe.records import COMPUTED, Measured
from bnprobe.schedule import Schedule, as_schedule
from bnprobe.statistics.fixed_batch import beside, kept, written
from bnprobe.statistics.measurement import Measurement, Occasion, Readings

__all__ = ["Landscape"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Landscape(Measurement):
    """Range of the loss and change of its gradient along the gradient, as :func:`bnprobe.landscape` measures them.

    On one batch that stays the same, with the weights that the step's forward used. In a job of several processes
    rank 0 measures. A measurement costs as much as two training steps, and one more for each length.

    Records are of the model as a whole (the layer of name ``""``), have the place ``loss`` and the phase of its mode;
    their ``count`` is the number of parameters that train. Beside each value stands its ``error``: an estimate of what
    rounding makes of it.

    ========================  =====================================================================================
    statistic                 meaning
    ========================  =====================================================================================
    ``loss``                  at the weights; its channels are the losses at each length
    ``loss_range``            largest less smallest of the losses at the lengths
    ``gradient_norm``         norm of the gradient at the weights
    ``gradient_change``       largest l2 change of the gradient; its channels are the changes at each length
    ``effective_smoothness``  largest ratio of that change to the distance; its channels are the ratios at each length
    ========================  =====================================================================================

    Args:
        loss: ``(model, batch) -> scalar``. None: cross entropy, where the batch is ``(x, y)`` with class labels y.
        batch: what the loss is given. Its tensors are copied now, and moved to the model's device where they lie
            elsewhere.
        lengths: multiples of the gradient, as for :func:`bnprobe.landscape`; the same at every step.
        every: every so many steps, or a schedule; default 100, ours: then it costs little beside the training.

    Raises:
        ArgumentError: the loss is missing, or another argument is not usable.
    """

    loss: Loss | None
    batch: Any
    lengths: Sequence[float] | None = None
    every: int | Schedule = 100
    layers: LayerChoice = field(default=None, init=False)

    def __post_init__(self) -> None:
        as_schedule(self.every)
        loss_or_cross_entropy(self.loss, self.batch)
        object.__setattr__(self, "lengths", as_lengths(self.lengths))
        object.__setattr__(self, "batch", kept(self.batch))

    def __repr__(self) -> str:
        """Without the batch, which may be large, and is another on every rank."""
        return f"Landscape(loss={written(self.loss)}, lengths={self.lengths}, every={written(self.every)})"

    def sites(self, model: nn.Module, _: Sequence[Site]) -> list[Site]:
        """The model as a whole."""
        return find_sites(model, lambda name, __: name == "")

    def measure(self, occasion: Occasion) -> Readings:
        """Loss and gradient along the gradient."""
        found = landscape(occasion.root, self.loss, beside(occasion.root, self.batch), self.lengths)
        count = sum(one.numel() for one in occasion.root.parameters() if one.requires_grad)
        return Readings("loss", [""], [count], _values(found))


def _values(found: LossLandscape) -> dict[str, Measured]:
    low, high = found.loss_range
    smoothness = found.effective_smoothness, found.effective_smoothness_error
    with np.errstate(divide="ignore", invalid="ignore"):
        of_ratios = found.gradient_error / found.distances
    return {
        "loss": _measured(found.loss, found.loss_error, found.losses),
        "loss_range": _measured(high - low, 2 * found.loss_error),
        "gradient_norm": _measured(found.gradient_norm, found.gradient_error),
        "gradient_change": _measured(found.predictiveness[1], found.gradient_error, found.gradient_changes),
        "effective_smoothness": _measured(*smoothness, found.ratios, of_ratios),
    }


def _measured(value: float, error: float, channels: Array | None = None, errors: Array | None = None) -> Measured:
    """One value and what it may be off; and values at the lengths, whose errors are the same unless given."""
    if channels is None:
        return Measured(np.array([value]), COMPUTED, np.array([error]))
    off = np.full(channels.shape, error) if errors is None else errors
    return Measured(np.array([value]), COMPUTED, np.array([error]), [channels], channel_errors=[off])
