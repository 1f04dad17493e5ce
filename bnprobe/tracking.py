"""Following weights through the updates of somebody's training."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import nn

from bnprobe.collect import Collector
from bnprobe.hooks.sites import Site
from bnprobe.measuring import aside, why_not_now, why_not_readable
from bnprobe.statistics.track import Track, Tracker

__all__ = ["Trackers"]


class Trackers:
    """Tells each tracker of every update, and stops nothing where one fails.

    Args:
        tracks: what to follow.
        root: the model, wrappers taken off.
        sites: the layers that the probe listens to.
        optimizers: those that the probe was given.
        collector: takes what is found.

    Attributes:
        others: layers that may be followed and are not listened to.
        measured: names of layers of which something was.
        enabled: whether to follow at all; of several processes one does.

    Raises:
        SelectionError: a track names what the model does not have.
        ArgumentError: a track needs an optimizer.
    """

    def __init__(
        self,
        tracks: Sequence[Track],
        root: nn.Module,
        sites: Sequence[Site],
        optimizers: Sequence[torch.optim.Optimizer],
        collector: Collector,
    ) -> None:
        self._root, self._collector = root, collector
        chosen = [(one, one.sites(root, sites)) for one in tracks]
        self._trackers: dict[str, Tracker] = {
            type(one).__name__: one.start(root, some, optimizers) for one, some in chosen
        }
        listened = {site.name for site in sites}
        self._followed = {site.name: site for _, some in chosen for site in some}
        self.others = [site for name, site in self._followed.items() if name not in listened]
        self.measured: set[str] = set()
        self._failed: dict[str, str] = {}
        self._why_not = why_not_readable(root) if tracks else ""
        self._took, self._told = -1, False
        self.enabled = True

    def before(self, step: int, index: int, closure: bool) -> None:
        """Optimizer number ``index`` is about to step; with a ``closure`` its gradients are still to come."""
        self._tell(step, lambda one: one.before(step, index, closure))

    def after(self, step: int, index: int) -> None:
        """Optimizer number ``index`` has stepped."""
        self._tell(step, lambda one: bool(one.after(index)))

    def ended(self, step: int) -> None:
        """A step is over, where there is no optimizer to tell of its updates."""
        self._tell(step, lambda one: one.ended(step))

    def took(self, step: int) -> bool:
        """Whether something was read at this step."""
        return step == self._took

    def collect(self) -> None:
        """Hand over what has been found."""
        for name, tracker in self._trackers.items():
            try:
                for found in tracker.take():
                    self._collector.add_readings(found.step, "train", found.readings)
                    self.measured.update(found.readings.layers)
            except Exception as error:  # whatever it is, it is not worth somebody's training
                self._fail(name, f"{type(error).__name__}: {error}", "its numbers are lost")

    def end(self) -> None:
        """Give up what is kept of the weights."""
        for tracker in self._trackers.values():
            tracker.end()

    def why(self, layer: str) -> str:
        """Why something of a layer was not measured."""
        if layer not in self._followed:
            return ""
        if self._why_not:
            return "; ".join(f"{name}: {self._why_not}" for name in self._trackers)
        reasons = [(name, self._failed.get(name, one.why.get(layer, ""))) for name, one in self._trackers.items()]
        return "; ".join(f"{name}: {reason}" for name, reason in reasons if reason)

    def _tell(self, step: int, event: Callable[[Tracker], bool | None]) -> None:
        if not self._trackers or not self.enabled or self._why_not:
            return
        for name, tracker in self._trackers.items():
            if tracker.runs_passes and (why_not := why_not_now(self._root)):
                self._fail(name, why_not, f"not measured at step {step}")
                continue
            try:
                with aside():
                    if event(tracker):
                        self._took = step
                        self._failed.pop(name, None)
            except Exception as error:  # whatever it is, it is not worth somebody's training
                self._fail(name, f"{type(error).__name__}: {error}", f"not measured at step {step}")

    def _fail(self, name: str, why: str, what: str) -> None:
        self._failed[name] = f"{what}: {why}"
        if not self._told:
            self._told = True
            warnings.warn(f"bnprobe could not measure {name}: {what}: {why}", RuntimeWarning, stacklevel=4)
