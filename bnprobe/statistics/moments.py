"""Moments of a tensor's values, per layer and per channel."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.hooks.saved import GroupMoments, merge_moments
from bnprobe.hooks.sites import Site
from bnprobe.records import COMPUTED, SAMPLED, Measured
from bnprobe.statistics.base import Observation, Statistic
from bnprobe.statistics.power_sums import PowerSums, merge_power_sums, power_sums
from bnprobe.statistics.sample import Sample, merge_samples, stacked

__all__ = ["Moments"]

# 95 %: a share that was never seen in n draws is below 1 - 0.05^(1/n) (Clopper-Pearson with no success).
_UNSEEN = 0.05
_SINGLE = 2.0**-21  # four roundings in single precision
_LOOKS = 8  # fewer values of a channel say nothing of its spread, nor of the error of its mean


class MomentsState(NamedTuple):
    """What has been seen: power sums of everything (``exact``), or a sample beside what autograd had saved."""

    sums: PowerSums | None
    sample: Sample | None
    saved: GroupMoments | None


@dataclass(frozen=True)
class Moments(Statistic):
    """Count, mean, variance, skewness, excess kurtosis, minimum, maximum, share of zeros, share of non-finite values.

    Values that are not finite are counted and left out of everything else. Variances are biased (divided by n). The
    layer's value is over all its values together, a channel's over that channel's.

    By default mean and variance of norm layers are read from autograd's own saved tensors, and the rest comes from the
    tensor's random sample, with errors: standard errors by the statistic's influence function for the moments; for the
    shares the reach of a 95 % interval; for minimum and maximum the share of values that may lie beyond, with 95 %
    confidence.
    On heavy tails the kurtosis' error is short (1.96 errors of 2048 values of ``|N(0, 1)|^1.5`` held the truth in 83 %
    of 300 trials instead of 95 %; those of the other moments in 91 to 96 %).

    Args:
        exact: read every value (a pass over each tensor, in float64; per-channel values of all nine).
        places: which of ``input`` and ``output`` to take.
    """

    exact: bool = False
    places: tuple[str, ...] = ("input", "output")

    @property
    def reads_all(self) -> bool:
        """Whether every value is read."""
        return self.exact

    def applies(self, site: Site, place: str) -> bool:  # noqa: ARG002 - the interface's
        """Every layer, at the chosen places."""
        return place.split(".")[0] in self.places

    def update(self, state: MomentsState | None, seen: Observation) -> MomentsState:
        """One more tensor."""
        if self.exact:
            new = MomentsState(power_sums(seen.by_channel()), None, None)
        else:
            new = MomentsState(None, seen.sample, seen.moments)
        return self.merge(state, new)  # type: ignore[return-value]  # new is no neutral state

    def merge(self, a: MomentsState | None, b: MomentsState | None) -> MomentsState | None:
        """Chan's formula for sums and saved moments, bottom-k for samples."""
        if a is None or b is None:
            return a or b
        sums = _joined(a.sums, b.sums) if a.sums is not None and b.sums is not None else None
        sample = merge_samples(a.sample, b.sample) if a.sample is not None and b.sample is not None else None
        saved = merge_moments(a.saved, b.saved) if a.saved is not None and b.saved is not None else None
        return MomentsState(sums, sample, saved)

    def finish(self, states: Sequence[MomentsState]) -> Mapping[str, Measured]:
        """All nine, for R states."""
        if self.exact:
            return _finish_sums([state.sums for state in states if state.sums is not None])
        return _finish_samples(states)


def _joined(a: PowerSums, b: PowerSums) -> PowerSums:
    """Both, channel by channel; of the layer as one channel where the channels differ."""
    if a.n.shape != b.n.shape:
        a, b = a.pooled(), b.pooled()
    return merge_power_sums(a, b)


def _finish_sums(sums: list[PowerSums]) -> dict[str, Measured]:
    per_channel = [channel_sums.moments() for channel_sums in sums]
    pooled = [channel_sums.pooled().moments() for channel_sums in sums]
    return {
        name: Measured(
            value=np.array([float(one[name][0]) for one in pooled]),
            source=COMPUTED,
            error=np.zeros(len(sums)),
            channels=[one[name] for one in per_channel],
        )
        for name in (pooled[0] if pooled else {})
    }


_SAVED = ("mean", "variance")
_Channels = tuple[list[NDArray[np.float64] | None], list[NDArray[np.float64] | None]]


def _finish_samples(states: Sequence[MomentsState]) -> dict[str, Measured]:
    samples = [state.sample for state in states if state.sample is not None]
    saved = _pool_all([state.saved for state in states])
    values, errors = _layer_moments(samples)
    complete = np.array([sample.complete for sample in samples])
    sources = [COMPUTED if sample.complete else SAMPLED for sample in samples]
    result = {name: Measured(values[name], sources, np.where(complete, 0.0, errors[name])) for name in values}
    # Where autograd had the channels' moments, the sample's are not needed.
    unknown = [row for row, one in enumerate(saved) if one is None or one.by_channel is None]
    sampled_channels = _channel_moments([samples[row] for row in unknown])
    for name in _SAVED:
        channels: _Channels = ([None] * len(samples), [None] * len(samples))
        for position, row in enumerate(unknown):
            for mine, theirs in zip(channels, sampled_channels[name], strict=True):
                mine[row] = theirs[position]
        result[name] = _prefer_saved(name, result[name], saved, channels)
    return result


def _prefer_saved(name: str, sampled: Measured, saved: Sequence["_Pooled | None"], channels: _Channels) -> Measured:
    """Values from autograd's saved tensors where they exist and are finite, else from the sample."""
    assert sampled.error is not None
    value, error, source = sampled.value.copy(), sampled.error.copy(), list(sampled.source)
    for row, one in enumerate(saved):
        if one is not None:
            value[row], error[row], source[row] = one.pooled[name], one.rounding[name], one.source
            if one.by_channel is not None:
                channels[0][row] = one.by_channel[name]
    return Measured(value, source, error, channels[0], channel_errors=channels[1])


class _Pooled(NamedTuple):
    pooled: dict[str, float]
    by_channel: dict[str, NDArray[np.float64]] | None
    rounding: dict[str, float]
    source: str


def _pool_all(states: Sequence[GroupMoments | None]) -> list[_Pooled | None]:
    """Pooled moments of each state, None where they are not finite; all of one shape in one copy from the device."""
    result: list[_Pooled | None] = [None] * len(states)
    alike: dict[tuple[object, ...], list[int]] = {}
    for row, one in enumerate(states):
        if one is not None:
            alike.setdefault((one.mean.device, one.mean.dtype, one.mean.numel()), []).append(row)
    for rows in alike.values():
        some = [one for row in rows if (one := states[row]) is not None]
        mean, variance = (torch.stack([getattr(one, name) for one in some]).cpu().double().numpy() for name in _SAVED)
        finite = np.isfinite(mean + variance)
        with np.errstate(invalid="ignore"):
            pooled_mean = mean.mean(1)
            pooled_variance = variance.mean(1) + ((mean - pooled_mean[:, None]) ** 2).mean(1)  # total variance
        for i, (row, one) in enumerate(zip(rows, some, strict=True)):
            if finite[i].all():
                by_channel = {"mean": mean[i], "variance": variance[i]} if one.by_channel else None
                pooled = {"mean": float(pooled_mean[i]), "variance": float(pooled_variance[i])}
                # The variance comes back from 1 / sqrt(v + eps): near zero only the rounding of their sum is left.
                rounding = {"mean": 0.0, "variance": _SINGLE * (pooled["variance"] + one.eps) if one.eps else 0.0}
                result[row] = _Pooled(pooled, by_channel, rounding, one.source)
    return result


def _layer_moments(samples: Sequence[Sample]) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Layer values and their errors, ``[R]`` each."""
    names = ("mean", "variance", "skewness", "excess_kurtosis", "min", "max", "zeros", "nonfinite")
    values = {name: np.full(len(samples), np.nan) for name in names}
    errors = {name: np.full(len(samples), np.nan) for name in names}
    for rows, matrix in stacked(samples):
        value, error = sample_moments(matrix)
        for name in names:
            values[name][rows], errors[name][rows] = value[name].cpu().numpy(), error[name].cpu().numpy()
    return values, errors


def sample_moments(matrix: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Moments of each row of ``[R, n]`` (float64) with their errors as estimates for the population sampled.

    The error of a moment is the standard deviation of its influence function over sqrt(n); the influence functions
    are polynomials in the standardised value z: ``z`` for the mean, ``z^2 - 1`` for the variance,
    ``z^3 - 3 z - g - 3/2 g (z^2 - 1)`` for the skewness g and ``z^4 - b - 4 g z - 2 b (z^2 - 1)`` for the kurtosis b.
    """
    total = matrix.sum(1)
    clean = bool(total.isfinite().all())  # twenty times as fast as asking every value
    x = low = high = matrix
    n = matrix.new_full((matrix.shape[0],), float(matrix.shape[1]))
    if not clean:
        finite = matrix.isfinite()
        x, n = torch.where(finite, matrix, 0.0), finite.sum(1).double()
        low, high = torch.where(finite, x, torch.inf), torch.where(finite, x, -torch.inf)
        total = x.sum(1)
    mean = total / n
    d = x - mean[:, None]
    if not clean:
        d = torch.where(finite, d, 0.0)
    scale = d.abs().amax(1).clamp_min_(torch.finfo(torch.float64).tiny)  # keeps the eighth power in range
    d = d / scale[:, None]
    d2 = d * d
    d4 = d2 * d2
    m2 = d2.sum(1) / n
    m = {3: (d2 * d).sum(1) / n, 4: d4.sum(1) / n, 5: (d4 * d).sum(1) / n, 6: (d4 * d2).sum(1) / n}
    m[7], m[8] = (d4 * d2 * d).sum(1) / n, (d4 * d4).sum(1) / n
    # Deviations that are rounding of the mean are no spread: a constant row has no shape.
    spread = torch.where(m2.sqrt() * scale > 1e-15 * mean.abs(), m2, torch.nan)
    z = [
        torch.ones_like(m2),
        torch.zeros_like(m2),
        torch.ones_like(m2),
        *(m[k] / spread ** (k / 2) for k in range(3, 9)),
    ]
    g, b = z[3], z[4]
    root = n.sqrt()
    zeros = (matrix == 0).sum(1).double() / n
    nonfinite = 1 - n / matrix.shape[1]
    unseen = 1 - _UNSEEN ** (1 / n)
    value = {
        "mean": mean,
        "variance": m2 * scale * scale,
        "skewness": g,
        "excess_kurtosis": b - 3,
        "min": low.amin(1),
        "max": high.amax(1),
        "zeros": zeros,
        "nonfinite": nonfinite,
    }
    error = {
        "mean": m2.sqrt() * scale / root,
        "variance": _sd([-1.0, 0.0, 1.0], z) * m2 * scale * scale / root,
        "skewness": _sd([0.5 * g, -3.0, -1.5 * g, 1.0], z) / root,
        "excess_kurtosis": _sd([b, -4 * g, -2 * b, 0.0, 1.0], z) / root,
        "min": unseen,
        "max": unseen,
        "zeros": _share_error(zeros, n),
        "nonfinite": _share_error(nonfinite, torch.full_like(n, matrix.shape[1])),
    }
    nothing = n == 0
    if bool(nothing.any()):
        value = {k: v if k == "nonfinite" else torch.where(nothing, torch.nan, v) for k, v in value.items()}
    return value, error


def _sd(polynomial: Sequence[float | Tensor], z: Sequence[Tensor]) -> Tensor:
    """Standard deviation of a polynomial in z whose mean is zero, from the moments of z."""
    square = torch.zeros_like(z[0])
    for i, a in enumerate(polynomial):
        for j, c in enumerate(polynomial):
            square = square + a * c * z[i + j]
    return square.clamp_min(0).sqrt()


def _share_error(share: Tensor, n: Tensor) -> Tensor:
    """How far the 95 % Wilson interval of a share seen in n draws reaches from that share."""
    z2 = 1.959964**2
    half = math.sqrt(z2) / (1 + z2 / n) * (share * (1 - share) / n + z2 / (4 * n * n)).sqrt()
    return half + ((share + z2 / (2 * n)) / (1 + z2 / n) - share).abs()


def _channel_moments(samples: Sequence[Sample]) -> dict[str, _Channels]:
    """Mean and variance of each channel, with errors, from the sampled values in it; NaN where there are none."""
    result: dict[str, _Channels] = {name: ([None] * len(samples), [None] * len(samples)) for name in _SAVED}
    groups: dict[tuple[int, bool], list[int]] = {}
    for row, sample in enumerate(samples):
        if sample.channel is not None:
            groups.setdefault((id(sample.channel), sample.complete), []).append(row)
    for members in groups.values():
        channel, channels = samples[members[0]].channel, samples[members[0]].channels
        assert channel is not None
        for rows, matrix in stacked([samples[row] for row in members]):
            complete = samples[members[rows[0]]].complete
            found = _by_channel(matrix, channel.to(matrix.device), channels, complete)
            for name, (value, error) in found.items():
                for row, one, its_error in zip(rows, value.cpu().numpy(), error.cpu().numpy(), strict=True):
                    result[name][0][members[row]] = one
                    if not complete:
                        result[name][1][members[row]] = its_error
    return result


def _by_channel(matrix: Tensor, channel: Tensor, channels: int, complete: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """``[R, C]`` mean and variance of ``[R, n]`` values by channel with errors, non-finite values left out.

    Of a sample the variance is an estimate of the channel's, so divided by n - 1; NaN where too few values were seen.
    """
    values = matrix.T
    zero = values.new_zeros((channels, values.shape[1]))
    if bool(matrix.sum().isfinite()):
        weight: Tensor | float = 1.0
        count = torch.bincount(channel, minlength=channels).double()[:, None]
    else:
        finite = values.isfinite()
        values, weight = torch.where(finite, values, 0.0), finite.double()
        count = zero.index_add(0, channel, finite.double())
    mean = zero.index_add(0, channel, values) / count
    square = ((values - torch.nan_to_num(mean).index_select(0, channel)) * weight).square_()
    variance = zero.index_add(0, channel, square) / count
    fourth = zero.index_add(0, channel, square.square_()) / count
    mean_error = (variance / count).sqrt()
    variance_error = ((fourth - variance.square()).clamp_min_(0) / count).sqrt()
    if not complete:
        known = torch.where(count >= _LOOKS, torch.ones_like(count), torch.nan)
        mean, variance = mean * known, variance * known * count / (count - 1)
    return {"mean": (mean.T, mean_error.T), "variance": (variance.T, variance_error.T)}
