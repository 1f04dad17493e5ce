"""Mutants that take wrong statistics: another variance, eps in another place, other values."""

import torch
from handmade import Handmade
from mutant import caught_by

# ---- which variance


@caught_by("running_statistics")
class BiasedVarianceKept(Handmade):
    def update(self, mean, variance, count):
        super().update(mean, variance * (count - 1) / count, count)


@caught_by("standardised_output")
class UnbiasedVarianceNormalizes(Handmade):
    def normalize(self, x, mean, variance):
        m = self.count(x)
        return super().normalize(x, mean, variance * m / (m - 1) if self.training else variance)


@caught_by("running_statistics")
class SamplesCountedNotValues(Handmade):
    """The correction is that of N, not of N times positions."""

    def update(self, mean, variance, count):
        n = self.samples
        super().update(mean, variance * (count - 1) / count * (n / (n - 1) if n > 1 else 2), count)

    def forward(self, x):
        self.samples = len(x)
        return super().forward(x)


@caught_by("large_mean_small_variance")
class OnePassVariance(Handmade):
    def moments(self, x):
        mean = x.mean(self.axes(x), keepdim=True)
        return mean, ((x**2).mean(self.axes(x), keepdim=True) - mean**2).clamp(min=0)


@caught_by("half_precision")
class HalfPrecisionSums(Handmade):
    def wide(self, x):
        return x


@caught_by("output_equals_oracle")
class LastSampleLeftOut(Handmade):
    def moments(self, x):
        return super().moments(x[:-1] if len(x) > 2 else x)


# ---- where eps stands


@caught_by("scale_law")
class EpsOutsideRoot(Handmade):
    def normalize(self, x, mean, variance):
        return (x - mean) / (variance.sqrt() + self.eps)


@caught_by("scale_law")
class EpsTwice(Handmade):
    def normalize(self, x, mean, variance):
        return super().normalize(x, mean, variance + self.eps)


@caught_by("constant_channels")
class EpsForgotten(Handmade):
    def normalize(self, x, mean, variance):
        return (x - mean) / variance.sqrt()


@caught_by("evaluation_folds_into_weights")
class EpsOnlyInTraining(Handmade):
    def normalize(self, x, mean, variance):
        return super().normalize(x, mean, variance if self.training else variance - self.eps)


@caught_by("gradient_null_space")
class VarianceClampedAtEps(Handmade):
    def normalize(self, x, mean, variance):
        return (x - mean) / variance.clamp(min=self.eps).sqrt()


# ---- which values


@caught_by("samples_coupled")
class PerSample(Handmade):
    def axes(self, x):
        return [*range(2, x.ndim)] if x.ndim > 2 else [0]

    def update(self, mean, variance, count):
        super().update(mean.mean(0), variance.mean(0), count)


@caught_by("channels_independent")
class OverAllChannels(Handmade):
    def axes(self, x):
        return [*range(x.ndim)]

    def update(self, mean, variance, count):
        super().update(mean.expand(1, len(self.weight)), variance.expand(1, len(self.weight)), count)


@caught_by("output_equals_oracle")
class SamplesOnly(Handmade):
    """Every position has its own statistics."""

    def axes(self, x):
        return [0]

    def refuse(self, x):
        if len(x) < 2:
            raise ValueError("two samples are needed")

    def update(self, mean, variance, count):
        axes = [0, *range(2, mean.ndim)]
        super().update(mean.mean(axes), variance.mean(axes), count)


@caught_by("position_order")
class PositionsWeighted(Handmade):
    def normalize(self, x, mean, variance):
        if x.ndim > 2:
            mean = mean + 0.01 * torch.arange(x.shape[-1]).to(x)
        return super().normalize(x, mean, variance)


@caught_by("sample_order")
class FirstSampleIsTheMean(Handmade):
    def moments(self, x):
        mean, variance = super().moments(x)
        first = x[:1].mean(self.axes(x), keepdim=True)
        return mean + 0.01 * (first - mean), variance


@caught_by("channel_order")
class ScaleOfTheNextChannel(Handmade):
    def affine(self, x_hat, shape):
        return self.weight.roll(1).view(shape) * x_hat + self.bias.view(shape)
