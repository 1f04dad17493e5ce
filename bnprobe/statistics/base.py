"""What a statistic is: a streaming summary of tensors that merges, with no state on the object."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from bnprobe.errors import BnprobeError
from bnprobe.hooks.saved import GroupMoments
from bnprobe.hooks.sites import Site
from bnprobe.records import Measured
from bnprobe.statistics.sample import Sample, Sampler

__all__ = ["Observation", "Statistic"]

State = Any


@dataclass(eq=False)
class Observation:
    """One tensor at one place of one call of a layer, as statistics see it.

    Attributes:
        site: the layer.
        place: ``input``, ``output`` or ``grad_output`` (with a path where the layer has several).
        tensor: the tensor, while the hook runs.
        axis: its channel axis, or None.
        moments: what autograd saved of it, where it did.
        same_as: an earlier observation of this very tensor at another place.
        buffers: the layer's buffers, where they are not on the module (a compiled graph writes them there at its end).
    """

    site: Site
    place: str
    tensor: Tensor | None
    axis: int | None
    sampler: Sampler
    moments: GroupMoments | None = None
    same_as: "Observation | None" = None
    buffers: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        self.states: dict[int, State] = {}
        self.shape = self.values.shape
        self.count = self.shape.numel()

    @cached_property
    def sample(self) -> Sample:
        """A random sample of the values, drawn once for all statistics; the whole of a small tensor."""
        if self.same_as is not None:
            return self.same_as.sample
        return self.sampler.sample(self.values, self.axis)

    @property
    def values(self) -> Tensor:
        """The detached tensor; only while the hook runs (for statistics with ``reads_all``)."""
        if self.tensor is None:
            raise BnprobeError("a statistic reads a tensor after its hook has ended; it must say so by reads_all")
        return self.tensor.detach()

    def buffer(self, name: str) -> Tensor | None:
        """A buffer of the layer as it stands when the forward ends; None where it has none."""
        found = getattr(self.site.module, name, None) if self.buffers is None else self.buffers.get(name)
        return found if isinstance(found, Tensor) else None

    def by_channel(self) -> Tensor:
        """``[C, M]`` all values, float32 or wider; C = 1 where there is no channel axis."""
        values = self.values
        values = values if values.dtype.itemsize >= 4 else values.float()
        return values.reshape(1, -1) if self.axis is None else values.movedim(self.axis, 0).flatten(1)

    def release(self) -> None:
        """Let go of the tensor: an observation outlives its hook, the activation must not."""
        self.tensor = None


class Statistic(ABC):
    """A streaming statistic; a frozen dataclass whose fields are its settings.

    Laws, tested for every member: ``merge`` is associative and commutative with ``start()`` as its neutral element;
    observing a tensor in pieces gives what observing it whole gives (exactly where the result is exact, within the
    stated error where it is sampled); the order of samples does not matter; channels do not influence each other.
    ``update`` changes neither the object nor a state, and never waits for the device.
    """

    @property
    def knows_layers(self) -> bool:
        """Whether the result depends on the layer beside the tensor: if not, a tensor seen twice is measured once."""
        return False

    @property
    def reads_all(self) -> bool:
        """Whether ``update`` reads the whole tensor, and so must run while the hook does."""
        return False

    @abstractmethod
    def applies(self, site: Site, place: str) -> bool:
        """Whether this statistic is taken at ``place`` of ``site``."""

    def start(self) -> State:
        """The state of nothing seen."""
        return None

    @abstractmethod
    def update(self, state: State, seen: Observation) -> State:
        """The state after one more tensor."""

    @abstractmethod
    def merge(self, a: State, b: State) -> State:
        """The state of both."""

    @abstractmethod
    def finish(self, states: Sequence[State]) -> Mapping[str, Measured]:
        """Results of R states at once, by statistic name; none of the states is ``start()``."""
