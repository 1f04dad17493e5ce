"""The optimum behind batch norm depends on which samples share a batch."""

import math

import torch
from torch import Tensor

from bnprobe.errors import ArgumentError
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.pitfalls.chance import require_between
from bnprobe.testing.pitfalls.layer import Layer, Make, layer_of
from bnprobe.testing.pitfalls.registry import RATE, pitfall
from bnprobe.testing.properties.broken import compare

__all__ = ["fixed_partition", "optimum_of_partition"]


def optimum_of_partition(batches: Tensor, targets: Tensor, eps: float = 0.0) -> Tensor:
    r"""Least squares behind batch norm, in closed form: the slope of the targets on normalized values, per channel.

    .. math:: w = \sum_b \mathrm{Cov}_b(x, y) / \sigma_b \Big/ \sum_b \rho_b

    It is where training ends that meets the same batches in every epoch (D. X. Wu, Yun & Sra 2023).

    Args:
        batches: ``[K, m, C]``.
        targets: ``[K, m, C]``, one for each value.
        eps: of the layer.

    Returns:
        ``[C]``.
    """
    x = batches - batches.mean(1, keepdim=True)
    y = targets - targets.mean(1, keepdim=True)
    sigma = (x.square().mean(1) + eps).sqrt()
    return ((x * y).mean(1) / sigma).sum(0) / (x.square().mean(1) / sigma**2).sum(0)


@pitfall("layer")
def fixed_partition(
    make: Make, *, samples: int = 4, batches: int = 1024, channels: int = 2, seed: int = 0, rate: float = RATE
) -> None:
    r"""Training on fixed batches ends at the optimum of that partition, not of the data: shuffled c(m) sigma, sorted 0.

    A value is its own target, and the slope w behind the layer is found by least squares. Over the whole data as one
    batch it is :math:`\sigma`. Over batches it is the mean of their deviations: where the order is independent of the
    values :math:`c(m) \sigma`, :math:`c(m) = \sqrt{2/m}\, \Gamma(m/2) / \Gamma((m-1)/2)`, where the data lie sorted by
    the target hardly anything. Broken by a layer that does not use the batch's own statistics in training.

    Null law: the mean of the deviations is a function of N = K m Gaussian values that changes by at most
    :math:`1/\sqrt N` of their change, so it leaves its mean by t with probability :math:`2 \exp(-N t^2 / 2)` at most
    (Gaussian concentration, Tsirelson, Ibragimov & Sudakov 1976), for every N.

    Args:
        make: ``channels -> module``, a batch norm.
        samples: m of a batch.
        batches: K.
        channels: how many.
        seed: of the values.
        rate: how often chance alone may fail a sound layer.

    Raises:
        LawBrokenError: the layer does otherwise.
        ArgumentError: fewer than two samples or batches.
    """
    if samples < 2 or batches < 2:
        raise ArgumentError(f"samples and batches must be at least 2; got {samples} and {batches}")
    draws = torch.Generator().manual_seed(seed)
    shuffled = torch.randn(batches, samples, channels, generator=draws, dtype=torch.float64)
    together = shuffled.reshape(1, batches * samples, channels)
    ordered = together.sort(1).values.reshape(shuffled.shape)
    layer = layer_of(make, channels)
    count = batches * samples
    slack = (2 * math.log(4 * channels / rate) / count) ** 0.5
    for what, data, m in (("shuffled batches", shuffled, samples), ("one batch", together, count)):
        slope = _fitted(layer, data, what)
        # The bound is for eps = 0; what eps adds is known from the data.
        shift = (optimum_of_partition(data, data, layer.eps) - optimum_of_partition(data, data)).abs()
        want = math.sqrt(2 / m) * math.exp(math.lgamma(m / 2) - math.lgamma((m - 1) / 2))
        for one, extra in zip(slope.tolist(), shift.tolist(), strict=True):
            around = slack + extra + layer.rounding(m)
            why = f"2 exp(-N t^2 / 2) with N = {count}, and {extra:.1g} by eps"
            require_between(f"slope over {what}", one, (want - around, want + around), want, why)
    _fitted(layer, ordered, "batches sorted by the target")


def _fitted(layer: Layer, data: Tensor, what: str) -> Tensor:
    """The slope behind the layer's own outputs, after holding it against the closed form."""
    y = torch.stack([layer.train(one) for one in data])
    got = (y * data).sum((0, 1)) / y.square().sum((0, 1))
    want = optimum_of_partition(data, data, layer.eps)
    spread = wide(data).var(1, correction=0) + layer.eps
    # An output is off by E (1 + |x_hat|), E = (m + 8)(1 + kappa) u; the slope by twice that, at the worst batch.
    condition = 1 + 2 * float((data.abs().amax(1) / spread.sqrt()).max())
    allowed = 4 * condition * layer.rounding(data.shape[1], float(want.abs().max()) + 1)
    compare(f"slope over {what}", got, want, allowed, "of E = (m + 8) (1 + kappa) u, kappa = (max|x| + |mean|) / sigma")
    return got
