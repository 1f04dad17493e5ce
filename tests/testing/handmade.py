"""Sound layers written by hand, in parts that a mutant can get wrong one at a time."""

import torch
from torch import nn


class Handmade(nn.Module):
    """Batch norm by elementwise operations."""

    def __init__(self, channels, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.make_buffers(channels)

    def make_buffers(self, channels):
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def wide(self, x):
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def axes(self, x):
        return [0, *range(2, x.ndim)]

    def moments(self, x):
        mean = x.mean(self.axes(x), keepdim=True)
        return mean, ((x - mean) ** 2).mean(self.axes(x), keepdim=True)

    def count(self, x):
        return x.numel() // x.shape[1]

    def refuse(self, x):
        if self.count(x) < 2:
            raise ValueError(f"more than one value a channel is needed; got {tuple(x.shape)}")

    def factor(self):
        return 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum

    def track(self):
        self.num_batches_tracked += 1

    @torch.no_grad()
    def update(self, mean, variance, count):
        self.track()
        factor = self.factor()
        self.running_mean.lerp_(mean.reshape(-1).to(self.running_mean), factor)
        self.running_var.lerp_((variance.reshape(-1) * count / (count - 1)).to(self.running_var), factor)

    def normalize(self, x, mean, variance):
        return (x - mean) / (variance + self.eps).sqrt()

    def affine(self, x_hat, shape):
        return self.weight.view(shape) * x_hat + self.bias.view(shape)

    def statistics(self, x, shape):
        if not self.training:
            return self.running_mean.view(shape), self.running_var.view(shape)
        self.refuse(x)
        mean, variance = self.moments(x)
        self.update(mean, variance, self.count(x))
        return mean, variance

    def forward(self, x):
        shape, narrow = (1, -1, *[1] * (x.ndim - 2)), x.dtype
        x = self.wide(x)
        return self.affine(self.normalize(x, *self.statistics(x, shape)), shape).to(narrow)


class OwnBackward(torch.autograd.Function):
    """Batch norm of rows with a backward of its own, which autograd can differentiate."""

    @staticmethod
    def parts(x, eps):
        mean = x.mean(1, keepdim=True)
        sigma = (((x - mean) ** 2).mean(1, keepdim=True) + eps).sqrt()
        return (x - mean) / sigma, sigma

    @classmethod
    def gradient(cls, g, x_hat, sigma):
        return (g - g.mean(1, keepdim=True) - x_hat * (g * x_hat).mean(1, keepdim=True)) / sigma

    @staticmethod
    def forward(ctx, x, eps, kind):
        ctx.eps, ctx.kind = eps, kind
        ctx.save_for_backward(x)
        return OwnBackward.parts(x, eps)[0]

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return ctx.kind.gradient(g, *OwnBackward.parts(x, ctx.eps)), None, None


class OwnBackwardNorm(Handmade):
    """By rows, with the backward of the class that `rows` names."""

    rows = OwnBackward

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        shape, narrow = (1, -1, *[1] * (x.ndim - 2)), x.dtype
        x = self.wide(x)
        self.refuse(x)
        self.update(*self.moments(x.detach()), self.count(x))
        split = x.movedim(1, 0).reshape(x.shape[1], -1)
        x_hat = OwnBackward.apply(split, self.eps, self.rows)
        return self.affine(x_hat.reshape(x.shape[1], x.shape[0], *x.shape[2:]).movedim(0, 1), shape).to(narrow)


class HandmadeLayerNorm(nn.Module):
    """Layer norm over the last axis."""

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def normalize(self, x):
        mean = x.mean(-1, keepdim=True)
        return (x - mean) / (((x - mean) ** 2).mean(-1, keepdim=True) + self.eps).sqrt()

    def forward(self, x):
        narrow = x.dtype
        x = x.to(torch.promote_types(narrow, torch.float32))
        return (self.weight * self.normalize(x) + self.bias).to(narrow)


class HandmadeRMSNorm(nn.Module):
    """Root mean square norm over the last axis."""

    def __init__(self, channels, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def wide(self, x):
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def normalize(self, x):
        return x / ((x**2).mean(-1, keepdim=True) + self.eps).sqrt()

    def forward(self, x):
        return (self.weight * self.normalize(self.wide(x))).to(x.dtype)


class HandmadeGroupNorm(nn.Module):
    """Group norm of two channels a group; of one channel, alone."""

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.eps, self.num_groups = eps, -(-channels // 2) if channels % 2 == 0 else channels
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def split(self, x):
        return x.reshape(x.shape[0], self.num_groups, -1)

    def join(self, rows, shape):
        return rows.reshape(shape)

    def normalize(self, rows):
        mean = rows.mean(-1, keepdim=True)
        return (rows - mean) / (((rows - mean) ** 2).mean(-1, keepdim=True) + self.eps).sqrt()

    def forward(self, x):
        narrow, shape = x.dtype, (1, -1, *[1] * (x.ndim - 2))
        wide = x.to(torch.promote_types(narrow, torch.float32))
        x_hat = self.join(self.normalize(self.split(wide)), x.shape)
        return (self.weight.view(shape) * x_hat + self.bias.view(shape)).to(narrow)
