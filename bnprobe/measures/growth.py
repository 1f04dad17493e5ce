"""How fast gradients grow or vanish from layer to layer, on their way back through a deep net."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.hooks.outputs import outputs_at
from bnprobe.hooks.segments import arguments_of, outputs_of
from bnprobe.hooks.sites import LayerChoice, find_sites, unwrap
from bnprobe.hooks.tensors import with_tensors
from bnprobe.measures.loss import Loss, checked_loss
from bnprobe.measures.untouched import untouched

__all__ = ["GradientGrowth", "gradient_growth"]

# The first layers are not at the fixed point of the mean-field theory yet, and the last ones have not forgotten the
# vector at the output.
_SKIP = 3
_WEIGHTED = ("conv", "linear")


@dataclass(frozen=True)
class GradientGrowth:
    """Squared gradient norms along a net, and the rate at which they grow backwards.

    Attributes:
        layers: names, in the order in which the forward calls them.
        squared_norms: ``[L]``, of the gradient at each layer's output, over all samples; the mean over repeats.
        used: ``[L]``, which layers the slope is of: not the first and last few, nor those where the gradient is 0.
        slope: of the logarithm, a layer further back; NaN where fewer than three layers are used.
        slope_error: its standard error, with independent steps from layer to layer.
    """

    layers: tuple[str, ...]
    squared_norms: NDArray[np.float64]
    used: NDArray[np.bool_]
    slope: float
    slope_error: float

    @property
    def rate(self) -> float:
        """Factor of the squared norm a layer further back: above 1 gradients explode, below 1 they vanish."""
        return math.exp(self.slope)

    @property
    def rate_error(self) -> float:
        """Standard error of the rate."""
        return self.rate * self.slope_error


def gradient_growth(
    model: nn.Module,
    x: Any,
    loss: Loss | None = None,
    layers: LayerChoice = None,
    *,
    skip: int = _SKIP,
    repeats: int = 1,
    generator: torch.Generator | None = None,
) -> GradientGrowth:
    r"""Growth of the squared gradient norm per layer, from the output back to the input.

    The slope is that of least squares through :math:`\log \|\partial \ell / \partial h_l\|^2` over the layers l. Its
    standard error treats the steps from layer to layer as independent, which a straight line's own would not: in a
    random net the logarithm is a random walk around the line.

    For a net of blocks batch norm, nonlinearity, Gaussian weights there is a law for it (Yang et al. 2019):
    :func:`bnprobe.measures.jacobian.laws.gradient_growth_of_relu`. It is the law of wide nets with random weights, of
    which one net is one draw.

    Args:
        model: any module, in the mode in which it is to be measured; it is left as it was.
        x: its input (a tensor, a tuple of positional or a mapping of keyword arguments); with ``loss``, the batch.
        loss: ``(model, batch) -> scalar``, whose gradient is followed. None: a random Gaussian vector enters at the
            output, as in mean-field theory.
        layers: at whose outputs the gradient is taken; default every linear and convolutional layer. Else as in
            :func:`bnprobe.attach`.
        skip: how many of these at each end the slope leaves out; default 3, ours.
        repeats: how many random vectors; the squared norms are averaged. With ``loss`` it must be 1.
        generator: of the random vectors, on the host; default one of its own with a fixed seed.

    Raises:
        ArgumentError: an argument is not usable.
        SelectionError: no layer is chosen.
        NotMeasuredError: no chosen layer has a gradient, or the loss is not a scalar with one.
    """
    if skip < 0 or repeats < 1 or (loss is not None and repeats > 1):
        raise ArgumentError(
            f"skip must be at least 0 and repeats at least 1, with a loss 1; got {skip!r} and {repeats!r}"
        )
    root = unwrap(model)
    sites = find_sites(root, layers)
    chosen = {site.name: site.module for site in sites if layers is not None or site.family in _WEIGHTED}
    with untouched(root):
        result, outputs = outputs_at(root, chosen, _runner(model, root, x, loss))
        if not outputs:
            raise NotMeasuredError("no chosen layer was called with gradients; layers= chooses others")
        ends = [checked_loss(result)] if loss is not None else outputs_of(root, result)
        ends = [one for one in ends if one.requires_grad]
        norms = _squared_norms(ends, list(outputs.values()), loss is None, repeats, generator)
    if not norms.any():
        raise NotMeasuredError("no gradient reaches any chosen layer")
    return _fit(tuple(outputs), norms, skip)


def _runner(model: nn.Module, root: nn.Module, x: Any, loss: Loss | None) -> Callable[[], Any]:
    if loss is not None:
        return lambda: loss(model, x)

    def leaf(tensor: Tensor) -> Tensor:
        """With a gradient, so that a frozen model has a graph; a copy, as a layer may write into it."""
        if not tensor.is_floating_point():
            return tensor
        return tensor.detach().clone().requires_grad_().clone()

    def run() -> Any:
        args, kwargs = with_tensors(arguments_of(x), leaf)
        return root(*args, **kwargs)

    return run


def _squared_norms(
    ends: list[Tensor], outputs: list[Tensor], random: bool, repeats: int, generator: torch.Generator | None
) -> NDArray[np.float64]:
    generator = generator or torch.Generator().manual_seed(0)
    total = np.zeros(len(outputs))
    for repeat in range(repeats):
        vectors = [_drawn(one, generator) if random else torch.ones_like(one) for one in ends]
        gradients = torch.autograd.grad(ends, outputs, vectors, retain_graph=repeat + 1 < repeats, allow_unused=True)
        squares = [torch.zeros((), dtype=torch.float64) if one is None else _square(one) for one in gradients]
        total += torch.stack([one.to("cpu", torch.float64) for one in squares]).numpy()
    return total / repeats


def _drawn(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def _square(gradient: Tensor) -> Tensor:
    """Taken out of the range of single precision, where squares of exploding gradients would leave it."""
    scale = gradient.abs().amax().double()
    unit = torch.where((scale > 0) & torch.isfinite(scale), scale, 1.0)
    return (gradient / unit).double().square().sum() * unit**2


def _fit(layers: tuple[str, ...], norms: NDArray[np.float64], skip: int) -> GradientGrowth:
    place = np.arange(len(norms))
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.log(norms)
    used = (place >= skip) & (place < len(norms) - skip) & np.isfinite(logarithm)
    if used.sum() < 3:
        return GradientGrowth(layers, norms, used, math.nan, math.nan)
    at, height = place[used].astype(np.float64), logarithm[used]
    centred = at - at.mean()
    slope = float(centred @ height / (centred @ centred))
    # As a weighted mean of the steps between neighbours, each with the scatter that they have around the line.
    gaps = np.diff(at)
    weights = centred[::-1].cumsum()[::-1][1:] / (centred @ centred)
    scatter = (np.diff(height) - slope * gaps) ** 2 / gaps
    error = math.sqrt(float((weights**2 * gaps).sum() * scatter.sum() / max(1, len(gaps) - 1)))
    return GradientGrowth(layers, norms, used, -slope, error)
