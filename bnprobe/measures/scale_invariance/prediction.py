r"""Which normalizations a parameter feeds, and what their epsilon makes of the law of scale invariance.

With a variance s^2 and an epsilon the law is exact for none: scaled by a, x-hat grows by
:math:`r(a) = a \sqrt{(s^2 + \epsilon) / (a^2 s^2 + \epsilon)}`, and the gradient is not quite orthogonal:
:math:`\langle w, \nabla_w L \rangle = (\epsilon / (s^2 + \epsilon)) \langle \partial L / \partial \hat x,
\hat x \rangle`, summed over the groups that the parameter feeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from bnprobe.measures.scale_invariance.confirmation import Trial
from bnprobe.measures.scale_invariance.hypotheses import Array, Hypothesis, host
from bnprobe.measures.scale_invariance.listening import grown_by
from bnprobe.measures.scale_invariance.passes import Pass

__all__ = ["UNKNOWN", "Predicted", "Site", "predict", "scale_of", "sites_of"]

_TOGETHER = 3  # parameters scaled as wholes that reach one normalization with nothing normalized between (ours)
_COMBINATIONS = 20_000  # of them that are looked through for one normalization (ours)
_CONSTANT = 1e-9  # of the median variance: such a group is constant


def scale_of(factor: Array, variance: Array, eps: float) -> Array:
    """r(a): by how much x-hat grows where the input is multiplied by a."""
    with np.errstate(divide="ignore", invalid="ignore"):
        grown: Array = factor * np.sqrt((variance + eps) / (factor**2 * variance + eps))
    return grown


@dataclass(frozen=True, eq=False)
class Site:
    r"""One normalization of the pass as the user wrote it, and what the trials did to its input.

    Attributes:
        variances: ``[R, K]``.
        eps: of the call.
        euler: ``[R, K]``: :math:`(1 - \rho) <dL/dx-hat, x-hat>` of each group.
        factor: ``[R, K]``: by how much its input grew in the measured trial.
        measured: ``[R, K]``: by how much x-hat then grew.
        fed_by: ``(place among the hypotheses, whether channel by channel)`` of the parameters that scaled it.
        explained: whether these explain all of the factors.
    """

    variances: Array
    eps: float
    euler: Array
    factor: Array
    measured: Array
    fed_by: tuple[tuple[int, bool], ...]
    explained: bool

    @property
    def share(self) -> Array:
        """``[R, K]``: epsilon's share of what is divided by, 1 - rho."""
        return self.eps / (self.variances + self.eps)


@dataclass(frozen=True, eq=False)
class Predicted:
    """Of one hypothesis, ``[units]`` each; NaN where no normalization is known that it feeds.

    Attributes:
        factor, measured, predicted: of the group with the largest predicted deviation: by how much its input was
            scaled in the trial, and r as measured and as predicted.
        euler: right side of the law for <w, gradient>.
        share: largest share of epsilon.
    """

    factor: Array
    measured: Array
    predicted: Array
    euler: Array
    share: Array


UNKNOWN = Predicted(*(np.full(1, np.nan) for _ in range(5)))  # nothing can be said


def sites_of(base: Pass, trials: Sequence[Trial], tolerance: float) -> list[Site]:
    """The normalizations; which parameters feed them is read off the factors by which their inputs grew.

    Args:
        base: the pass as written.
        trials: two trials of the same hypotheses with independent factors, the second one measured.
        tolerance: relative, for factors that are the same.
    """
    found = []
    for index, one in enumerate(base.seen):
        gate, measured = base.gates[index], trials[-1].seen[index].measured
        variances = host(one.variances)
        euler = np.zeros_like(variances) if gate is None else host(gate) * one.eps / (variances + one.eps)
        growth = [host(grown_by(one.variances, trial.seen[index].variances)) for trial in trials]
        fed_by, explained = _feeding(growth, variances, trials, tolerance)
        factor = growth[-1]
        grown = np.full_like(factor, np.nan) if measured is None else host(measured)
        found.append(Site(variances, one.eps, euler, factor, grown, fed_by, explained))
    return found


def predict(sites: Sequence[Site], place: int, hypothesis: Hypothesis) -> Predicted:
    """What epsilon does to one hypothesis."""
    count = hypothesis.count
    nothing = 1.0 if all(site.explained for site in sites) else np.nan  # it reaches no epsilon, or one unseen
    best = np.full((3, count), nothing)
    euler, share = np.full(count, 0.0 if nothing == 1 else np.nan), np.full(count, np.nan)
    for site in sites:
        times = [fed for fed, _ in site.fed_by].count(place)
        if not times:
            continue
        units = _unit_of_group(site, hypothesis, dict(site.fed_by)[place])
        predicted = scale_of(site.factor, site.variances, site.eps)
        for unit in range(count):
            groups = units == unit
            if not groups.any():
                continue
            euler[unit] = np.nan_to_num(euler[unit]) + times * site.euler[groups].sum()
            share[unit] = np.nanmax([share[unit], site.share[groups].max()])
            worst = np.abs(predicted[groups] - 1).argmax()
            if not abs(best[2, unit] - 1) > abs(predicted[groups][worst] - 1):
                best[:, unit] = (
                    site.factor[groups][worst],
                    site.measured[groups][worst],
                    predicted[groups][worst],
                )
    return Predicted(best[0], best[1], best[2], euler, share)


def _unit_of_group(site: Site, hypothesis: Hypothesis, each: bool) -> NDArray[np.int64]:
    """``[R, K]``: which unit scaled a group."""
    if not each:
        return np.zeros(site.variances.shape, np.int64)
    units = hypothesis.units[0] if len(hypothesis.units[0]) == site.variances.shape[1] else np.arange(hypothesis.count)
    return np.broadcast_to(units, site.variances.shape)


def _feeding(
    growth: Sequence[Array], variances: Array, trials: Sequence[Trial], tolerance: float
) -> tuple[tuple[tuple[int, bool], ...], bool]:
    """Which hypotheses' factors these are, and whether nothing is left over."""
    certain = variances > _CONSTANT * np.median(variances)
    if not certain.any():
        return (), True
    hypotheses, logs = trials[0].hypotheses, [np.log(one) for one in growth]
    each: list[tuple[int, bool]] = []
    for place, one in enumerate(hypotheses):
        if one.shift or one.count < 2:
            continue
        rest = [log - _by_group(one, trial.numbers[place], log.shape) for log, trial in zip(logs, trials, strict=True)]
        if all(np.isfinite(log).all() and np.ptp(log[certain]) <= tolerance for log in rest) and certain.sum() > 1:
            logs, each = rest, [(place, True)]
            break
    left = np.array([np.median(log[certain]) for log in logs])
    if any(np.ptp(log[certain]) > tolerance for log in logs):
        return tuple(each), False
    whole = [place for place, one in enumerate(hypotheses) if not one.shift and one.count == 1]
    own = {place: np.array([float(np.log(trial.numbers[place][0])) for trial in trials]) for place in whole}
    for size in range(_TOGETHER + 1):
        if math.comb(len(whole) + size, size) > _COMBINATIONS:
            break
        for some in combinations_with_replacement(whole, size):  # a shared weight may act twice
            if (np.abs(left - sum((own[place] for place in some), np.zeros(len(left)))) <= tolerance).all():
                return (*each, *((place, False) for place in some)), True
    return tuple(each), False


def _by_group(hypothesis: Hypothesis, numbers: Array, shape: tuple[int, ...]) -> Array:
    """``[1, K]`` logarithms of the factors of the groups; NaN where the hypothesis has other units."""
    channels = hypothesis.of_channels(numbers, hypothesis.members[0], 1.0)
    for candidate in (channels, numbers):
        if len(candidate) == shape[1]:
            return np.asarray(np.log(candidate))[None]
    return np.full((1, shape[1]), np.nan)
