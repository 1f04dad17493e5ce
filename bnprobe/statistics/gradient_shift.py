"""Gradient shift of layers during training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bnprobe.errors import ArgumentError
from bnprobe.hooks.sites import LayerChoice, Site
from bnprobe.measures.loss import Loss, loss_or_cross_entropy
from bnprobe.measures.shift import shifts_of
from bnprobe.records import COMPUTED, Measured
from bnprobe.schedule import Schedule, as_schedule
from bnprobe.statistics.fixed_batch import beside, kept, written
from bnprobe.statistics.measurement import Measurement, Occasion, Readings

__all__ = ["GradientShift"]


@dataclass(frozen=True, eq=False, repr=False)
class GradientShift(Measurement):
    """How the update of the layers before moves each layer's gradient, as :func:`bnprobe.gradient_shift` measures it.

    On one batch that stays the same, with the weights that the step's forward used and the optimizer's state before
    the step. It is the optimizer that the probe was given (or all of them); without one nothing is measured. The update
    is the one that this batch would cause. In a job of several processes rank 0 measures. A measurement costs about as
    much as a training step for each layer.

    Records have the place ``grad_weight`` and the phase of the model's mode; their ``count`` is the number of the
    layer's parameters. Beside each value stands its ``error``: an estimate of what rounding makes of it.

    =====================  ====================================================================
    statistic              meaning
    =====================  ====================================================================
    ``gradient_shift``     l2 distance between the layer's gradient before and after the update
    ``gradient_cosine``    cosine of the angle between the two
    ``gradient_norm``      norm of the gradient before
    =====================  ====================================================================

    Args:
        loss: ``(model, batch) -> scalar``. None: cross entropy, where the batch is ``(x, y)`` with class labels y.
        batch: what the loss is given. Its tensors are copied now, and moved to the model's device where they lie
            elsewhere.
        every: every so many steps, or a schedule; default 100, ours: then it costs little beside the training of a net
            with a few dozen layers.
        layers: which; None for those with parameters that the probe listens to. All layers are updated, whichever are
            measured.

    Raises:
        ArgumentError: the loss is missing, or another argument is not usable.
    """

    loss: Loss | None
    batch: Any
    every: int | Schedule = 100
    layers: LayerChoice = None

    def __post_init__(self) -> None:
        as_schedule(self.every)
        loss_or_cross_entropy(self.loss, self.batch)
        object.__setattr__(self, "batch", kept(self.batch))

    def __repr__(self) -> str:
        """Without the batch, which may be large, and is another on every rank."""
        return f"GradientShift(loss={written(self.loss)}, every={written(self.every)}, layers={written(self.layers)})"

    def sites(self, model: nn.Module, listened: Sequence[Site]) -> list[Site]:
        """The layers to measure.

        Raises:
            SelectionError: ``layers`` chooses nothing.
        """
        chosen = super().sites(model, listened)
        if self.layers is not None:
            return chosen
        return [site for site in chosen if any(one.requires_grad for one in site.module.parameters())]

    def measure(self, occasion: Occasion) -> Readings:
        """The shifts of the layers, all at once.

        Raises:
            ArgumentError: the probe has no optimizer, or one that cannot be copied.
        """
        if not occasion.optimizers:
            raise ArgumentError("gradient shift needs the optimizer: attach(model, ..., optimizer=optimizer)")
        batch, names = beside(occasion.root, self.batch), [site.name for site in occasion.sites]
        found = shifts_of(occasion.root, self.loss, batch, list(occasion.optimizers), names)
        values = {
            "gradient_shift": Measured(found.l2, COMPUTED, found.error),
            "gradient_cosine": Measured(found.cosine, COMPUTED, found.cosine_error),
            "gradient_norm": Measured(found.norm, COMPUTED, found.error),
        }
        return Readings("grad_weight", found.layers, found.parameters.tolist(), values, found.why)
