"""Dropout before batch norm."""

import torch
from scipy import stats
from torch import Tensor, nn

from bnprobe.errors import ArgumentError
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.pitfalls.chance import between
from bnprobe.testing.pitfalls.layer import Make, layer_of
from bnprobe.testing.pitfalls.registry import RATE, pitfall
from bnprobe.testing.properties.broken import Broken, require

__all__ = ["dropout_before", "variance_behind_dropout"]


def variance_behind_dropout(keep: float, mean: float, variance: float) -> float:
    """Of a value with this mean and variance, kept with probability ``keep`` and divided by it (X. Li et al. 2019).

    In evaluation the variance is ``variance``: less than the running one that divides it.

    Raises:
        ArgumentError: ``keep`` is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise ArgumentError(f"keep must be in (0, 1]; got {keep}")
    return (mean**2 + variance) / keep - mean**2


@pitfall("layer")
def dropout_before(
    make: Make,
    dropout: nn.Module | None = None,
    *,
    mean: float = 0.5,
    variance: float = 1.0,
    samples: int = 16,
    batches: int = 256,
    seed: int = 0,
    rate: float = RATE,
) -> None:
    r"""Dropout before the layer makes the running variance (c^2 + v) / p - c^2, where evaluation has the variance v.

    Values have mean c and variance v and are kept with probability p. So evaluation's outputs have variance
    :math:`v / ((c^2 + v) / p - c^2)` where training's have 1. Broken by a dropout that keeps too many or does not
    divide by p, by one that drops in evaluation, by wrong buffers.

    Null law: half of the values are :math:`c + \sqrt v`, half :math:`c - \sqrt v`; how many of each are kept is
    binomial, and both numbers follow from the buffers. (A value that is 0 cannot be seen to be dropped.)

    Args:
        make: ``channels -> module``, a batch norm.
        dropout: with the attribute ``p``, which is 1 - p here; default ``nn.Dropout(0.5)``.
        mean: c.
        variance: v.
        samples: of a batch.
        batches: how many.
        seed: of the masks.
        rate: how often chance alone may fail a sound layer.

    Raises:
        LawBrokenError: the layer or the dropout does otherwise.
        ArgumentError: a number is out of its range.
    """
    dropout = nn.Dropout(0.5) if dropout is None else dropout
    keep = 1 - float(getattr(dropout, "p", 0.0))
    high, low = mean + variance**0.5, mean - variance**0.5
    if variance <= 0 or not 0 < keep < 1 or min(abs(high), abs(low)) < 1e-3 or samples < 2 or samples % 2:
        raise ArgumentError(
            "dropout.p must be in (0, 1), the variance above 0 and not the mean's square, samples even; "
            f"got {1 - keep}, {variance}, {mean} and {samples}"
        )
    layer = layer_of(make, 1)
    torch.manual_seed(seed)
    x = torch.tensor([high, low], dtype=torch.float64).repeat(samples // 2).reshape(samples, 1)
    with torch.no_grad():
        dropped = torch.stack([dropout.train()(x.to(layer.device)) for _ in range(batches)])
        untouched = wide(dropout.eval()(x.to(layer.device)))
    require(bool(torch.equal(untouched, x)), "the dropout changes values in evaluation")
    means, variances = layer.statistics(wide(dropped))
    first = float(means.mean())
    second = float((variances * (samples - 1) / samples + means**2).mean())
    law = variance_behind_dropout(keep, mean, variance)
    count = batches * samples
    for value, kept in zip((high, low), _kept(first, second, (high, low), keep, count), strict=True):
        bounds = between(stats.binom(count // 2, keep), rate / 2)
        if not bounds[0] - 0.01 <= kept <= bounds[1] + 0.01:
            raise Broken(
                f"running variance is {second - first**2:.6g}, the law gives {law:.6g}\n"
                f"misfit {abs(second - first**2 - law):.3g}; so of {count // 2} values {value:.3g} {kept:.6g} were "
                f"kept and divided by {keep:.3g}, tolerance {bounds[0]:.0f} to {bounds[1]:.0f}: binomial"
            )
    evaluated = layer.evaluate(x, means.mean(0), torch.tensor([second - first**2], dtype=torch.float64))
    got, want = float(evaluated.var(correction=0)), variance / (second - first**2 + layer.eps)
    allowed = layer.rounding(samples, (high**2 + low**2) / variance)
    require(
        abs(got - want) <= allowed,
        f"variance of evaluation's outputs is {got:.6g}, the law gives {want:.6g}\n"
        f"misfit {abs(got - want):.3g}, tolerance {allowed:.3g}: rounding",
    )


def _kept(first: float, second: float, values: tuple[float, float], keep: float, count: int) -> list[float]:
    """How many of each value are left, from the mean and the mean square of what came out."""
    divided = torch.tensor(values, dtype=torch.float64) / keep
    matrix = torch.stack([divided, divided**2])
    moments = torch.tensor([first, second], dtype=torch.float64) * count
    found: Tensor = torch.linalg.solve(matrix, moments)
    return [float(one) for one in found]
