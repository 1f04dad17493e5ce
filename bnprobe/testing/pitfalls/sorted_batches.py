"""Batches whose samples resemble one another, as where a loader goes through the classes one by one."""

import torch
from scipy import stats

from bnprobe.errors import ArgumentError
from bnprobe.testing.pitfalls.chance import between, require_between
from bnprobe.testing.pitfalls.layer import Make, layer_of
from bnprobe.testing.pitfalls.registry import RATE, pitfall

__all__ = ["sorted_batches"]


@pitfall("layer")
def sorted_batches(
    make: Make,
    *,
    correlation: float = 0.5,
    samples: int = 8,
    batches: int = 256,
    channels: int = 4,
    seed: int = 0,
    rate: float = RATE,
) -> None:
    r"""Where values of one batch are correlated by ICC, the running variance is (1 - ICC) of the variance of the data.

    A value is the mean of its batch, of variance ICC, plus one of its own, of variance 1 - ICC. A batch's statistics
    see the second part only, and so evaluation divides by too little: its outputs have variance 1 / (1 - ICC) and not
    1. Broken by a biased variance in the buffer, by buffers that are not those of the batch.

    Null law: with Gaussian values the sum over K batches and C channels of (m - 1) times the variance that the buffer
    got, over 1 - ICC, is chi-squared with C K (m - 1) degrees of freedom. The sum of squares of evaluation's outputs is
    that plus an independent one of the batch means, chi-squared with C (K - 1).

    Args:
        make: ``channels -> module``, a batch norm.
        correlation: ICC, the share of the variance that lies between batches: 0 if batches are mixed, near 1 if each
            holds one class and classes are all that differs.
        samples: m of a batch.
        batches: K.
        channels: C.
        seed: of the values.
        rate: how often chance alone may fail a sound layer.

    Raises:
        LawBrokenError: the layer does otherwise.
        ArgumentError: a number is out of its range.
    """
    if not 0 <= correlation < 1 or samples < 2 or batches < 2:
        raise ArgumentError(
            f"correlation must be in [0, 1), samples and batches at least 2; got {correlation}, {samples}, {batches}"
        )
    draws = torch.Generator().manual_seed(seed)
    between_batches = torch.randn(batches, 1, channels, generator=draws, dtype=torch.float64)
    own = torch.randn(batches, samples, channels, generator=draws, dtype=torch.float64)
    x = correlation**0.5 * between_batches + (1 - correlation) ** 0.5 * own
    layer = layer_of(make, channels)
    means, variances = layer.statistics(x)
    own_part, of_means = 1 - correlation, 1 - correlation + samples * correlation  # of_means: m times Var of a mean
    within, around = channels * batches * (samples - 1), channels * (batches - 1)
    low, high = (own_part * end for end in between(stats.chi2(within), rate / 3))
    allowed = layer.rounding(samples, float(x.abs().max()) ** 2)
    require_between(
        f"mean running variance after batches of {samples} with ICC {correlation:.3g} and variance 1",
        float(variances.mean()),
        (low / within - allowed, high / within + allowed),
        own_part,
        f"chi-squared with {within} degrees of freedom; rounding {allowed:.1g}",
    )
    mean, variance = means.mean(0), variances.mean(0)
    outputs = layer.evaluate(x.reshape(-1, channels), mean, variance)
    # Each channel is divided by its own running variance: by the least and the most of them at the bounds.
    freedom = batches * (samples - 1)
    least, most = (own_part * end / freedom for end in between(stats.chi2(freedom), rate / (3 * channels)))
    fewest, largest = (of_means * end for end in between(stats.chi2(around), rate / 3))
    bounds = (
        (low + fewest) / x.numel() / (most + layer.eps) - allowed,
        (high + largest) / x.numel() / (least + layer.eps) + allowed,
    )
    why = f"chi-squared with {within} and {around} degrees of freedom, divided by one with {freedom}"
    require_between("variance of evaluation's outputs", float(outputs.square().mean()), bounds, 1 / own_part, why)
