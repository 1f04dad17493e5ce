"""Mutants of batch norm over several processes."""

import torch
from handmade import Handmade
from mutant import caught_by
from synchronised import Synchronised, summed
from torch import distributed as dist


@caught_by("ranks_are_one_batch", ranks=2)
class WithoutCounts(Synchronised):
    """The mean over processes of their means and variances about it, as if their batches were equal."""

    def moments(self, x):
        axes, ranks = self.axes(x), dist.get_world_size() if dist.is_initialized() else 1
        mean = summed(x.mean(axes, keepdim=True)) / ranks
        variance = summed(((x - mean) ** 2).mean(axes, keepdim=True)) / ranks
        self.seen = int(summed(x.new_tensor(x.numel() // x.shape[1])))
        return mean, variance


@caught_by("ranks_are_one_batch", ranks=2)
class WithinRanksOnly(Synchronised):
    """The variance leaves out what lies between the processes' means."""

    def moments(self, x):
        axes, ones = self.axes(x), x.new_tensor(x.numel() // x.shape[1])
        mean, _ = super().moments(x)
        own = x.mean(axes, keepdim=True)
        return mean, summed(((x - own) ** 2).sum(axes, keepdim=True)) / summed(ones)


class _Local(torch.autograd.Function):
    """The sum over processes, whose gradient stays in the process."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, g):
        return g


@caught_by("ranks_are_one_batch", ranks=2)
class GradientNotReduced(Handmade):
    def moments(self, x):
        axes, total = self.axes(x), _Local.apply if dist.is_initialized() else lambda one: one
        count = total(x.new_tensor(x.numel() // x.shape[1]))
        mean = total(x.sum(axes, keepdim=True)) / count
        self.seen = int(count)
        return mean, total(((x - mean) ** 2).sum(axes, keepdim=True)) / count

    def update(self, mean, variance, count):
        super().update(mean, variance, self.seen)
