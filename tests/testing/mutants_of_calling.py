"""Mutants that are wrong for a dtype, a layout in memory, or a way of being called."""

import torch
from handmade import Handmade, HandmadeLayerNorm
from mutant import caught_by


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
