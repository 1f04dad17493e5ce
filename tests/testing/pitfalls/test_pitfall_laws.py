"""Sound batch norms obey the laws of pitfalls as often as is promised, broken ones do not."""

import pytest
import torch
from scipy import stats
from torch import nn

from bnprobe.errors import ArgumentError, LawBrokenError, NotMeasuredError
from bnprobe.testing import pitfalls

LAWS = [name for name, one in pitfalls.PITFALLS.items() if one.about == "layer"]
RANDOM = [name for name in LAWS if name != "two_samples"]
SOUND = {
    "1d": nn.BatchNorm1d,
    "2d": nn.BatchNorm2d,
    "3d, average": lambda c: nn.BatchNorm3d(c, momentum=None),
    "bare, slow": lambda c: nn.BatchNorm1d(c, affine=False, momentum=0.01, eps=1e-3),
}


class BiasedKept(nn.BatchNorm1d):
    def forward(self, x):
        if not self.training:
            return super().forward(x)
        mean, variance = x.mean(0), x.var(0, correction=0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        return (x - mean) / (variance + self.eps).sqrt()


class UnbiasedNormalizes(nn.BatchNorm1d):
    def forward(self, x):
        y = super().forward(x)
        return y * ((len(x) - 1) / len(x)) ** 0.5 if self.training else y


class Detached(nn.BatchNorm1d):
    def forward(self, x):
        super().forward(x)
        return (x - x.mean(0).detach()) / (x.var(0, correction=0).detach() + self.eps).sqrt()


class CarriesOver(nn.BatchNorm1d):
    """Half of the statistics are the last batch's."""

    def forward(self, x):
        y = super().forward(x)
        if not self.training:
            return y
        last, self.last = getattr(self, "last", None), x.mean(0).detach()
        return y if last is None else y + 0.5 * (x.mean(0) - last)


class ForgetsMean(nn.BatchNorm1d):
    def forward(self, x):
        y = super().forward(x)
        with torch.no_grad():
            self.running_mean.mul_(0.5)
        return y


BROKEN = [
    (BiasedKept, "sorted_batches"),
    (BiasedKept, "alternating_domains"),
    (BiasedKept, "small_batches"),
    (BiasedKept, "dropout_before"),
    (UnbiasedNormalizes, "small_batches"),
    (UnbiasedNormalizes, "two_samples"),
    (UnbiasedNormalizes, "fixed_partition"),
    (Detached, "two_samples"),
    (CarriesOver, "accumulation"),
    (ForgetsMean, "alternating_domains"),
    (ForgetsMean, "small_batches"),
]


@pytest.mark.parametrize("kind", SOUND)
@pytest.mark.parametrize("name", LAWS)
def test_sound_layers_obey(name, kind):
    pitfalls.PITFALLS[name].check(SOUND[kind])


@pytest.mark.parametrize(("make", "name"), BROKEN, ids=lambda one: getattr(one, "__name__", one))
def test_broken_layers_do_not(make, name):
    with pytest.raises(LawBrokenError, match=f"{make.__name__} breaks the law {name} of pitfalls"):
        pitfalls.PITFALLS[name].check(make)


@pytest.mark.parametrize("name", RANDOM)
def test_chance_fails_no_more_than_it_may(name):
    """At a rate at which failures can be counted; the bound on their number is the binomial's, at 1e-9."""
    rate, runs, broken = 0.2, 25, 0
    size = "repeats" if name == "accumulation" else "batches"
    for seed in range(runs):
        try:
            pitfalls.PITFALLS[name].check(nn.BatchNorm1d, seed=seed, rate=rate, **{size: 16})
        except LawBrokenError:
            broken += 1
    assert broken <= stats.binom.isf(1e-9, runs, rate)


def test_an_exact_law_fails_about_as_often_as_it_may():
    """So the tolerance is no wider than it must be: of 40 runs at 50 % some fail."""
    broken = 0
    for seed in range(40):
        try:
            pitfalls.accumulation(nn.BatchNorm1d, seed=seed, repeats=16, rate=0.5)
        except LawBrokenError:
            broken += 1
    assert stats.binom.ppf(1e-9, 40, 0.5) <= broken <= stats.binom.isf(1e-9, 40, 0.5)


def test_the_message_has_law_misfit_tolerance_and_example():
    with pytest.raises(LawBrokenError) as caught:
        pitfalls.sorted_batches(BiasedKept, correlation=0.25, seed=3)
    text = str(caught.value)
    assert text.startswith("BiasedKept breaks the law sorted_batches of pitfalls\nlaw: Where values of one batch")
    assert "the law gives 0.75\nmisfit 0.0" in text
    assert "chi-squared with 7168 degrees of freedom" in text
    assert text.endswith(
        "from bnprobe.testing import pitfalls\n    pitfalls.sorted_batches(BiasedKept, correlation=0.25, seed=3)"
    )


def test_a_dropout_of_ones_own_is_judged():
    class KeepsTooMany(nn.Dropout):
        def forward(self, x):
            return torch.where(torch.rand_like(x) < 0.6, x / 0.5, 0.0) if self.training else x

    pitfalls.dropout_before(nn.BatchNorm1d, nn.Dropout(0.2))
    with pytest.raises(LawBrokenError, match=r"running variance is (.|\n)*binomial"):
        pitfalls.dropout_before(nn.BatchNorm1d, KeepsTooMany(0.5))
    awake = nn.Dropout(0.5)
    awake.train = lambda mode=True: nn.Dropout.train(awake, True)
    awake.eval = lambda: awake.train()
    with pytest.raises(LawBrokenError, match="changes values in evaluation"):
        pitfalls.dropout_before(nn.BatchNorm1d, awake)


def test_what_cannot_be_measured_says_so():
    with pytest.raises(NotMeasuredError, match="keeps no running statistics"):
        pitfalls.sorted_batches(lambda c: nn.BatchNorm1d(c, track_running_stats=False))
    with pytest.raises(NotMeasuredError, match="momentum is 0"):
        pitfalls.sorted_batches(lambda c: nn.BatchNorm1d(c, momentum=0.0))
    with pytest.raises(
        ArgumentError, match=r"takes no batch \[4, 4, 1, \.\.\.\]; the last refusal: ValueError: expected 5D"
    ):
        pitfalls.sorted_batches(lambda c: nn.BatchNorm3d(c) if c == 2 else Refuses())
    for name, wrong in {
        "sorted_batches": {"correlation": 1.0},
        "alternating_domains": {"samples": 1},
        "small_batches": {"samples": 1},
        "two_samples": {"gap": 0.0},
        "fixed_partition": {"batches": 1},
        "dropout_before": {"variance": 0.25},
        "accumulation": {"parts": 1},
    }.items():
        with pytest.raises(ArgumentError, match="must be"):
            pitfalls.PITFALLS[name].check(nn.BatchNorm1d, **wrong)


class Refuses(nn.Module):
    def forward(self, x):
        raise ValueError("expected 5D input")


@pytest.mark.parametrize("name", LAWS)
def test_random_streams_are_left_alone(name):
    before = torch.get_rng_state()
    pitfalls.PITFALLS[name].check(nn.BatchNorm1d)
    assert torch.equal(before, torch.get_rng_state())
