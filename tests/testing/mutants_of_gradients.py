"""Mutants with a wrong scale or shift, or a wrong derivative."""

import torch
from handmade import Handmade, OwnBackward, OwnBackwardNorm
from mutant import caught_by

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
