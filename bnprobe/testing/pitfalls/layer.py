"""A batch norm under test: what it returns, and what each batch puts into its buffers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.hooks.sites import unwrap
from bnprobe.testing.likes import Settings, settings_of
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.parts import Parts, parts_of
from bnprobe.testing.tolerance import roundoff

__all__ = ["Layer", "Make", "layer_of"]

Make = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Layer:
    """A fresh layer with scale 1 and shift 0, for batches ``[m, C]``.

    Attributes:
        module: the layer.
        settings: its own.
        dtype: double precision where it runs in it.
        positions: axes of size 1 that its input has behind the channels.
        device: where it is.
    """

    module: nn.Module
    settings: Settings
    dtype: torch.dtype
    positions: int
    device: torch.device

    @property
    def parts(self) -> Parts:
        """As they are now: a layer may replace its buffers."""
        return parts_of(unwrap(self.module))

    @property
    def eps(self) -> float:
        """Added to the variance."""
        return self.settings.eps

    def input(self, x: Tensor) -> Tensor:
        """A batch ``[m, C]`` as the layer wants it."""
        return x.to(self.device, self.dtype).reshape(*x.shape, *[1] * self.positions)

    def train(self, x: Tensor) -> Tensor:
        """Output in training mode, ``[m, C]`` in double precision."""
        with torch.no_grad():
            return wide(self.module.train()(self.input(x))).reshape(x.shape)

    def evaluate(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Output in evaluation mode with these running statistics."""
        parts = self._running()
        with torch.no_grad():
            parts[0].copy_(mean.reshape(parts[0].shape))
            kept = variance.sqrt() if self.settings.running == "deviation" else variance
            parts[1].copy_(kept.reshape(parts[1].shape))
            return wide(self.module.eval()(self.input(x))).reshape(x.shape)

    def statistics(self, batches: Tensor) -> tuple[Tensor, Tensor]:
        """What each batch of ``[K, m, C]`` puts into the buffers: means and variances, ``[K, C]`` each.

        Before each batch the buffers are 0 and 1; afterwards they are (1 - a) of that and a of the batch's. A plain
        average of these (``momentum=None``) is what evaluation mode is given over an epoch.

        Raises:
            NotMeasuredError: the layer keeps no running statistics.
        """
        weight = 1.0 if self.settings.momentum is None else float(self.settings.momentum)
        if weight == 0:
            raise NotMeasuredError("the layer's momentum is 0: no batch enters its running statistics")
        found: list[tuple[Tensor, Tensor]] = []
        for x in batches:
            mean, variance = self._running()
            with torch.no_grad():
                mean.zero_()
                variance.fill_(1)
                if (counter := self.parts.batches) is not None:
                    counter.zero_()
            self.train(x)
            new_mean, new_variance = (wide(one).reshape(-1) for one in self._running())
            kept = (new_variance - (1 - weight)) / weight
            found.append((new_mean / weight, kept**2 if self.settings.running == "deviation" else kept))
        return torch.stack([one for one, _ in found]), torch.stack([one for _, one in found])

    def rounding(self, m: int, size: float = 1.0) -> float:
        """How far rounding puts a statistic of this size off: (m + 8) u for itself, 4 / a for reading it off."""
        weight = 1.0 if self.settings.momentum is None else float(self.settings.momentum)
        return (m + 8) * 4 / min(weight, 1.0) * roundoff(self.dtype) * size

    def _running(self) -> tuple[Tensor, Tensor]:
        parts = self.parts
        if parts.mean is None or parts.variance is None:
            raise NotMeasuredError("the layer keeps no running statistics")
        return parts.mean, parts.variance


def layer_of(make: Make, channels: int) -> Layer:
    """A fresh layer of so many channels, in the precision and for the shape of input that it takes.

    Raises:
        ArgumentError: it takes no ``[N, C, 1, ...]``; the message has the last refusal.
    """
    refusal = ""
    for dtype in (torch.float64, torch.float32):
        for positions in range(4):
            try:
                _made(make, channels, dtype, positions).train(torch.arange(4.0 * channels).reshape(4, channels))
            except Exception as error:  # whatever a foreign layer refuses with
                refusal = f"{type(error).__name__}: {error}"
            else:
                return _made(make, channels, dtype, positions)
    raise ArgumentError(f"the layer takes no batch [4, {channels}, 1, ...]; the last refusal: {refusal}")


def _made(make: Make, channels: int, dtype: torch.dtype, positions: int) -> Layer:
    module = make(channels)
    module = module.double() if dtype == torch.float64 else module
    device = next((one.device for one in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    layer = Layer(module, settings_of(unwrap(module), "batch_norm", dtype, {}), dtype, positions, device)
    with torch.no_grad():
        if layer.parts.gamma is not None:
            layer.parts.gamma.fill_(1)
        if layer.parts.beta is not None:
            layer.parts.beta.zero_()
    return layer
