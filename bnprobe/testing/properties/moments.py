"""Moments of what comes out."""

import torch

from bnprobe.testing.inputs import Inputs
from bnprobe.testing.likes import Like
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.properties.broken import compare, require
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.subject import Specimen, Subject

__all__ = ["samuelson_bound", "shape_of_distribution_kept", "standardised_output"]

# Batch renormalization has other moments by design.
_BY_OWN_STATISTICS: tuple[Like, ...] = (
    "batch_norm", "ghost_batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"
)  # fmt: skip


def _normalized(one: Specimen) -> tuple[torch.Tensor, torch.Tensor, str]:
    """(y - beta) / gamma in rows, from what the layer gave, how far off it may be, and why."""
    gamma = one.law.values.gamma
    beta = one.law.values.y - gamma * one.law.values.x_hat
    split = one.law.rows.split
    got = (split(wide(one.module(one.x))) - beta) / gamma
    return got, split(one.tolerance.output) / gamma.abs(), f"of (y - beta) / gamma, {one.tolerance.why}"


@law(likes=_BY_OWN_STATISTICS, x=Inputs())
def standardised_output(subject: Subject, x: Batch) -> None:
    """In training mode (y - beta) / gamma has mean 0 and variance s^2 / (s^2 + eps) over what is normalized together.

    A variance of exactly 1 is wrong. Root mean square norm has that mean square, and no law of the mean.
    """
    one = subject.specimen(x)
    got, bound, why = _normalized(one)
    values = one.law.values
    if one.settings.like != "rms_norm":
        compare("mean", got.mean(1), torch.zeros(len(got)), bound.amax(1), why)
    rho = values.variance / values.sigma**2
    spread = (2 * got.abs().amax(1) + 1) * bound.amax(1)
    compare("variance", (got**2).mean(1), rho[:, 0], spread, f"(1 + 2 max|x_hat|) times that {why}")


@law(likes=_BY_OWN_STATISTICS, x=Inputs(dtypes="widest", values=3))
def shape_of_distribution_kept(subject: Subject, x: Batch) -> None:
    """Normalizing is affine: skewness times the sign of gamma, and kurtosis, are those of the input.

    Batch norm does not make values Gaussian. Broken by a clamp, a nonlinearity, or values that do not share their
    statistics.
    """
    one = subject.specimen(x)
    got, bound, why = _normalized(one)
    want, values = one.law.rows.split(wide(one.x)), one.law.values
    deviation = (want - want.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()
    error = (bound * values.sigma / deviation).amax(1)  # of what has variance 1
    clear = (deviation[:, 0] ** 2 > one.settings.eps / 10) & (error < 1e-3)
    for name, power in (("skewness", 3), ("kurtosis", 4)):
        law_ = _standardised_moment(want, power)
        # Value, mean and deviation are each off by the error, in a product of so many factors; twice for second order.
        allowed = 2 * power * error * (_absolute_moment(want, power - 1) + law_.abs() + 1) + 1e-12
        compare(name, _standardised_moment(got, power)[clear], law_[clear], allowed[clear], f"to first order, {why}")


@law(likes=_BY_OWN_STATISTICS, x=Inputs(("outlier", "integers", "gaussian", "sparse")))
def samuelson_bound(subject: Subject, x: Batch) -> None:
    """No |x_hat| is above sqrt(m - 1) sqrt(s^2 / (s^2 + eps)); with m = 2 both equal it (Samuelson 1968).

    So batch norm at batch size 2 is a sign function. Root mean square norm has sqrt(m) in its place.
    """
    one = subject.specimen(x)
    got, bound, why = _normalized(one)
    m, values = got.shape[1], one.law.values
    centred = one.settings.like != "rms_norm"
    limit = ((m - 1 if centred else m) * values.variance).sqrt() / values.sigma
    over = (got.abs() - limit - bound).amax() if got.numel() else torch.zeros(())
    require(bool(over <= 0), f"|x_hat| is above the bound by {float(over):.3g} more than the tolerance, {why}")
    if m == 2 and centred:
        compare("|x_hat| at m = 2", got.abs(), limit.expand_as(got), bound, why)


def _standardised_moment(x: torch.Tensor, power: int) -> torch.Tensor:
    z = x - x.mean(1, keepdim=True)
    deviation = (z**2).mean(1, keepdim=True).sqrt().clamp(min=1e-300)
    return ((z / deviation) ** power).mean(1)


def _absolute_moment(x: torch.Tensor, power: int) -> torch.Tensor:
    z = x - x.mean(1, keepdim=True)
    deviation = (z**2).mean(1, keepdim=True).sqrt().clamp(min=1e-300)
    return ((z / deviation).abs() ** power).mean(1)
