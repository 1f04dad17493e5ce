"""The noise of statistics over few samples."""

import math
from dataclasses import dataclass

import torch
from scipy import stats

from bnprobe.errors import ArgumentError
from bnprobe.testing.pitfalls.chance import require_distribution
from bnprobe.testing.pitfalls.layer import Make, layer_of
from bnprobe.testing.pitfalls.registry import RATE, pitfall
from bnprobe.testing.properties.broken import compare

__all__ = ["Noise", "noise_of_batches", "small_batches"]


@dataclass(frozen=True)
class Noise:
    r"""What batches of m independent Gaussian values of variance :math:`\sigma^2` do to batch norm.

    Attributes:
        mean: standard deviation of the batch's mean, in :math:`\sigma`.
        slope: mean of :math:`\sigma / s`, s the batch's biased deviation: by how much training is steeper than the
            population's normalization. Infinite for m = 2.
        deviation: standard deviation of :math:`s / \sigma`.
        kurtosis: of normalized values in training; 3 in evaluation.
        evaluation: deviation that evaluation divides by over the one of training, root mean square of both.
    """

    mean: float
    slope: float
    deviation: float
    kurtosis: float
    evaluation: float


def noise_of_batches(samples: int) -> Noise:
    """The laws in numbers, for batches of so many Gaussian values.

    Raises:
        ArgumentError: fewer than two.
    """
    m = samples
    if m < 2:
        raise ArgumentError(f"samples must be at least 2; got {samples}")
    slope = math.inf
    if m > 2:
        slope = math.sqrt(m / 2) * math.exp(math.lgamma((m - 2) / 2) - math.lgamma((m - 1) / 2))
    mean_deviation = math.sqrt(2 / m) * math.exp(math.lgamma(m / 2) - math.lgamma((m - 1) / 2))
    deviation = math.sqrt(max((m - 1) / m - mean_deviation**2, 0.0))
    return Noise(m**-0.5, slope, deviation, 3 * (m - 1) / (m + 1), math.sqrt(m / (m - 1)))


@pitfall("layer")
def small_batches(
    make: Make, *, samples: int = 4, batches: int = 256, channels: int = 4, seed: int = 0, rate: float = RATE
) -> None:
    r"""With m values a batch, the moments are noisy by known laws, and training sees other outputs than evaluation.

    The mean varies by :math:`\sigma^2 / m`, the variance as :math:`\chi^2_{m-1} \sigma^2 / (m - 1)`, and a normalized
    value is bounded by :math:`\sqrt{m - 1}`; evaluation divides by :math:`\sqrt{m / (m - 1)}` more. Numbers:
    :func:`noise_of_batches`. Broken by a normalizing variance that is unbiased, by a buffer that is biased.

    Null law: for Gaussian values all of these are exact: the buffer's means are Gaussian, its variances chi-squared,
    the square of one normalized value a batch over (m - 1) Beta(1/2, (m - 2)/2). Each is tested by Kolmogorov and
    Smirnov's exact test, over batches and channels, which are independent.

    Args:
        make: ``channels -> module``, a batch norm.
        samples: m of a batch.
        batches: how many.
        channels: how many.
        seed: of the values.
        rate: how often chance alone may fail a sound layer.

    Raises:
        LawBrokenError: the layer does otherwise.
        ArgumentError: fewer than two samples.
    """
    noise = noise_of_batches(samples)
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(batches, samples, channels, generator=draws, dtype=torch.float64)
    layer = layer_of(make, channels)
    means, variances = layer.statistics(x)
    root = samples**0.5
    require_distribution(
        f"root m times means of {samples} values", means.numpy() * root, stats.norm, rate / 3, "Gaussian"
    )
    squares = variances.numpy() * (samples - 1)
    law = stats.chi2(samples - 1)
    require_distribution(f"(m - 1) times variances of {samples} values", squares, law, rate / 3, "chi-squared, m - 1")
    y = torch.stack([layer.train(one) for one in x])
    if samples > 2:  # of two values it is 1: see two_samples
        share = x.var(1, correction=0) / (x.var(1, correction=0) + layer.eps)
        parts = (y[:, 0].square() / share / (samples - 1)).numpy()
        beta = stats.beta(0.5, (samples - 2) / 2)
        why = "Beta(1/2, (m - 2)/2)"
        require_distribution("squares of normalized values over (m - 1)", parts, beta, rate / 3, why)
    mean, variance = means.mean(0), variances.mean(0)
    evaluated = layer.evaluate(x.reshape(-1, channels), mean, variance).reshape(x.shape)
    # On the data that the buffers come from this holds to the last digit, whatever the values are.
    got = evaluated.var(1, correction=0).mean(0) * (variance + layer.eps) / variance
    compare(
        "variance of evaluation's outputs within a batch, of training 1",
        got,
        torch.full_like(got, 1 / noise.evaluation**2),
        layer.rounding(samples, float(x.abs().max()) ** 2 / float(variance.min())),
        "rounding, 4 (m + 8) u / momentum times the largest square over the variance",
    )
