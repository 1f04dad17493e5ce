"""What a measurement is: something that a probe finds out at some steps by passes of its own through the model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from bnprobe.hooks.sites import LayerChoice, Site, find_sites
from bnprobe.records import Measured
from bnprobe.schedule import Schedule, as_schedule

__all__ = ["Measurement", "Occasion", "Readings"]


@dataclass(frozen=True)
class Occasion:
    """The moment at which a measurement is taken.

    Attributes:
        step: number of the step that ends; weights are those that its forward used, gradients those of its backward.
        root: the model, wrappers taken off.
        sites: the layers to measure.
        optimizers: those that the probe was given.
    """

    step: int
    root: nn.Module
    sites: Sequence[Site]
    optimizers: Sequence[torch.optim.Optimizer] = ()


@dataclass(frozen=True)
class Readings:
    """What a measurement found out about R layers.

    Attributes:
        place: of the records, one of :data:`bnprobe.records.PLACES`.
        layers: R names.
        counts: how many values each record summarises.
        values: by statistic, of all R layers; NaN where one does not have it.
        why: by name, the reason why a layer was not measured.
    """

    place: str
    layers: Sequence[str]
    counts: Sequence[int]
    values: Mapping[str, Measured]
    why: Mapping[str, str] = field(default_factory=dict)


class Measurement(ABC):
    """Something that runs passes of its own at the end of some steps; a frozen dataclass whose fields are its settings.

    A :class:`bnprobe.statistics.Statistic` reads the tensors of the training's own passes; a measurement makes its own,
    and so must put back what it touches (:func:`bnprobe.measures.untouched.untouched`). It is called once a step that
    its schedule names: with the gradients final and the weights not yet updated where the probe was given an optimizer,
    else when the step ends.

    Laws, tested for every member: the run is afterwards bitwise what it was, random streams too, also where the
    measurement fails half way; other statistics do not see its passes; measuring twice gives the same; it does not
    change itself. What fails stops nothing: the probe says it once, and in the inventory, and tries again when the next
    measurement is due.

    Attributes:
        every: measure at every so many steps of the probe's clock, or a schedule ``step -> bool``; the probe's own
            ``every`` has no say in it.
        layers: which layers, as for :func:`bnprobe.attach`; None for those that the probe listens to.
    """

    every: int | Schedule
    layers: LayerChoice

    def due(self, step: int) -> bool:
        """Whether to measure at this step."""
        return bool(as_schedule(self.every)(step))

    def sites(self, model: nn.Module, listened: Sequence[Site]) -> list[Site]:
        """The layers to measure, in a model of which a probe listens to some.

        Raises:
            SelectionError: ``layers`` chooses nothing.
        """
        return list(listened) if self.layers is None else find_sites(model, self.layers)

    @abstractmethod
    def measure(self, occasion: Occasion) -> Readings:
        """Measure the model as it is now."""
