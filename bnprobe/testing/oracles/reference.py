"""What a normalization layer must give, for every kind of layer that the kit knows, in double precision."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bnprobe.testing.likes import Settings
from bnprobe.testing.oracles.fixed import Fixed
from bnprobe.testing.oracles.normalized import Normalized, normalize
from bnprobe.testing.oracles.rows import Rows, rows
from bnprobe.testing.parts import State

__all__ = ["Gradients", "Reference", "reference", "wide"]


@dataclass(frozen=True)
class Gradients:
    """Of the input, in its shape, and of the flat scale and shift."""

    x: Tensor
    gamma: Tensor
    beta: Tensor


@dataclass(frozen=True)
class Reference:
    """Forward of one batch, and derivatives on demand.

    Attributes:
        settings: of the layer.
        shape: of the batch.
        rows: which values share statistics.
        values: normalized rows.
    """

    settings: Settings
    shape: torch.Size
    rows: Rows
    values: Normalized | Fixed

    @property
    def y(self) -> Tensor:
        """Output, in the input's shape."""
        return self.rows.join(self.values.y)

    def gradients(self, g: Tensor) -> Gradients:
        """For the gradient g at the output."""
        g = wide(g)
        split = self.rows.split(g)
        return Gradients(
            self.rows.join(self.values.gradient(split)), self._shared(self.values.gamma_gradient(split)), self._sum(g)
        )

    def second(self, g: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of ``<v, dL/dx>`` with respect to x, g and gamma."""
        of_x, of_g, of_gamma = self.values.second(self.rows.split(wide(g)), self.rows.split(wide(v)))
        return self.rows.join(of_x), self.rows.join(of_g), self._shared(of_gamma)

    def per_value(self, row: Tensor) -> Tensor:
        """A ``[R, 1]`` or ``[R, m]`` quantity in the input's shape."""
        return self.rows.join(row.expand_as(self.values.x_hat))

    def per_parameter(self, values: Tensor) -> Tensor:
        """Sum, over values in the input's shape, of those that share a parameter."""
        return self._sum(values)

    def _shared(self, split: Tensor) -> Tensor:
        return self._sum(self.rows.join(split))

    def _sum(self, values: Tensor) -> Tensor:
        kept = self.settings.parameter_axes(values.ndim)
        others = [axis for axis in range(values.ndim) if axis not in kept]
        return (values.sum(others) if others else values).reshape(-1)


def wide(x: Tensor) -> Tensor:
    """A double-precision copy on the CPU, without a gradient."""
    return x.detach().to("cpu", torch.float64)


def reference(x: Tensor, settings: Settings, state: State, training: bool) -> Reference:
    """The law of a layer with these settings, applied to one batch.

    Args:
        x: the input, of any dtype.
        settings: of the layer.
        state: of the layer before the forward.
        training: whether the layer is in training mode; without running statistics both modes are the same.
    """
    x = wide(x)
    layout = rows(tuple(x.shape), settings)
    scale = None if state.gamma is None else state.gamma + settings.scale_offset
    gamma = _of_each_value(x, settings, scale, layout, 1)
    beta = _of_each_value(x, settings, state.beta, layout, 0)
    split = layout.split(x)
    if not training and state.mean is not None and state.variance is not None:
        mean, variance = (_of_each_row(one, layout, x) for one in (state.mean, _variance(state.variance, settings)))
        if settings.running == "deviation":
            return Reference(settings, x.shape, layout, Fixed.of(split, gamma, beta, 0.0, mean, variance))
        return Reference(settings, x.shape, layout, Fixed.of(split, gamma, beta, settings.eps, mean, variance))
    renorm = None
    if settings.like == "batch_renorm" and state.mean is not None and state.variance is not None:
        extra = 0.0 if settings.running == "deviation" else settings.eps
        deviation = (_variance(state.variance, settings) + extra).sqrt()
        renorm = (state.mean[:, None], deviation[:, None], settings.r_max, settings.d_max)
    centred = settings.like != "rms_norm"
    values = normalize(split, gamma, beta, settings.eps, centred=centred, renorm=renorm)
    return Reference(settings, x.shape, layout, values)


def _variance(kept: Tensor, settings: Settings) -> Tensor:
    return kept**2 if settings.running == "deviation" else kept


def _of_each_value(x: Tensor, settings: Settings, parameter: Tensor | None, layout: Rows, usual: float) -> Tensor:
    """A parameter as rows; where the layer has none, what it would be."""
    if parameter is None:
        return torch.full((), usual, dtype=torch.float64)
    axes = settings.parameter_axes(x.ndim)
    sizes = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    return layout.split(parameter.reshape(sizes).expand_as(x))


def _of_each_row(channels: Tensor, layout: Rows, x: Tensor) -> Tensor:
    return layout.split(channels.reshape(-1, *[1] * (x.ndim - 2)).expand_as(x))
