"""Reading what the taps show: from tensors at places to observations in a collector."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bnprobe.collect import Collector, Key
from bnprobe.hooks.saved import GroupMoments, batch_moments, computed_moments, output_moments, saved_moments
from bnprobe.hooks.sites import Site
from bnprobe.hooks.taps import Call, Seen, Taps, why_unreadable
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
    """

    taps: Taps

    def __init__(self, sampler: Sampler, collector: Collector, gaps: bool, on_forward: Callable[[bool], None]) -> None:
        self._sampler, self._collector, self._gaps, self._on_forward = sampler, collector, gaps, on_forward
        self._axes: dict[tuple[str, int, str], tuple[torch.Size, int | None]] = {}
        self._warned = False
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
        return [seen for one in inputs if (seen := self._observe(call.site, one)) is not None]

    def called(self, call: Call, inputs: list[Seen] | None, outputs: list[Seen], read_before: Any) -> None:
        """Read a layer's inputs and outputs."""
        seen = [*(read_before or ()), *self._read(call, inputs, outputs, read_before)]
        if inputs is None and not read_before:
            self.why.setdefault(call.site.name, "input: the layer writes into it")
        self._keep(call, seen)

    def graded(self, call: Call, place: str, gradient: Tensor) -> None:
        """Read the gradient at a layer's output; its channels are the output's."""
        shape, axis = self._axes.get((call.site.name, call.index, place), (None, None))
        seen = self._observe(call.site, Seen(place, gradient), axis=axis, known=shape == gradient.shape)
        self._keep(call, [seen] if seen is not None else [])

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
        self, call: Call, inputs: list[Seen] | None, outputs: list[Seen], read_before: Sequence[Observation] | None
    ) -> list[Observation]:
        site = call.site
        moments = self._moments(site, inputs, outputs)
        seen = [self._observe(site, one, moments if i == 0 else None) for i, one in self._intact(site, inputs, outputs)]
        before = next(iter(read_before or seen), None)
        made = output_moments(site, moments) if moments is not None else None
        for i, one in enumerate(outputs):
            # A layer that treats all axes alike hands its input's channels on.
            handed = before is not None and before.shape == one.tensor.shape and not site.knows_its_channels
            axis = before.axis if before is not None and handed else None
            output = self._observe(site, one, made if i == 0 else None, axis=axis, known=handed)
            if output is not None:
                place = one.place.replace("output", "grad_output", 1)
                self._axes[site.name, call.index, place] = (output.shape, output.axis)
            seen.append(output)
        return [one for one in seen if one is not None]

    def _intact(self, site: Site, inputs: list[Seen] | None, outputs: list[Seen]) -> Iterator[tuple[int, Seen]]:
        """Inputs that surely are as the layer received them."""
        for i, one in enumerate(inputs or ()):
            if one.memory is None and any(one.tensor is made.tensor for made in outputs):
                self.why.setdefault(site.name, f"{one.place}: the layer hands on its input, perhaps changed")
            else:
                yield i, one

    def _observe(
        self,
        site: Site,
        one: Seen,
        moments: GroupMoments | None = None,
        *,
        axis: int | None = None,
        known: bool = False,
    ) -> Observation | None:
        """What statistics see of a tensor; ``axis`` is its channel axis where that is ``known``."""
        why = why_unreadable(one.tensor)
        if why:
            self.why.setdefault(site.name, f"{one.place}: {why}")
            return None
        before: Observation | None = one.memory
        if not known:
            axis = site.channel_axis(one.tensor)
        if before is not None and (before.axis == axis or not site.knows_its_channels):
            before.moments = before.moments or moments
            seen = Observation(
                site, one.place, one.tensor, before.axis, self._sampler, before.moments, before, one.buffers
            )
        else:
            seen = Observation(site, one.place, one.tensor, axis, self._sampler, moments, None, one.buffers)
            if not one.place.startswith("grad"):
                self.taps.remember(one.tensor, seen)
        self._collector.prepare(seen)
        seen.release()
        return seen

    def _moments(self, site: Site, inputs: list[Seen] | None, outputs: list[Seen]) -> GroupMoments | None:
        """What is known of a norm layer's input without a pass over it, or by one where the running gap needs it."""
        if not site.is_norm or not inputs or not outputs or why_unreadable(inputs[0].tensor):
            return None
        if inputs[0].buffers is not None:  # shown by a compiled graph, where autograd keeps nothing
            return computed_moments(site, inputs[0].tensor)
        moments = saved_moments(site, inputs[0].tensor, outputs[0].tensor)
        if moments is None and self._gaps and site.family == "batch_norm":
            moments = batch_moments(site, inputs[0].tensor)
        return moments

    def _keep(self, call: Call, observations: Sequence[Observation]) -> None:
        phase = "train" if call.training else "eval"
        for seen in observations:
            self._collector.add(Key(self.now, phase, call.site.name, call.index, seen.place), seen)
            self.observed.add(call.site.name)
