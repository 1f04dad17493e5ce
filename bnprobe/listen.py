"""Reading what the taps show: from tensors at places to observations in a collector."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from bnprobe.collect import Collector, Lane
from bnprobe.hooks.saved import GroupMoments, batch_moments, computed_moments, output_moments, saved_moments
from bnprobe.hooks.scaling import Scaling
from bnprobe.hooks.sites import Site
from bnprobe.hooks.taps import Call, Seen, Taps
from bnprobe.hooks.tensors import why_unreadable
from bnprobe.statistics import Observation
from bnprobe.statistics.sample import Sampler

__all__ = ["Reader"]


class Reader:
    """What the taps report to. A measurement that fails must not stop somebody's training.

    Args:
        sampler: draws the samples.
        collector: takes the observations.
        gaps: whether the moments of a batch norm's input are worth a pass over it where autograd saved none.
        on_forward: told when a forward of the root begins, with whether it trains.

    Attributes:
        now: the current step.
        recording: whether it is recorded.
        observed: names of layers of which something was measured.
        why: by name, the reason why something of a layer was not.
        taps: the taps that show tensors; given once they exist.
        scaling: what has scaled the gradients, where that is known.
    """

    taps: Taps

    def __init__(self, sampler: Sampler, collector: Collector, gaps: bool, on_forward: Callable[[bool], None]) -> None:
        self._sampler, self._collector, self._gaps, self._on_forward = sampler, collector, gaps, on_forward
        self._spots: dict[tuple[Call, str], _Spot] = {}
        self._warned = False
        self.scaling: Scaling | None = None
        self.now, self.recording = 0, False
        self.observed: set[str] = set()
        self.why: dict[str, str] = {}

    def listening(self) -> bool:
        """Whether this step is recorded."""
        return self.recording

    def forward_begins(self, training: bool) -> None:
        """Another forward is looked at in other places."""
        self._sampler.turn()
        self._on_forward(training)

    def about_to_change(self, call: Call, inputs: list[Seen]) -> list[Observation]:
        """Read the inputs of an in-place layer before they are overwritten."""
        seen = [
            self._observe(self._spot(call, one.place), one.tensor, one.memory, buffers=one.buffers) for one in inputs
        ]
        return [one for one in seen if one is not None]

    def called(self, call: Call, inputs: list[Seen] | None, outputs: list[Seen], read_before: Any) -> None:
        """Read a layer's inputs and outputs."""
        if inputs is None and not read_before:
            self.why.setdefault(call.site.name, "input: the layer writes into it")
        for seen in read_before or ():
            self._collector.add(self._spot(call, seen.place).lane, self.now, seen)
        self._read(call, inputs or [], outputs, read_before)

    def graded(self, call: Call, place: str, gradient: Tensor) -> None:
        """Read the gradient at a layer's output; its channels are the output's."""
        spot = self._spot(call, place)
        axis, known = None, False
        if spot.given is not None and spot.given[0] == gradient.shape:
            axis, known = spot.given[1], True
        seen = self._observe(spot, gradient, None, None, axis, known, self.scaling)
        if seen is not None:
            self._collector.add(spot.lane, self.now, seen)

    def failed(self, site: Site, error: Exception) -> None:
        """What cannot be measured is said in the inventory, and once aloud; training goes on."""
        self.why[site.name] = f"{type(error).__name__}: {error}"
        self.warn_once(f"bnprobe could not measure layer {site.name!r}: {error}")

    def warn_once(self, message: str) -> None:
        """Say the first failure aloud; there may be one a step."""
        if not self._warned:
            self._warned = True
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    def _read(
        self, call: Call, inputs: list[Seen], outputs: list[Seen], read_before: Sequence[Observation] | None
    ) -> None:
        site = call.site
        moments = self._moments(site, inputs, outputs) if site.is_norm else None
        before = read_before[0] if read_before else None
        made = output_moments(site, moments, outputs[0].tensor) if moments is not None else None
        for one in self._intact(site, inputs, outputs):
            spot = self._spot(call, one.place)
            seen = self._observe(spot, one.tensor, one.memory, moments, buffers=one.buffers)
            if seen is not None:
                self._collector.add(spot.lane, self.now, seen)
                before = before or seen
            moments = None
        for one in outputs:
            spot, tensor = self._spot(call, one.place), one.tensor
            axis, known = None, False
            if before is not None and not site.knows_its_channels and before.shape == tensor.shape:
                axis, known = before.axis, True  # a layer that treats all axes alike hands its input's channels on
            output = self._observe(spot, tensor, one.memory, made, axis, known, None, one.buffers)
            made = None
            if output is not None:
                if spot.gradient is None:
                    spot.gradient = self._spot(call, "grad_" + one.place)
                spot.gradient.given = (output.shape, output.axis)
                self._collector.add(spot.lane, self.now, output)

    def _intact(self, site: Site, inputs: list[Seen], outputs: list[Seen]) -> list[Seen]:
        """Inputs that surely are as the layer received them."""
        if len(inputs) == len(outputs) == 1 and inputs[0].tensor is not outputs[0].tensor:
            return inputs
        made = {id(one.tensor) for one in outputs}
        doubtful = [one for one in inputs if id(one.tensor) in made and one.memory is None]
        if not doubtful:
            return inputs
        self.why.setdefault(site.name, f"{doubtful[0].place}: the layer hands on its input, perhaps changed")
        return [one for one in inputs if not any(one is other for other in doubtful)]

    def _observe(
        self,
        spot: "_Spot",
        tensor: Tensor,
        before: Observation | None,
        moments: GroupMoments | None = None,
        axis: int | None = None,
        known: bool = False,
        scaling: Scaling | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Observation | None:
        """What statistics see of a tensor, seen ``before`` or not; ``axis`` is its channel axis where ``known``."""
        site, lane = spot.site, spot.lane
        if not (
            tensor.shape == spot.shape
            and tensor.dtype is spot.dtype
            and type(tensor) is Tensor
            and not is_functorch_wrapped_tensor(tensor)
        ):  # else it can be read as the last one was
            why = why_unreadable(tensor)
            if why:
                self.why.setdefault(site.name, f"{lane.place}: {why}")
                return None
            spot.remember(tensor)
            self.observed.add(site.name)
        if not known:
            axis = spot.axis
        if before is not None and (before.axis == axis or not site.knows_its_channels):
            before.moments = moments = before.moments or moments
            seen = Observation(site, lane.place, tensor, before.axis, self._sampler, moments, before, None, buffers)
        else:
            seen = Observation(site, lane.place, tensor, axis, self._sampler, moments, None, scaling, buffers)
            if not spot.of_gradient:
                self.taps.remember(tensor, seen)
        self._collector.prepare(lane, seen)
        seen.tensor = None  # an observation outlives its hook; the activation must not
        return seen

    def _spot(self, call: Call, place: str) -> "_Spot":
        spot = self._spots.get((call, place))
        if spot is None:
            lane = self._collector.lane("train" if call.training else "eval", call.site, call.index, place)
            spot = self._spots[call, place] = _Spot(call.site, lane)
        return spot

    def _moments(self, site: Site, inputs: list[Seen] | None, outputs: list[Seen]) -> GroupMoments | None:
        """What is known of a norm layer's input without a pass over it, or by one where the running gap needs it."""
        if not inputs or not outputs or why_unreadable(inputs[0].tensor):
            return None
        if inputs[0].buffers is not None:  # shown by a compiled graph, where autograd keeps nothing
            return computed_moments(site, inputs[0].tensor)
        moments = saved_moments(site, inputs[0].tensor, outputs[0].tensor)
        if moments is None and self._gaps and site.family == "batch_norm":
            moments = batch_moments(site, inputs[0].tensor)
        return moments


class _Spot:
    """One place of one call of a layer: where its records go, and what the last tensor there was like.

    Attributes:
        site, lane: of the layer.
        shape, dtype: of the last tensor.
        axis: the channel axis that the layer itself suggests for such a tensor.
        gradient: of an output, the place of its gradient.
        given: of a gradient, shape and channel axis of the output that it belongs to.
        of_gradient: whether tensors here are gradients.
    """

    __slots__ = ("axis", "dtype", "given", "gradient", "lane", "of_gradient", "shape", "site")

    def __init__(self, site: Site, lane: Lane) -> None:
        self.site, self.lane = site, lane
        self.axis: int | None = None
        self.gradient: _Spot | None = None
        self.given: tuple[torch.Size, int | None] | None = None
        self.of_gradient = lane.place.startswith("grad")
        self.shape: torch.Size | None = None
        self.dtype: torch.dtype | None = None

    def remember(self, tensor: Tensor) -> None:
        """What this tensor is like."""
        self.shape, self.dtype, self.axis = tensor.shape, tensor.dtype, self.site.channel_axis(tensor)
