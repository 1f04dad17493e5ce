"""Reading what the taps show: from tensors at places to observations in a collector."""

import warnings
from collections.abc import Callable
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

    def forward_begins(self, training: bool) -> None:
        """Another forward is looked at in other places."""
        self._sampler.turn()
        self._on_forward(training)

    def about_to_change(self, call: Call, inputs: list[Seen]) -> list[tuple[str, Observation]]:
        """Read the inputs of an in-place layer before they are overwritten."""
        read = []
        for one in inputs:
            spot = self._spot(call, one.place)
            if self._readable(spot, one.tensor):
                read.append((one.place, self._observe(spot, one, spot.axis, None)))
        return read

    def called(self, call: Call, inputs: list[Seen] | None, outputs: list[Seen], read_before: Any) -> None:
        """Read a layer's inputs and outputs."""
        site, before = call.site, None
        moments = made = None
        for place, seen in read_before or ():
            self._collector.add(self._spot(call, place).lane, seen)
            before = before or seen
        if inputs:
            if site.is_norm and outputs:
                moments = self._moments(site, inputs[0], outputs[0].tensor)
                made = None if moments is None else output_moments(site, moments, outputs[0].tensor)
            apart = len(inputs) == len(outputs) == 1 and inputs[0].tensor is not outputs[0].tensor
            for one in inputs if apart else self._intact(site, inputs, outputs):
                spot = self._spots.get((call, one.place)) or self._spot(call, one.place)
                if self._readable(spot, one.tensor):
                    seen = self._observe(spot, one, spot.axis, moments)
                    self._collector.add(spot.lane, seen)
                    before = before or seen
                moments = None
        elif inputs is None and not read_before:
            self.why.setdefault(site.name, "input: the layer writes into it")
        for one in outputs:
            spot = self._spots.get((call, one.place)) or self._spot(call, one.place)
            if self._readable(spot, one.tensor):
                axis = spot.axis
                if before is not None and not site.knows_its_channels and before.shape == one.tensor.shape:
                    axis = before.axis  # a layer that treats all axes alike hands its input's channels on
                seen = self._observe(spot, one, axis, made)
                self._collector.add(spot.lane, seen)
                gradient = spot.gradient or self._spot(call, "grad_" + one.place)
                spot.gradient, gradient.given_shape, gradient.given_axis = gradient, seen.shape, seen.axis
            made = None

    def graded(self, call: Call, place: str, gradient: Tensor) -> None:
        """Read the gradient at a layer's output; its channels are the output's."""
        spot = self._spots.get((call, place)) or self._spot(call, place)
        if self._readable(spot, gradient):
            axis = spot.given_axis if gradient.shape == spot.given_shape else spot.axis
            seen = Observation(call.site, place, gradient, axis, self._sampler, None, None, self.scaling)
            self._keep(spot, seen, gradient)
            self._collector.add(spot.lane, seen)

    def failed(self, site: Site, error: Exception) -> None:
        """What cannot be measured is said in the inventory, and once aloud; training goes on."""
        self.why[site.name] = f"{type(error).__name__}: {error}"
        self.warn_once(f"bnprobe could not measure layer {site.name!r}: {error}")

    def warn_once(self, message: str) -> None:
        """Say the first failure aloud; there may be one a step."""
        if not self._warned:
            self._warned = True
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    def _intact(self, site: Site, inputs: list[Seen], outputs: list[Seen]) -> list[Seen]:
        """Inputs that surely are as the layer received them."""
        made = {id(one.tensor) for one in outputs}
        doubtful = [one for one in inputs if id(one.tensor) in made and one.memory is None]
        if not doubtful:
            return inputs
        self.why.setdefault(site.name, f"{doubtful[0].place}: the layer hands on its input, perhaps changed")
        return [one for one in inputs if not any(one is other for other in doubtful)]

    def _readable(self, spot: "_Spot", tensor: Tensor) -> bool:
        """Whether a tensor can be read: as the last one was, or after a longer look."""
        if (
            tensor.shape == spot.shape
            and tensor.dtype is spot.dtype
            and tensor.device == spot.device
            and type(tensor) is Tensor
            and not is_functorch_wrapped_tensor(tensor)
        ):
            return True
        why = why_unreadable(tensor)
        if why:
            self.why.setdefault(spot.site.name, f"{spot.lane.place}: {why}")
            return False
        spot.remember(tensor)
        self.observed.add(spot.site.name)
        return True

    def _observe(self, spot: "_Spot", one: Seen, axis: int | None, moments: GroupMoments | None) -> Observation:
        """What statistics see of an input or output, shown before or not; ``axis`` is its channel axis."""
        site, lane, before = spot.site, spot.lane, one.memory
        if before is not None and (before.axis == axis or not site.knows_its_channels):
            if before.moments is None and moments is not None:
                before.moments = moments
                self._collector.bytes += moments.nbytes
            if not lane.layered:
                if lane.reading or before.drawn is None:
                    self._keep(spot, before, one.tensor)
                return before  # type: ignore[no-any-return]  # the taps remember what they were given
            axis, moments = before.axis, before.moments
        else:
            before = None
        seen = Observation(site, lane.place, one.tensor, axis, self._sampler, moments, before, None, one.buffers)
        if before is None:
            self.taps.remember(one.tensor, seen)
            if moments is not None:
                self._collector.bytes += moments.nbytes
        self._keep(spot, seen, one.tensor)
        return seen

    def _keep(self, spot: "_Spot", seen: Observation, tensor: Tensor) -> None:
        """Read of a tensor what the statistics will need; an observation outlives its hook, the tensor must not."""
        lane, owner = spot.lane, seen.same_as or seen
        seen.tensor = owner.tensor = tensor
        seen.step = self.now
        try:
            if lane.reading:
                self._collector.read(lane, seen)
            if lane.samples and owner.drawn is None:
                if tensor.stride() != spot.stride or owner.axis != spot.laid_out_by:
                    spot.lay_out(tensor, owner.axis, self._sampler)
                self._collector.bytes += owner.draw(spot.layout).taken.nbytes
        finally:
            seen.tensor = owner.tensor = None

    def _spot(self, call: Call, place: str) -> "_Spot":
        spot = self._spots.get((call, place))
        if spot is None:
            lane = self._collector.lane("train" if call.training else "eval", call.site, call.index, place)
            spot = self._spots[call, place] = _Spot(call.site, lane)
        return spot

    def _moments(self, site: Site, inputs: Seen, output: Tensor) -> GroupMoments | None:
        """What is known of a norm layer's input without a pass over it, or by one where the running gap needs it."""
        if why_unreadable(inputs.tensor):
            return None
        if inputs.buffers is not None:  # shown by a compiled graph, where autograd keeps nothing
            return computed_moments(site, inputs.tensor)
        moments = saved_moments(site, inputs.tensor, output)
        if moments is None and self._gaps and site.family == "batch_norm":
            moments = batch_moments(site, inputs.tensor)
        return moments


class _Spot:
    """One place of one call of a layer: where its records go, and what the last tensor there was like.

    Attributes:
        site, lane: of the layer.
        shape, dtype, device, stride: of the last tensor.
        axis: the channel axis that the layer itself suggests for such a tensor.
        layout, laid_out_by: the sampler's name for such a tensor's layout, and the channel axis that it was told.
        gradient: of an output, the place of its gradient.
        given_shape, given_axis: of a gradient, shape and channel axis of the output that it belongs to.
    """

    __slots__ = (
        "axis",
        "device",
        "dtype",
        "given_axis",
        "given_shape",
        "gradient",
        "laid_out_by",
        "lane",
        "layout",
        "shape",
        "site",
        "stride",
    )

    def __init__(self, site: Site, lane: Lane) -> None:
        self.site, self.lane = site, lane
        self.axis: int | None = None
        self.gradient: _Spot | None = None
        self.given_shape: torch.Size | None = None
        self.given_axis: int | None = None
        self.shape: torch.Size | None = None
        self.dtype: torch.dtype | None = None
        self.device: torch.device | None = None
        self.stride: tuple[int, ...] | None = None
        self.layout = -1
        self.laid_out_by: int | None = None

    def remember(self, tensor: Tensor) -> None:
        """What this tensor is like."""
        self.shape, self.dtype, self.device, self.stride = tensor.shape, tensor.dtype, tensor.device, None
        self.axis = self.site.channel_axis(tensor)

    def lay_out(self, tensor: Tensor, axis: int | None, sampler: Sampler) -> None:
        """How it lies in memory."""
        self.stride, self.laid_out_by, self.layout = tensor.stride(), axis, sampler.layout(tensor, axis)
