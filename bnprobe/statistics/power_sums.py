"""Central moments up to the fourth that merge exactly (Chan, Golub & LeVeque 1979; Pebay 2008)."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["PowerSums", "merge_power_sums", "power_sums"]


class PowerSums(NamedTuple):
    """Sums over the finite values of each channel, ``[C]`` float64 each.

    Attributes:
        total: number of values, finite or not.
        n: number of finite values.
        mean: their mean (0 where there are none).
        m2, m3, m4: sums of powers of deviations from the mean.
        low, high: smallest and largest.
        zeros: number of zeros.
    """

    total: Tensor
    n: Tensor
    mean: Tensor
    m2: Tensor
    m3: Tensor
    m4: Tensor
    low: Tensor
    high: Tensor
    zeros: Tensor

    def moments(self) -> dict[str, NDArray[np.float64]]:
        """The statistics, ``[C]`` each; NaN where a channel has no finite value, or no spread for the shape."""
        host = PowerSums(*(part.cpu() for part in self))
        n = torch.where(host.n > 0, host.n, torch.nan)
        variance = host.m2 / n
        spread = torch.where(host.m2 > 0, variance, torch.nan)
        result = {
            "mean": host.mean + 0 * n,
            "variance": variance,
            "skewness": host.m3 / n / spread**1.5,
            "excess_kurtosis": host.m4 / n / spread**2 - 3,
            "min": host.low + 0 * n,
            "max": host.high + 0 * n,
            "zeros": host.zeros / n,
            "nonfinite": 1 - host.n / host.total,
        }
        return {name: value.numpy() for name, value in result.items()}

    def pooled(self) -> "PowerSums":
        """All channels as one, ``[1]`` each."""
        sums = self
        while (length := len(sums.n)) > 1:  # a tree of merges: rounding grows with its depth only
            half, odd = length // 2, length % 2
            left, right = (PowerSums(*(part[k * half : (k + 1) * half] for part in sums)) for k in (0, 1))
            merged = merge_power_sums(left, right)
            sums = PowerSums(*(torch.cat([m, part[length - odd :]]) for m, part in zip(merged, sums, strict=True)))
        return sums


def power_sums(values: Tensor) -> PowerSums:
    """Sums of ``[C, M]`` values by channel, by two passes in float64."""
    if values.device.type == "mps":  # has no float64
        values = values.cpu()
    x = values.double()
    finite = x.isfinite()
    n = finite.sum(1).double()
    x = torch.where(finite, x, 0.0)
    mean = x.sum(1) / n.clamp_min(1)
    d = torch.where(finite, x - mean[:, None], 0.0)
    d2 = d * d
    return PowerSums(
        total=torch.full_like(n, values.shape[1]),
        n=n,
        mean=mean,
        m2=d2.sum(1),
        m3=(d2 * d).sum(1),
        m4=(d2 * d2).sum(1),
        low=torch.where(finite, x, torch.inf).amin(1),
        high=torch.where(finite, x, -torch.inf).amax(1),
        zeros=((x == 0) & finite).sum(1).double(),
    )


def merge_power_sums(a: PowerSums, b: PowerSums) -> PowerSums:
    """Sums over both, channel by channel (Pebay 2008, equations 2.1, 3.1 for p = 2, 3, 4)."""
    n = a.n + b.n
    safe = n.clamp_min(1)
    delta = (b.mean - a.mean) * ((a.n > 0) & (b.n > 0))
    mean = torch.where(a.n > 0, a.mean, b.mean) + delta * b.n / safe
    step = delta / safe
    m2 = a.m2 + b.m2 + delta * step * a.n * b.n
    m3 = a.m3 + b.m3 + delta * step**2 * a.n * b.n * (a.n - b.n) + 3 * step * (a.n * b.m2 - b.n * a.m2)
    m4 = (
        a.m4
        + b.m4
        + delta * step**3 * a.n * b.n * (a.n**2 - a.n * b.n + b.n**2)
        + 6 * step**2 * (a.n**2 * b.m2 + b.n**2 * a.m2)
        + 4 * step * (a.n * b.m3 - b.n * a.m3)
    )
    low, high = torch.minimum(a.low, b.low), torch.maximum(a.high, b.high)
    return PowerSums(a.total + b.total, n, mean, m2, m3, m4, low, high, a.zeros + b.zeros)
