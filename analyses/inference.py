"""From one value a seed to a decision, with its chance of being wrong.

A value is a *paired* difference: both arms of a seed share their data order and their initial weights, so that what the
arms have in common cancels. With ``n`` values ``d_1 .. d_n`` of mean ``m`` and standard deviation ``s`` the interval is
``m ± t s / sqrt(n)``. A claimed effect "above ``delta``" is

* ``reproduced`` where the interval lies wholly above ``delta``,
* ``not reproduced`` where it lies wholly below: a precise null result decides,
* ``undecided`` where it holds ``delta``.

Where a claim is refuted only further off, beyond a second threshold, what lies between the two is undecided.

Several decisions in one report share one error rate by Holm's (1979) step-down rule: the chance that *any* quantity
whose truth is its ``delta`` gets decided is at most ``alpha``, however the quantities depend on each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bnprobe.errors import ArgumentError

__all__ = [
    "ALPHA",
    "LEAST_BOOTSTRAP",
    "Decision",
    "Direction",
    "Interval",
    "Outcome",
    "Sample",
    "bootstrap_interval",
    "holm_levels",
    "judge",
    "judge_together",
    "p_value",
    "t_interval",
    "wilson_interval",
]

Direction = Literal["above", "below"]
Outcome = Literal["reproduced", "not reproduced", "undecided"]

ALPHA = 0.05  # the field's habit; the interval of a lone decision is then the customary 95 % one
_ROUNDING = 1e-9  # relative; float32 losses and accuracies differ by far more or not at all
LEAST_BOOTSTRAP = 10  # below ten values the bootstrap has too few distinct resamples to cover (Hesterberg 2015)


@dataclass(frozen=True)
class Interval:
    """An interval that holds the true value with probability ``confidence``."""

    low: float
    high: float
    confidence: float
    method: str

    def side(self, threshold: float) -> int:
        """1 where the interval lies wholly above ``threshold``, -1 wholly below, 0 where it holds it."""
        return int(self.low > threshold) - int(self.high < threshold)


@dataclass(frozen=True)
class Sample:
    """The values of one quantity, one a seed, and the effect that the claim says they show.

    Attributes:
        values: paired differences, one a seed.
        smallest_effect: the threshold ``delta`` beyond which the effect counts.
        direction: whether the claim puts the effect ``above`` or ``below`` the threshold.
        refuted_from: the threshold on whose other side the claim is refuted; None: the same one.
    """

    values: tuple[float, ...]
    smallest_effect: float
    direction: Direction = "above"
    refuted_from: float | None = None

    def __post_init__(self) -> None:
        if self.direction not in ("above", "below"):
            raise ArgumentError(f"direction must be 'above' or 'below'; got {self.direction!r}")
        if not math.isfinite(self.smallest_effect):
            raise ArgumentError(f"smallest_effect must be a finite number; got {self.smallest_effect!r}")
        low, high = self.thresholds
        if not low <= high:
            raise ArgumentError(
                f"an effect {self.direction} {self.smallest_effect!r} cannot be refuted from {self.refuted_from!r} on"
            )

    @property
    def thresholds(self) -> tuple[float, float]:
        """Below the first one side is decided for, above the second the other, between them none."""
        other = self.smallest_effect if self.refuted_from is None else self.refuted_from
        return (other, self.smallest_effect) if self.direction == "above" else (self.smallest_effect, other)


@dataclass(frozen=True)
class Decision:
    """What the values of one quantity say.

    Attributes:
        outcome: ``reproduced``, ``not reproduced`` or ``undecided``.
        value: mean over the seeds; NaN without a finite one.
        interval: the t interval at the confidence that Holm's rule asks for here; None where there is none.
        bootstrap: the bootstrap interval at the same confidence, from ten seeds on.
        p_value: two-sided, of the mean being the threshold itself; NaN where there is none.
        seeds: number of values.
        reason: one sentence.
    """

    outcome: Outcome
    value: float
    interval: Interval | None
    bootstrap: Interval | None
    p_value: float
    seeds: int
    reason: str


def t_interval(values: Sequence[float], confidence: float = 1 - ALPHA) -> Interval:
    """Student's t interval for the mean of ``values``.

    Args:
        values: at least two finite numbers.
        confidence: coverage in (0, 1).

    Raises:
        ArgumentError: too few values, a value that is not finite, or a confidence outside (0, 1).
    """
    sample = _checked(values, least=2, confidence=confidence)
    found = (sample[0], sample[0]) if _alike(sample) else stats.ttest_1samp(sample, 0.0).confidence_interval(confidence)
    return Interval(float(found[0]), float(found[1]), confidence, "t")


def bootstrap_interval(
    values: Sequence[float], confidence: float = 1 - ALPHA, *, resamples: int = 9999, seed: int = 0
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987) for the mean, from ten values on.

    Args:
        values: at least ``LEAST_BOOTSTRAP`` finite numbers.
        confidence: coverage in (0, 1).
        resamples: number of resamples.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ArgumentError: as ``t_interval``, with ten values as the least number.
    """
    sample = _checked(values, least=LEAST_BOOTSTRAP, confidence=confidence)
    if _alike(sample):
        return Interval(float(sample[0]), float(sample[0]), confidence, "BCa bootstrap")
    found = stats.bootstrap(
        (sample,), np.mean, confidence_level=confidence, n_resamples=resamples, method="BCa", rng=seed
    ).confidence_interval
    return Interval(float(found.low), float(found.high), confidence, "BCa bootstrap")


def wilson_interval(successes: int, trials: int, confidence: float = 1 - ALPHA) -> Interval:
    """Wilson's (1927) score interval for a rate: it stays inside [0, 1] and has a width at 0 and at 1.

    Raises:
        ArgumentError: no trials, or successes outside [0, trials].
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ArgumentError(f"a rate needs 0 <= successes <= trials and trials >= 1; got {successes} of {trials}")
    found = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high), confidence, "Wilson")


def p_value(sample: Sample) -> float:
    """Two-sided p-value of the mean being exactly the threshold; NaN without two differing finite values.

    Two-sided because both sides decide: one says ``reproduced``, the other ``not reproduced``. Of two thresholds it is
    the one that the mean is beyond, and 1 where it lies between them.
    """
    values = np.asarray(sample.values, np.float64)
    if values.size < 2 or not np.isfinite(values).all() or _alike(values):
        return math.nan
    nearest = float(np.clip(values.mean(), *sample.thresholds))
    return float(stats.ttest_1samp(values, nearest).pvalue)


def holm_levels(p_values: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """The error rate at which each of several tests is decided, so that all of them share ``alpha`` (Holm 1979).

    The smallest of m p-values is compared with alpha/m, the next with alpha/(m-1) and so on; from the first that
    fails on, all fail. A test is rejected exactly where its p-value is at most the level that it gets here.

    Args:
        p_values: one a test; NaN stands for a test that can not reject and still counts.
        alpha: the error rate that they share.
    """
    order = sorted(range(len(p_values)), key=lambda i: _rank(p_values[i]))
    levels = [alpha] * len(p_values)
    stopped: float | None = None
    for place, i in enumerate(order):
        level = alpha / (len(order) - place)
        if stopped is None and not p_values[i] <= level:
            stopped = level
        levels[i] = level if stopped is None else stopped
    return levels


def judge(
    values: Sequence[float], smallest_effect: float, direction: Direction = "above", *, alpha: float = ALPHA
) -> Decision:
    """Decide on one quantity alone; see the module's docstring for the rule.

    Args:
        values: paired differences, one a seed.
        smallest_effect: the threshold that the effect must pass to count.
        direction: ``above`` or ``below``: where the claim puts the effect.
        alpha: chance of a wrong decision where the truth is the threshold itself.
    """
    return judge_together([Sample(tuple(values), smallest_effect, direction)], alpha)[0]


def judge_together(samples: Sequence[Sample], alpha: float = ALPHA) -> list[Decision]:
    """Decide on several quantities of one report, which share the error rate ``alpha`` by Holm's rule."""
    levels = holm_levels([p_value(sample) for sample in samples], alpha)
    return [_decide(sample, 1 - level) for sample, level in zip(samples, levels, strict=True)]


def _decide(sample: Sample, confidence: float) -> Decision:
    values = np.asarray(sample.values, np.float64)
    mean = float(values.mean()) if values.size else math.nan
    missing = int((~np.isfinite(values)).sum())
    if missing:
        return _undecided(sample, mean, f"{missing} of {values.size} seeds have no finite value")
    if values.size < 2:
        return _undecided(
            sample, mean, f"{values.size} seed: the spread between seeds is unknown, so there is no interval"
        )
    if _alike(values):
        return _undecided(sample, mean, f"all {values.size} seeds gave the same value, so there is no interval")
    interval = t_interval(sample.values, confidence)
    bootstrap = bootstrap_interval(sample.values, confidence) if values.size >= LEAST_BOOTSTRAP else None
    outcome, reason = _outcome(sample, interval, bootstrap)
    return Decision(outcome, mean, interval, bootstrap, p_value(sample), values.size, reason)


def _outcome(sample: Sample, interval: Interval, bootstrap: Interval | None) -> tuple[Outcome, str]:
    low, high = sample.thresholds
    side = _side(interval, sample)
    if side == 0 and low < high:
        return "undecided", "the interval reaches between the smallest effect that counts and what refutes the claim"
    if side == 0:
        return "undecided", "the interval holds the smallest effect that counts"
    if bootstrap is not None and _side(bootstrap, sample) != side:
        return "undecided", "the t interval and the bootstrap interval disagree"
    if (side > 0) == (sample.direction == "above"):
        return "reproduced", f"the interval lies {sample.direction} the smallest effect that counts"
    if low < high:
        return "not reproduced", "the interval lies wholly where the claim is refuted"
    return "not reproduced", f"the interval does not reach {sample.direction} the smallest effect that counts"


def _side(interval: Interval, sample: Sample) -> int:
    low, high = sample.thresholds
    return max(interval.side(high), 0) + min(interval.side(low), 0)


def _undecided(sample: Sample, mean: float, reason: str) -> Decision:
    return Decision("undecided", mean, None, None, math.nan, len(sample.values), reason)


def _alike(values: NDArray[np.float64]) -> bool:
    """Whether the values differ by no more than rounding: a spread of that size is none."""
    return bool(np.ptp(values) <= _ROUNDING * np.abs(values).max())


def _rank(p: float) -> float:
    return math.inf if math.isnan(p) else p


def _checked(values: Sequence[float], least: int, confidence: float) -> NDArray[np.float64]:
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or sample.size < least:
        raise ArgumentError(f"values must be at least {least} numbers, one a seed; got {sample.size}")
    if not np.isfinite(sample).all():
        raise ArgumentError(f"values must be finite; got {sample.tolist()}")
    if not 0 < confidence < 1:
        raise ArgumentError(f"confidence must lie between 0 and 1; got {confidence!r}")
    return sample
