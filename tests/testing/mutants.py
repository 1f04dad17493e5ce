"""Normalization layers with one deliberate fault each, and the law that is to catch it."""

from typing import NamedTuple

import torch
from handmade import (
    Handmade,
    HandmadeGroupNorm,
    HandmadeLayerNorm,
    HandmadeRMSNorm,
    OwnBackward,
    OwnBackwardNorm,
)

from bnprobe.testing.layers import BatchRenorm, GhostBatchNorm


class Mutant(NamedTuple):
    make: type
    like: str
    law: str


MUTANTS = {}


def caught_by(law, like="batch_norm"):
    def keep(make):
        MUTANTS[make.__name__] = Mutant(make, like, law)
        return make

    return keep


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


# ---- running statistics


@caught_by("running_statistics")
class MomentumOnTheOtherSide(Handmade):
    def factor(self):
        return 1 - super().factor()


@caught_by("running_statistics")
class UpdatedTwice(Handmade):
    def update(self, mean, variance, count):
        super().update(mean, variance, count)
        self.running_mean.lerp_(mean.reshape(-1).detach().to(self.running_mean), self.factor())


@caught_by("buffers_frozen_in_evaluation")
class UpdatedInEvaluation(Handmade):
    def forward(self, x):
        if not self.training and self.count(x) > 1:
            self.update(*self.moments(x.detach()), self.count(x))
        return super().forward(x)


@caught_by("evaluation_uses_running_statistics")
class BatchUsedInEvaluation(Handmade):
    def statistics(self, x, shape):
        return super().statistics(x, shape) if self.training else self.moments(x)


@caught_by("batches_counted")
class NotCounted(Handmade):
    def track(self):
        pass

    def factor(self):
        return 0.1 if self.momentum is None else self.momentum


@caught_by("batches_counted")
class CountedInEvaluation(Handmade):
    def forward(self, x):
        if not self.training:
            self.track()
        return super().forward(x)


@caught_by("cumulative_average_without_momentum")
class NoMomentumMeansTheDefault(Handmade):
    def factor(self):
        return 0.1 if self.momentum is None else self.momentum


@caught_by("cumulative_average_without_momentum")
class AverageOffByOne(Handmade):
    def factor(self):
        return 1 / (int(self.num_batches_tracked) + 1) if self.momentum is None else self.momentum


@caught_by("momentum_zero_keeps_buffers")
class MomentumZeroIsNone(Handmade):
    def factor(self):
        return self.momentum or 1 / int(self.num_batches_tracked)


@caught_by("state_dict_round_trip")
class NotPersistent(Handmade):
    def make_buffers(self, channels):
        super().make_buffers(channels)
        self.register_buffer("running_mean", torch.zeros(channels), persistent=False)


@caught_by("output_equals_oracle")
class NoBuffers(Handmade):
    def make_buffers(self, channels):
        self.running_mean, self.running_var = torch.zeros(channels), torch.ones(channels)
        self.num_batches_tracked = torch.tensor(0)


@caught_by("layout_does_not_matter")
class WrongCountInChannelsLast(Handmade):
    def update(self, mean, variance, count):
        super().update(mean, variance, count + 1 if self.last else count)

    def forward(self, x):
        self.last = not x.is_contiguous() and x.stride(1) == 1
        return super().forward(x)


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


# ---- scale and shift


@caught_by("output_equals_oracle")
class ScaleBeforeCentring(Handmade):
    def forward(self, x):
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, variance = self.statistics(x, shape)
        return (self.weight.view(shape) * x - mean) / (variance + self.eps).sqrt() + self.bias.view(shape)


@caught_by("output_equals_oracle")
class PositiveScale(Handmade):
    def affine(self, x_hat, shape):
        return self.weight.abs().view(shape) * x_hat + self.bias.view(shape)


@caught_by("shape_of_distribution_kept")
class SoftClamp(Handmade):
    def normalize(self, x, mean, variance):
        x_hat = super().normalize(x, mean, variance)
        return x_hat - 0.01 * x_hat**3


@caught_by("samuelson_bound")
class LargerThanPossible(Handmade):
    def normalize(self, x, mean, variance):
        return 1.01 * super().normalize(x, mean, variance)


@caught_by("sign_flip")
class PositivePartLarger(Handmade):
    def normalize(self, x, mean, variance):
        x_hat = super().normalize(x, mean, variance)
        return torch.where(x_hat > 0, 1.01 * x_hat, x_hat)


@caught_by("translation_invariance")
class MeanNotAllSubtracted(Handmade):
    def normalize(self, x, mean, variance):
        return super().normalize(x, 0.99 * mean, variance)


# ---- gradients


@caught_by("gradient_null_space")
class MeanDetached(Handmade):
    def moments(self, x):
        mean, variance = super().moments(x)
        return mean.detach(), variance


@caught_by("jacobian_spectrum")
class VarianceDetached(Handmade):
    def moments(self, x):
        mean, variance = super().moments(x)
        return mean, variance.detach()


@caught_by("samples_coupled")
class StatisticsDetached(Handmade):
    def moments(self, x):
        return super().moments(x.detach())


class _SumForMean(OwnBackward):
    @classmethod
    def gradient(cls, g, x_hat, sigma):
        return (g - g.mean(1, keepdim=True) - x_hat * (g * x_hat).sum(1, keepdim=True)) / sigma


@caught_by("gradients_equal_oracle")
class NoOneOverMInBackward(OwnBackwardNorm):
    rows = _SumForMean


class _UnbiasedBackward(OwnBackward):
    @classmethod
    def gradient(cls, g, x_hat, sigma):
        m = g.shape[1]
        return (g - g.mean(1, keepdim=True) - x_hat * (g * x_hat).sum(1, keepdim=True) / (m - 1)) / sigma


@caught_by("gradcheck")
class UnbiasedBackward(OwnBackwardNorm):
    rows = _UnbiasedBackward


class _ConstantSaved(OwnBackward):
    @classmethod
    def gradient(cls, g, x_hat, sigma):
        x_hat, sigma = x_hat.detach(), sigma.detach()
        return (g - g.mean(1, keepdim=True) - x_hat * (g * x_hat).mean(1, keepdim=True)) / sigma


@caught_by("second_derivatives_equal_oracle")
class SavedWithoutGraph(OwnBackwardNorm):
    rows = _ConstantSaved


class _WritesGradient(OwnBackward):
    @classmethod
    def gradient(cls, g, x_hat, sigma):
        g -= g.mean(1, keepdim=True)
        return (g - x_hat * (g * x_hat).mean(1, keepdim=True)) / sigma


@caught_by("input_not_written")
class WritesIntoGradient(OwnBackwardNorm):
    rows = _WritesGradient

    def affine(self, x_hat, shape):
        return x_hat  # so that the gradient comes in as it is

    def make_buffers(self, channels):
        super().make_buffers(channels)
        del self.weight, self.bias


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_hat, gamma):
        ctx.save_for_backward(x_hat, gamma)
        return x_hat * gamma

    @staticmethod
    def backward(ctx, g):
        x_hat, gamma = ctx.saved_tensors
        axes = [0, *range(2, g.ndim)]
        return g * gamma, (g * x_hat).mean(axes, keepdim=True)


@caught_by("gradients_equal_oracle")
class GradientOfScaleIsAMean(Handmade):
    def affine(self, x_hat, shape):
        return _ScaleGradient.apply(x_hat, self.weight.view(shape)) + self.bias.view(shape)


@caught_by("weight_scale")
class EpsGrowsWithTheInput(Handmade):
    def normalize(self, x, mean, variance):
        return super().normalize(x, mean, variance + 1e-3 * mean**2)


# ---- dtype, memory, ways of calling


@caught_by("dtype_and_device_kept")
class SinglePrecisionOut(Handmade):
    def forward(self, x):
        return super().forward(x).float()


@caught_by("input_not_written")
class CentresInPlace(Handmade):
    def normalize(self, x, mean, variance):
        with torch.no_grad():
            x -= mean
        return x / (variance + self.eps).sqrt()


@caught_by("layout_does_not_matter")
class ReadsMemoryOrder(Handmade):
    def moments(self, x):
        if x.is_contiguous():
            return super().moments(x)
        values = x.as_strided((x.numel(),), (1,))[: -(-x.numel() // 2)]
        mean, variance = super().moments(x)
        return mean + 0.01 * values.mean(), variance


@caught_by("channels_independent")
class NaNHidden(Handmade):
    def forward(self, x):
        return super().forward(x.nan_to_num())


@caught_by("empty_batch")
class EmptyBatchSpoilsBuffers(Handmade):
    def refuse(self, x):
        if self.count(x) == 1:
            raise ValueError("one value")


@caught_by("one_value")
class OneValueSpoilsBuffers(Handmade):
    def refuse(self, x):
        pass

    @torch.no_grad()
    def update(self, mean, variance, count):
        self.track()
        self.running_mean.lerp_(mean.reshape(-1), self.factor())
        self.running_var.lerp_(
            variance.reshape(-1) * count / max(count - 1, 0.0) if count > 1 else variance.reshape(-1) / 0, self.factor()
        )


@caught_by("batch_mates_do_not_matter")
class EvaluationCentresTheBatch(Handmade):
    def statistics(self, x, shape):
        mean, variance = super().statistics(x, shape)
        return (mean, variance) if self.training else (mean + 1e-3 * super().moments(x)[0], variance)


@caught_by("deterministic")
class Noise(Handmade):
    def normalize(self, x, mean, variance):
        return super().normalize(x, mean + 1e-7 * torch.randn(()), variance)


@caught_by("functional")
class RemembersItsScale(Handmade):
    def __init__(self, channels):
        super().__init__(channels)
        self.kept = [self.weight]

    def affine(self, x_hat, shape):
        return self.kept[0].view(shape) * x_hat + self.bias.view(shape)


@caught_by("copied")
class BuffersSharedByCopies(Handmade):
    def __deepcopy__(self, memo):
        other = type(self)(len(self.weight), self.eps, self.momentum).to(self.weight.dtype)
        other.load_state_dict(self.state_dict())
        other.running_mean = self.running_mean
        return other


@caught_by("compiled")
class NotUpdatedWhenCompiled(Handmade):
    def update(self, mean, variance, count):
        if not torch.compiler.is_compiling():
            super().update(mean, variance, count)


@caught_by("autocast")
class MeanByMatrixProduct(Handmade):
    def moments(self, x):
        rows = x.movedim(1, 0).reshape(x.shape[1], -1)
        mean = (rows @ torch.ones(rows.shape[1], 1).to(rows) / rows.shape[1]).to(x.dtype)
        mean = mean.view(1, -1, *[1] * (x.ndim - 2))
        return mean, ((x - mean) ** 2).mean(self.axes(x), keepdim=True)


@caught_by("vectorised", like="layer_norm")
class OtherUnderVmap(HandmadeLayerNorm):
    def normalize(self, x):
        return super().normalize(x) * (1.01 if torch._C._functorch.is_batchedtensor(x) else 1)


# ---- other layers


@caught_by("output_equals_oracle", like="layer_norm")
class StandardDeviationPlusEps(HandmadeLayerNorm):
    def normalize(self, x):
        if x.shape[-1] == 1:
            return 0 * x
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps)


@caught_by("batch_mates_do_not_matter", like="layer_norm")
class LayerNormOverSamples(HandmadeLayerNorm):
    def normalize(self, x):
        return super().normalize(x - x.mean(0, keepdim=True))


@caught_by("output_equals_oracle", like="rms_norm")
class RMSNormCentres(HandmadeRMSNorm):
    def normalize(self, x):
        return super().normalize(x - x.mean(-1, keepdim=True))


@caught_by("scale_law", like="rms_norm")
class RMSNormEpsOutsideRoot(HandmadeRMSNorm):
    def normalize(self, x):
        return x / ((x**2).mean(-1, keepdim=True).sqrt() + self.eps)


@caught_by("half_precision", like="rms_norm")
class RMSNormInHalfPrecision(HandmadeRMSNorm):
    def wide(self, x):
        return x


@caught_by("output_equals_oracle", like="group_norm")
class GroupsInterleaved(HandmadeGroupNorm):
    def split(self, x):
        return x.reshape(len(x), -1, self.num_groups, *x.shape[2:]).movedim(2, 1).reshape(len(x), self.num_groups, -1)

    def join(self, rows, shape):
        inner = rows.reshape(shape[0], self.num_groups, -1, *shape[2:])
        return inner.movedim(1, 2).reshape(shape)


@caught_by("gradients_equal_oracle", like="group_norm")
class OneElementGroupsPass(HandmadeGroupNorm):
    def normalize(self, rows):
        return super().normalize(rows) if rows.shape[-1] > 1 else rows - rows.detach()


@caught_by("batch_mates_do_not_matter", like="instance_norm")
class InstanceNormOverSamples(Handmade):
    def make_buffers(self, channels):
        self.track_running_stats = False

    def statistics(self, x, shape):
        return self.moments(x)


@caught_by("output_equals_oracle", like="ghost_batch_norm")
class GhostGroupsNotReset(GhostBatchNorm):
    """Each part is normalized by the parts so far."""

    def __init__(self, channels):
        super().__init__(channels, 2)

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        return torch.cat([self.norm(x[: i + 2])[i:] for i in range(0, len(x), 2)])


@caught_by("running_statistics", like="ghost_batch_norm")
class OnlyTheLastGhostKept(GhostBatchNorm):
    def __init__(self, channels):
        super().__init__(channels, 2)

    def forward(self, x):
        before = [buffer.clone() for buffer in self.norm.buffers()]
        parts = []
        for part in x.split(2) if self.training else (x,):
            for buffer, old in zip(self.norm.buffers(), before, strict=True):
                buffer.copy_(old)
            parts.append(self.norm(part))
        return torch.cat(parts)


class _Clamped(BatchRenorm):
    """With the parts of its forward apart."""

    def correction(self, mean, sigma, running_sigma):
        r = (sigma.detach() / running_sigma).clamp(1 / self.r_max, self.r_max)
        d = ((mean.detach() - self.running_mean) / running_sigma).clamp(-self.d_max, self.d_max)
        return r, d

    def forward(self, x):
        if not self.training or x.numel() <= x.shape[1]:
            return super().forward(x)
        shape, axes = (1, -1, *[1] * (x.ndim - 2)), [0, *range(2, x.ndim)]
        mean, variance = x.mean(axes), x.var(axes, correction=0)
        sigma = (variance + self.eps).sqrt()
        r, d = self.correction(mean, sigma, (self.running_var + self.eps).sqrt())
        x_hat = (x - mean.view(shape)) / sigma.view(shape) * r.view(shape) + d.view(shape)
        with torch.no_grad():
            super().forward(x)
        return self.weight.view(shape) * x_hat + self.bias.view(shape)


@caught_by("gradients_equal_oracle", like="batch_renorm")
class RenormDifferentiatesThroughR(_Clamped):
    def correction(self, mean, sigma, running_sigma):
        _, d = super().correction(mean, sigma, running_sigma)
        return (sigma / running_sigma).clamp(1 / self.r_max, self.r_max), d


@caught_by("output_equals_oracle", like="batch_renorm")
class RenormByTheBatchDeviation(_Clamped):
    def correction(self, mean, sigma, running_sigma):
        r, _ = super().correction(mean, sigma, running_sigma)
        return r, ((mean.detach() - self.running_mean) / sigma.detach()).clamp(-self.d_max, self.d_max)


@caught_by("output_equals_oracle", like="batch_renorm")
class RenormNotClipped(_Clamped):
    def correction(self, mean, sigma, running_sigma):
        return sigma.detach() / running_sigma, (mean.detach() - self.running_mean) / running_sigma
