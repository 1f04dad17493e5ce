"""Batches that are each of one domain, and share running statistics."""

import torch
from scipy import stats

from bnprobe.errors import ArgumentError
from bnprobe.testing.pitfalls.chance import between, require_between
from bnprobe.testing.pitfalls.layer import Make, layer_of
from bnprobe.testing.pitfalls.registry import RATE, pitfall

__all__ = ["alternating_domains", "two_domain_moments"]

_MIDPOINT = 1.0  # not 0, which a running mean starts from


def two_domain_moments(distance: float, variances: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """What evaluation makes of two domains whose batches took turns (after Irpan 2017), their means so far apart.

    Returns:
        ``running``: mean, counted from the midpoint, and variance that the buffers end with; ``pooled``: those of the
        data; ``first`` and ``second``: mean and variance of evaluation's outputs of each domain, which are 0 and 1 in
        training.
    """
    kept = sum(variances) / 2
    ends = {
        name: (sign * distance / 2 / kept**0.5, variance / kept)
        for name, sign, variance in (("first", -1, variances[0]), ("second", 1, variances[1]))
    }
    return {"running": (0.0, kept), "pooled": (0.0, kept + distance**2 / 4), **ends}


@pitfall("layer")
def alternating_domains(
    make: Make,
    *,
    distance: float = 3.0,
    variances: tuple[float, float] = (1.0, 0.25),
    samples: int = 4,
    batches: int = 512,
    seed: int = 0,
    rate: float = RATE,
) -> None:
    r"""Where batches of two domains take turns, the running variance is the mean of theirs: their distance is missing.

    The running mean is the midpoint, the running variance :math:`(v_1 + v_2) / 2` where the data have that and
    :math:`d^2 / 4`. So evaluation gives domain k the mean :math:`\pm d / (2 \sqrt{(v_1 + v_2) / 2})` and the variance
    :math:`2 v_k / (v_1 + v_2)`, though in training both domains have 0 and 1. Broken by buffers that are not the plain
    mean over batches of the batch's own moments.

    Null law: of each domain the sum over K batches of (m - 1) times the variance that the buffer got, over
    :math:`v_k`, is chi-squared with K (m - 1) degrees of freedom, and the mean over its K m values is Gaussian. Bounds
    of each hold together with those of the others by Bonferroni.

    Args:
        make: ``channels -> module``, a batch norm.
        distance: d, of the domains' means.
        variances: of the values in the two domains.
        samples: m of a batch.
        batches: K, of each domain.
        seed: of the values.
        rate: how often chance alone may fail a sound layer.

    Raises:
        LawBrokenError: the layer does otherwise.
        ArgumentError: a number is out of its range.
    """
    if min(variances) <= 0 or samples < 2 or batches < 1:
        raise ArgumentError(f"variances must be above 0 and samples at least 2; got {variances} and {samples}")
    draws = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, batches, samples, 1, generator=draws, dtype=torch.float64)
    ends = (_MIDPOINT - distance / 2, _MIDPOINT + distance / 2)
    centre = torch.tensor(ends, dtype=torch.float64).reshape(2, 1, 1, 1)
    x = centre + torch.tensor(variances, dtype=torch.float64).sqrt().reshape(2, 1, 1, 1) * noise
    layer = layer_of(make, 1)
    means, kept = layer.statistics(x.transpose(0, 1).reshape(2 * batches, samples, 1))  # first, second, first ...
    freedom, count, law = batches * (samples - 1), batches * samples, two_domain_moments(distance, variances)
    low, high = (end / freedom for end in between(stats.chi2(freedom), rate / 4))
    z = between(stats.norm, rate / 4)[1]
    allowed = layer.rounding(samples, float(x.abs().max()) ** 2)
    why = f"chi-squared with {freedom} degrees of freedom a domain, Gaussian means of {count} values"
    middle = z * (sum(variances) / (4 * count)) ** 0.5 + allowed
    require_between("running mean", float(means.mean()), (_MIDPOINT - middle, _MIDPOINT + middle), _MIDPOINT, why)
    wanted = law["running"][1]
    bounds = (wanted * low - allowed, wanted * high + allowed)
    pooled = f"running variance of data with variance {law['pooled'][1]:.4g}"
    require_between(pooled, float(kept.mean()), bounds, wanted, why)
    for k, name in enumerate(("first", "second")):
        y = layer.evaluate(x[k].reshape(-1, 1), means.mean(0), kept.mean(0))
        mean, variance = law[name]
        # The domain's mean less the midpoint is half the difference of the domains' means.
        off = [(mean * wanted**0.5 + sign * middle) for sign in (-1, 1)]
        roots = [(max(wanted * one, 0.0) + layer.eps) ** 0.5 for one in (low, high)]
        quotients = [one / root for one in off for root in roots]
        require_between(
            f"mean of the {name} domain in evaluation", float(y.mean()),
            (min(quotients) - allowed, max(quotients) + allowed), mean, why,
        )  # fmt: skip
        spread = between(stats.chi2(count - 1), rate / 4)
        of_domain = [variances[k] * one / count for one in spread]
        require_between(
            f"variance of the {name} domain in evaluation", float(y.var(correction=0)),
            (of_domain[0] / roots[1] ** 2 - allowed, of_domain[1] / roots[0] ** 2 + allowed), variance, why,
        )  # fmt: skip
