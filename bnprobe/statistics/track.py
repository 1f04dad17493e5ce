"""What a track is: something that a probe follows through the optimizer's updates, before and after each."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bnprobe.hooks.sites import Site
from bnprobe.schedule import Schedule, as_schedule
from bnprobe.statistics.measurement import Readings

__all__ = ["Found", "Track", "Tracker"]


@dataclass(frozen=True)
class Found:
    """What a track found out of one step."""

    step: int
    readings: Readings


class Track(ABC):
    """Something that is read of the weights at every update; a frozen dataclass whose fields are its settings.

    A :class:`bnprobe.statistics.Statistic` reads tensors that pass through layers and a
    :class:`bnprobe.statistics.Measurement` makes passes of its own; a track compares the weights before an update with
    those after it. What it has to remember in between is kept by a :class:`Tracker`, one a probe.

    Laws, tested for every member: the run is bitwise what it was, random streams too, also where reading fails; no
    wait for the device between flushes; other statistics see nothing of it; it does not change itself.

    Attributes:
        every: read at every so many steps of the probe's clock, or a schedule ``step -> bool``; the probe's own
            ``every`` has no say in it.
    """

    every: int | Schedule

    def due(self, step: int) -> bool:
        """Whether to read at this step."""
        return bool(as_schedule(self.every)(step))

    @abstractmethod
    def sites(self, root: nn.Module, listened: Sequence[Site]) -> list[Site]:
        """The layers whose weights may be followed, in a model of which a probe listens to some.

        Raises:
            SelectionError: the settings name what the model does not have.
        """

    @abstractmethod
    def start(self, root: nn.Module, sites: Sequence[Site], optimizers: Sequence[torch.optim.Optimizer]) -> "Tracker":
        """What follows the weights of these layers.

        Args:
            root: the model, wrappers taken off.
            sites: what :meth:`sites` returned.
            optimizers: those that the probe was given; without any, only ends of steps are seen.

        Raises:
            ArgumentError: the settings need an optimizer.
        """


class Tracker(ABC):
    """What follows one model's weights.

    Attributes:
        why: by layer, the reason why something of it was not measured.
        runs_passes: whether it may run passes through the model at the next occasion, as long as nothing is known.
    """

    why: Mapping[str, str]
    runs_passes: bool = False

    @abstractmethod
    def before(self, step: int, index: int, closure: bool) -> bool:
        """Optimizer number ``index`` is about to step; with a ``closure`` its gradients are still to come.

        Returns:
            Whether anything is read at this step.
        """

    @abstractmethod
    def after(self, index: int) -> None:
        """Optimizer number ``index`` has stepped."""

    @abstractmethod
    def ended(self, step: int) -> bool:
        """A step is over, where there is no optimizer to tell of its updates.

        Returns:
            Whether anything is read at this step.
        """

    @abstractmethod
    def take(self) -> list[Found]:
        """What has been found since the last call; this may wait for the device."""

    @abstractmethod
    def end(self) -> None:
        """Nothing more is to be read: give up what is kept of the weights."""
