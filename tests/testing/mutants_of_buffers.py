"""Mutants whose running statistics are wrong."""

import torch
from handmade import Handmade
from mutant import caught_by


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
