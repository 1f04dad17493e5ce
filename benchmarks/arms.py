"""Ways to watch a training run, each behind the same small interface, so that their costs can be compared."""

import importlib.util
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import bnprobe
from bnprobe import statistics as s
from bnprobe.hooks.sites import find_sites

__all__ = ["ARMS", "Arm", "Every10", "Exact", "Plain", "Probe", "TensorBoard", "UsersHook", "default_layers"]


class Arm:
    """A watcher of one model, made when a block of steps begins and closed when it is over.

    Attributes:
        name: how the result calls it.
        requires: the module that has to be installed, if any.
        distribution: its name in the package index, where that is another.
        quick: whether it is near enough to the plain step that only many steps show its price.
    """

    name: ClassVar[str]
    requires: ClassVar[str] = ""
    distribution: ClassVar[str] = ""
    quick: ClassVar[bool] = False

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    @classmethod
    def version(cls) -> str:
        """Version of what is watched with; empty where it needs nothing or is not installed."""
        if not cls.requires or importlib.util.find_spec(cls.requires) is None:
            return ""
        return version(cls.distribution or cls.requires)

    @classmethod
    def missing(cls) -> bool:
        """Whether what it needs is not installed."""
        return bool(cls.requires) and importlib.util.find_spec(cls.requires) is None

    def forward(self, x: Tensor) -> Tensor:
        """The model's output; for watchers that want to run the model themselves."""
        return self.model(x)

    def step(self) -> None:
        """A training step is over."""

    def finish(self) -> None:
        """The block is over: what is still in memory is worked off, and its price belongs to the block."""

    def close(self) -> None:
        """Take everything off the model; not timed."""


class Plain(Arm):
    """Nobody watches."""

    name, quick = "plain", True


class Probe(Arm):
    """``bnprobe.attach`` as it comes: all default statistics of all default layers at every step."""

    name, quick = "probe", True
    statistics: ClassVar[tuple[s.Statistic, ...]] = ()
    every: ClassVar[int] = 1

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, optimizer)
        self.probe = bnprobe.attach(model, *self.statistics, optimizer=optimizer, every=self.every)

    def finish(self) -> None:
        self.probe.flush()

    def close(self) -> None:
        self.probe.detach()


class Every10(Probe):
    """The probe at every tenth step."""

    name, every = "every_10", 10


class Exact(Probe):
    """The probe with every statistic exact: it reads and sorts all values of all layers."""

    name, quick = "exact", False
    statistics = (
        s.Moments(exact=True),
        s.Quantiles(exact=True),
        s.Gradients(exact=True),
        s.RunningGap(),
        s.Saturation(exact=True),
    )


class _Hooked(Arm):
    """Forward hooks on the layers that the probe listens to by default."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, optimizer)
        self._handles = [
            layer.register_forward_hook(lambda _module, _args, output, name=name: self.saw(name, output))
            for name, layer in default_layers(model).items()
        ]

    def saw(self, name: str, output: Any) -> None:
        """A layer has run."""
        raise NotImplementedError

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


class UsersHook(_Hooked):
    """What people write today: mean, standard deviation, extremes and three quantiles of every layer's output."""

    name = "users_hook"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, optimizer)
        self.rows: list[tuple[str, list[float]]] = []

    def saw(self, name: str, output: Any) -> None:
        x = first_tensor(output).detach().float().flatten()
        levels = torch.tensor([0.15, 0.5, 0.85], device=x.device)
        # torch.quantile takes 2^24 values at most; people take the first then.
        quantiles = torch.quantile(x[: 2**24], levels).tolist()
        self.rows.append((name, [x.mean().item(), x.std().item(), x.min().item(), x.max().item(), *quantiles]))


class TensorBoard(_Hooked):
    """A histogram of every layer's output at every step, by TensorBoard's writer."""

    name, requires = "tensorboard_histograms", "tensorboard"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, optimizer)
        from torch.utils.tensorboard import SummaryWriter  # imports TensorBoard, which need not be there

        self._directory, self._now = Path(tempfile.mkdtemp()), 0
        self._writer = SummaryWriter(str(self._directory))

    def saw(self, name: str, output: Any) -> None:
        self._writer.add_histogram(name, first_tensor(output).detach().float(), self._now)

    def step(self) -> None:
        self._now += 1

    def finish(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        super().close()
        self._writer.close()
        shutil.rmtree(self._directory)


ARMS: tuple[type[Arm], ...] = (Probe, Every10, Exact, UsersHook, TensorBoard)


def default_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that the probe listens to by default, so that all watch the same."""
    return {site.name: site.module for site in find_sites(model)}


def first_tensor(output: Any) -> Tensor:
    """The output of a layer, or the first of several."""
    return output if isinstance(output, Tensor) else output[0]
