"""Moments of all values that a layer is given, however they come in batches, calls and processes."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bnprobe.errors import NotMeasuredError

__all__ = ["Pool", "in_a_job", "pool_over_ranks", "smallest_over_ranks"]


class Pool:
    """Count, mean and sum of squared deviations per channel, in float64, on the device of what is added.

    Chan, Golub and LeVeque (1983): merging adds the part between batches, so the result is that of all values at once.

    Args:
        channels: how many.
        device: of the inputs.

    Attributes:
        count: values per channel.
        mean, squares: ``[C]``.
        calls: inputs that were added, those that were not finite included.
        skipped: inputs of which a channel has a moment that is not finite; they do not count.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self._device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        self.count, self.skipped, self.calls = self._zeros(()), self._zeros(()), self._zeros(())
        self.mean, self.squares = self._zeros((channels,)), self._zeros((channels,))

    def add(self, x: Tensor) -> "Pool":
        """Add an input ``[N, C, ...]`` and return a pool of it alone. Does not wait for the device."""
        own = Pool(self.mean.numel(), self._device)
        if x.dim() < 2 or x.numel() == 0:
            return own
        x = x.detach()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = (one.to(self._device, torch.float64) for one in torch.var_mean(wide, axes, correction=0))
        finite = (variance.isfinite() & mean.isfinite()).all()
        own.count = torch.where(finite, float(x.numel() // x.shape[1]), 0.0).to(self.count)
        own.mean = torch.where(finite, mean, 0.0)
        own.squares = torch.where(finite, variance, 0.0) * own.count
        own.calls, own.skipped = own.calls + 1, own.skipped + (~finite)
        self._merge(own)
        return own

    def _merge(self, other: "Pool") -> None:
        total = self.count + other.count
        delta, share = other.mean - self.mean, other.count / total.clamp(min=1)
        self.squares = self.squares + other.squares + delta.square() * self.count * share
        self.mean = self.mean + delta * share
        self.count, self.calls, self.skipped = total, self.calls + other.calls, self.skipped + other.skipped

    def variance(self) -> Tensor:
        """``[C]``, unbiased; NaN of fewer than two values."""
        return torch.where(self.count > 1, self.squares / (self.count - 1), torch.nan)

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._device)


def in_a_job() -> bool:
    """Whether this process is one of several of a job."""
    return bool(dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def pool_over_ranks(pools: Sequence[Pool], error: Exception | None) -> None:
    """Make each pool that of the values of all processes; every process calls this with the same layers.

    Args:
        pools: of this process's values, changed in place.
        error: what this process failed by: it is raised here, so that no other one waits for it.

    Raises:
        NotMeasuredError: another process has failed.
    """
    failed = int(_reduced(torch.tensor([error is not None], dtype=torch.float64)))
    if error is not None:
        raise error
    if failed:
        raise NotMeasuredError(f"{failed} of {dist.get_world_size()} processes failed; their own messages say why")
    first = [torch.cat([torch.stack([p.count, p.calls, p.skipped]), p.count * p.mean]) for p in pools]
    sums = _split(_reduced(torch.cat([one.cpu() for one in first])), first)
    second = []
    for pool, one in zip(pools, sums, strict=True):
        mean = one[3:].to(pool.mean) / one[0].clamp(min=1).item()
        second.append(pool.squares + pool.count * (pool.mean - mean).square())
        pool.mean = mean
    squares = _split(_reduced(torch.cat([one.cpu() for one in second])), second)
    for pool, one, square in zip(pools, sums, squares, strict=True):
        pool.count, pool.calls, pool.skipped = one[:3].to(pool.count).unbind()
        pool.squares = square.to(pool.squares)


def smallest_over_ranks(numbers: Sequence[float]) -> list[float]:
    """Each number's smallest over all processes."""
    return _reduced(torch.tensor(numbers, dtype=torch.float64), dist.ReduceOp.MIN).tolist()


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.split(flat, [one.numel() for one in like]))


def _reduced(values: Tensor, how: Any = None) -> Tensor:
    """Over all processes, on the host; summed unless said otherwise."""
    backend = str(dist.get_backend())
    there = values.to("cuda") if "nccl" in backend and "gloo" not in backend else values.clone()
    dist.all_reduce(there, dist.ReduceOp.SUM if how is None else how)
    return there.cpu()
