"""Mutants of layers other than batch norm."""

import torch
from handmade import Handmade, HandmadeGroupNorm, HandmadeLayerNorm, HandmadeRMSNorm
from mutant import caught_by

from bnprobe.testing.layers import BatchRenorm, GhostBatchNorm


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


@caught_by("large_mean_small_variance", like="layer_norm")
class OnePassLayerNorm(HandmadeLayerNorm):
    def normalize(self, x):
        mean = x.mean(-1, keepdim=True)
        return (x - mean) / (((x**2).mean(-1, keepdim=True) - mean**2).clamp(min=0) + self.eps).sqrt()
