"""Taking measurements that run passes of their own, in the middle of somebody's training."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from bnprobe.collect import Collector
from bnprobe.hooks.sites import Site
from bnprobe.ranks.mail import world
from bnprobe.statistics.measurement import Measurement, Occasion

__all__ = ["Measurer", "aside", "why_not_now", "why_not_readable"]


class Measurer:
    """Takes each measurement when it is due, and stops nothing where one fails.

    Args:
        measurements: what to measure.
        root: the model, wrappers taken off.
        sites: the layers that the probe listens to.
        optimizers: those that the probe was given.
        collector: takes what is found.

    Attributes:
        others: layers that are measured and not listened to.
        measured: names of layers of which something was.
        enabled: whether to measure at all; of several processes one does.
    """

    def __init__(
        self,
        measurements: Sequence[Measurement],
        root: nn.Module,
        sites: Sequence[Site],
        optimizers: Sequence[torch.optim.Optimizer],
        collector: Collector,
    ) -> None:
        self._root, self._optimizers, self._collector = root, optimizers, collector
        self._plans = [(one, one.sites(root, sites)) for one in measurements]
        listened = {site.name for site in sites}
        chosen = {site.name: site for _, some in self._plans for site in some}
        self.others = [site for name, site in chosen.items() if name not in listened]
        self.measured: set[str] = set()
        self._why: dict[str, dict[str, str]] = {}
        self._step, self._took, self._told = -1, -1, False
        self.enabled = True

    def take(self, step: int) -> None:
        """Measure what is due at this step, unless that was done."""
        if not self._plans or step == self._step or not self.enabled:
            return
        self._step = step
        for measurement, sites in self._plans:
            try:
                if measurement.due(step):
                    self._took = step
                    self._measure(measurement, sites, step)
            except Exception as error:  # whatever it is, it is not worth somebody's training
                self._failed(measurement, sites, step, f"{type(error).__name__}: {error}")

    def took(self, step: int) -> bool:
        """Whether something was due at this step."""
        return step == self._took

    def why(self, name: str) -> str:
        """Why something of a layer was not measured when it was last tried."""
        return "; ".join(f"{kind}: {reasons[name]}" for kind, reasons in self._why.items() if name in reasons)

    def _measure(self, measurement: Measurement, sites: Sequence[Site], step: int) -> None:
        why_not = why_not_now(self._root)
        if why_not:
            self._failed(measurement, sites, step, why_not)
            return
        with aside():
            readings = measurement.measure(Occasion(step, self._root, sites, self._optimizers))
        self._collector.add_readings(step, "train" if self._root.training else "eval", readings)
        self._why[type(measurement).__name__] = dict(readings.why)
        self.measured.update(readings.layers)

    def _failed(self, measurement: Measurement, sites: Sequence[Site], step: int, why: str) -> None:
        name = type(measurement).__name__
        self._why[name] = {site.name: f"not measured at step {step}: {why}" for site in sites}
        if not self._told:
            self._told = True
            warnings.warn(f"bnprobe could not measure {name} at step {step}: {why}", RuntimeWarning, stacklevel=4)


def why_not_now(root: nn.Module) -> str:
    """Why passes of our own would do harm here; empty where they do not."""
    if torch._C._current_graph_task_id() != -1:
        return "the step ends inside of a backward pass"
    if world()[1] < 2:
        return ""
    if any(isinstance(one, nn.SyncBatchNorm) and one.training for one in root.modules()):
        return "SyncBatchNorm would wait for the other ranks"
    return why_not_readable(root)


def why_not_readable(root: nn.Module) -> str:
    """Why the weights that are here are not the model's; empty where they are."""
    if world()[1] < 2:
        return ""
    kinds = {type(one).__name__ for one in (*root.parameters(), *root.modules())}
    return "its weights are sharded over the ranks" if kinds & {"DTensor", "FullyShardedDataParallel"} else ""


@contextmanager
def aside() -> Iterator[None]:
    """Out of sight of the user's dispatch modes (counters), and outside of autocast, which may be on where we are."""
    with ExitStack() as stack:
        if torch._C._len_torch_dispatch_stack():
            stack.enter_context(_disable_current_modes())
        for kind in ("cpu", "cuda", "xpu", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
