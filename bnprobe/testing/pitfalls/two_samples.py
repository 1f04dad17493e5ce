"""Batch norm of two values."""

import torch

from bnprobe.errors import ArgumentError
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.pitfalls.layer import Make, layer_of
from bnprobe.testing.pitfalls.registry import pitfall
from bnprobe.testing.properties.broken import compare
from bnprobe.testing.tolerance import roundoff

__all__ = ["two_samples"]


@pitfall("layer")
def two_samples(make: Make, *, gap: float = 1.0, channels: int = 4, seed: int = 0) -> None:
    r"""With two values a channel, training gives plus and minus one whatever they are, and a gradient of order eps.

    :math:`\hat x = \pm \sqrt{s^2 / (s^2 + \epsilon)}`, the sign of the difference; and of the gradient g at the output
    comes back :math:`\pm \epsilon / (s^2 + \epsilon)^{3/2} (g_1 - g_2) / 2`, nothing for :math:`\epsilon = 0`. A dense
    net on such batches cannot learn through the layer. Broken by statistics detached from the graph, which let g
    through; by an unbiased variance.

    Null law: none, it holds for all values; the tolerance is that of rounding.

    Args:
        make: ``channels -> module``, a batch norm.
        gap: size of the difference of the two values.
        channels: how many.
        seed: of the values.

    Raises:
        LawBrokenError: the layer does otherwise.
        ArgumentError: the gap is not above 0.
    """
    if gap <= 0:
        raise ArgumentError(f"gap must be above 0; got {gap}")
    draws = torch.Generator().manual_seed(seed)
    middle, g0, g1 = torch.randn(3, channels, generator=draws, dtype=torch.float64)
    half = gap * (0.25 + torch.rand(channels, generator=draws, dtype=torch.float64))
    half = half * (torch.randint(0, 2, (channels,), generator=draws) * 2 - 1)
    layer = layer_of(make, channels)
    x = layer.input(torch.stack([middle + half, middle - half])).requires_grad_()
    y = layer.module.train()(x)
    values = wide(x).reshape(2, channels)
    half = (values[0] - values[1]) / 2  # as rounding left it
    sigma = (half**2 + layer.eps).sqrt()
    u, condition = roundoff(layer.dtype), (values.abs().amax(0) + values.mean(0).abs()) / sigma
    error = 10 * (1 + condition) * u
    sign = torch.stack([half, -half]) / sigma
    compare("output", wide(y).reshape(2, channels), sign, (2 * error).expand(2, -1), f"20 (1 + kappa) u, u = {u:.1g}")
    upstream = torch.stack([g0, g1])
    (gradient,) = torch.autograd.grad(y, x, layer.input(upstream))
    back = layer.eps / sigma**3 * (g0 - g1) / 2
    allowed = 12 * error * upstream.abs().amax(0) / sigma
    compare(
        f"gradient of x, of order eps = {layer.eps:.1g},",
        wide(gradient).reshape(2, channels),
        torch.stack([back, -back]),
        allowed.expand(2, -1),
        f"12 (m + 8) (1 + kappa) u max|g| / sigma with m = 2, u = {u:.1g}",
    )
