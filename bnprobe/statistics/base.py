"""What a statistic is: a streaming summary of tensors that merges, with no state on the object."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.errors import BnprobeError
from bnprobe.hooks.saved import GroupMoments
from bnprobe.hooks.scaling import Scaling
from bnprobe.hooks.sites import Site
from bnprobe.records import Measured
from bnprobe.statistics.sample import Sample, Sampler

__all__ = ["Observation", "Statistic", "spread"]

State = Any


class Observation:
    """One tensor at one place of one call of a layer, as statistics see it.

    Attributes:
        site: the layer.
        place: ``input``, ``output`` or ``grad_output`` (with a path where the layer has several).
        tensor: the tensor, while the hook runs.
        axis: its channel axis, or None.
        moments: what autograd saved of it, where it did.
        same_as: an earlier observation of this very tensor at another place.
        scaling: what has scaled a gradient; its values are shown unscaled.
        buffers: the layer's buffers, where they are not on the module (a compiled graph writes them there at its end).
        shape: of the tensor.
        count: number of its values.
        step: when it was seen; the collector's.
        drawn: its sample, once drawn.
    """

    __slots__ = (
        "axis",
        "buffers",
        "drawn",
        "moments",
        "place",
        "same_as",
        "sampler",
        "scaling",
        "shape",
        "site",
        "states",
        "step",
        "tensor",
    )

    def __init__(
        self,
        site: Site,
        place: str,
        tensor: Tensor,
        axis: int | None,
        sampler: Sampler,
        moments: GroupMoments | None = None,
        same_as: "Observation | None" = None,
        scaling: Scaling | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.site, self.place, self.axis, self.moments, self.sampler = site, place, axis, moments, sampler
        self.tensor: Tensor | None = tensor
        self.same_as: Observation | None = same_as if same_as is None or same_as.same_as is None else same_as.same_as
        self.scaling, self.buffers, self.shape = scaling, buffers, tensor.shape
        self.states: dict[int, State] | None = None
        self.step = 0
        self.drawn: Sample | None = None

    @property
    def owner(self) -> "Observation":
        """The observation at which this tensor was first seen."""
        return self if self.same_as is None else self.same_as

    @property
    def count(self) -> int:
        """Number of the tensor's values."""
        return self.shape.numel()

    @property
    def sample(self) -> Sample:
        """A random sample of the values, drawn once for all statistics; the whole of a small tensor."""
        owner = self.owner
        return owner.draw() if owner.drawn is None else owner.drawn

    def draw(self, layout: int | None = None) -> Sample:
        """Draw the sample; ``layout`` is the sampler's name for how the tensor lies in memory, where it is known."""
        drawn = self.sampler.sample(self._tensor(), self.axis, layout)
        if self.scaling is not None:
            drawn = Sample(self.scaling.undo(drawn.values), drawn.of, drawn.seed)
        self.drawn = drawn
        return drawn

    @property
    def values(self) -> Tensor:
        """The detached tensor; only while the hook runs (for statistics with ``reads_all``)."""
        values = self._tensor().detach()
        return values if self.scaling is None else self.scaling.undo(values)

    def _tensor(self) -> Tensor:
        if self.tensor is None:
            raise BnprobeError("a statistic reads a tensor after its hook has ended; it must say so by reads_all")
        return self.tensor

    def buffer(self, name: str) -> Tensor | None:
        """A buffer of the layer as it stands when the forward ends; None where it has none."""
        found = getattr(self.site.module, name, None) if self.buffers is None else self.buffers.get(name)
        return found if isinstance(found, Tensor) else None

    def by_channel(self) -> Tensor:
        """``[C, M]`` all values, float32 or wider; C = 1 where there is no channel axis."""
        values = self.values
        values = values if values.dtype.itemsize >= 4 else values.float()
        return values.reshape(1, -1) if self.axis is None else values.movedim(self.axis, 0).flatten(1)


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

    def measure(self, seen: Sequence[Observation]) -> Mapping[str, Measured]:
        """Results of R single observations at once, NaN for one of which there is none.

        The same as ``finish([update(start(), one) for one in seen])``; a statistic may do it for all in one go.
        """
        states = [self.update(self.start(), one) for one in seen]
        there = [state for state in states if state is not None]
        if not there:
            return {}
        position = np.cumsum([state is not None for state in states]) - 1
        which = np.where([state is not None for state in states], position, -1)
        return {name: spread(measured, which) for name, measured in self.finish(there).items()}


def spread(measured: Measured, which: NDArray[np.intp]) -> Measured:
    """The results of D things for R rows: row i has those of ``which[i]``, or none where that is -1."""
    size = len(which)
    if size == len(measured.value) and np.array_equal(which, np.arange(size)):
        return measured
    missing = which < 0

    def pick(values: NDArray[Any] | None) -> NDArray[Any] | None:
        if values is None:
            return None
        picked = values[which]
        if missing.any():
            picked[missing] = np.nan
        return picked

    def pick_lists(values: Sequence[Any] | None) -> list[Any] | None:
        return None if values is None else [None if i < 0 else values[i] for i in which.tolist()]

    value = pick(measured.value)
    assert value is not None
    source: Any = measured.source
    if isinstance(source, np.ndarray):
        source = source[which]
    elif not isinstance(source, str):
        source = [source[i] for i in which.tolist()]
    return Measured(
        value,
        source,
        pick(measured.error),
        pick_lists(measured.channels),
        pick(measured.grid),
        pick_lists(measured.channel_errors),
    )
