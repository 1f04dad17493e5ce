r"""What running statistics must be after some batches, in double precision.

After a batch with mean :math:`\mu` and biased variance :math:`s^2` of m values, with momentum :math:`\alpha`:

.. math:: r_\mu \leftarrow (1 - \alpha) r_\mu + \alpha \mu, \qquad
    r_v \leftarrow (1 - \alpha) r_v + \alpha \frac{m}{m - 1} s^2

The normalizing variance is biased, the kept one is not (Ioffe & Szegedy 2015, algorithm 2; torch's documentation).
With ``momentum=None`` the weight of the t-th batch is 1 / t: the plain average.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bnprobe.testing.likes import Settings
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.oracles.rows import rows
from bnprobe.testing.parts import State

__all__ = ["after_batches", "batch_moments"]


def batch_moments(x: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and unbiased variance of each channel ``[K, C]``, for each of K parts of the batch.

    Parts are the ghost batches; of instance norm, the samples; else there is one.
    """
    x = wide(x)
    channels = x.shape[1]
    split = rows(tuple(x.shape), settings).split(x)
    m = split.shape[1]
    mean = split.sum(1) / m
    biased = ((split - mean[:, None]) ** 2).sum(1) / m
    unbiased = biased * m / (m - 1) if m > 1 else torch.full_like(biased, torch.nan)
    if settings.like == "instance_norm":  # rows come in the order sample, channel
        return tuple(one.reshape(-1, channels) for one in (mean, biased, unbiased))  # type: ignore[return-value] # three
    return tuple(one.reshape(channels, -1).T for one in (mean, biased, unbiased))  # type: ignore[return-value] # three


def after_batches(state: State, batches: Sequence[Tensor], settings: Settings) -> State:
    """Running statistics of a layer in ``state`` once it has seen the batches in training mode.

    Instance norm takes the mean over samples of their statistics; ghost batches enter one after the other, or by their
    mean, as the settings say.
    """
    if state.mean is None or state.variance is None:
        return state
    mean, variance, count = state.mean, state.variance, state.batches or 0
    for x in batches:
        means, biased, unbiased = batch_moments(x, settings)
        kept = (biased + settings.eps).sqrt() if settings.running == "deviation" else unbiased
        in_turn = settings.like == "ghost_batch_norm" and settings.ghost_updates == "in turn"
        steps = list(zip(means, kept, strict=True)) if in_turn else [(means.mean(0), kept.mean(0))]
        for one_mean, one_variance in steps:
            count += 1
            weight = 1 / count if settings.momentum is None else settings.momentum
            mean = (1 - weight) * mean + weight * one_mean
            variance = (1 - weight) * variance + weight * one_variance
    return replace(state, mean=mean, variance=variance, batches=None if state.batches is None else count)
