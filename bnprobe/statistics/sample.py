"""A random sample of a tensor's values that merges: one sample serves all statistics of a tensor.

Positions are drawn uniformly without replacement from all positions of the tensor, by a generator of our own. A
*bottom-k* scheme makes samples mergeable: every value of the population owns a uniform random key and the sample is
the k values with the smallest keys. The k smallest of the union of two samples are then a uniform sample of the
union of the two populations, whatever the order of merging (Cohen & Kaplan 2007, "Summarizing data using bottom-k
sketches"). Keys are made only when samples are merged.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Grouping", "Plan", "Population", "Sample", "Sampler", "merge_samples", "stacked"]

Taken = Tensor | NDArray[Any]

_CACHED_VALUES = 2**16
_POOL = 16
_LAYOUTS = 4096
_NUMPY = {torch.float16, torch.float32, torch.float64}


class Grouping(NamedTuple):
    """Sampled values put together by channel: ``values[order]`` holds the channels ``present`` one after the other.

    Attributes:
        order: ``[n]`` positions in the sample.
        starts: ``[p]`` where each present channel begins in that order.
        present: ``[p]`` numbers of the channels of which there is at least one value.
        sizes: ``[p]`` how many values of each there are.
    """

    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    present: NDArray[np.intp]
    sizes: NDArray[np.intp]


@dataclass(eq=False)
class Population:
    """What a sample was drawn from.

    Attributes:
        count: number of values.
        channel: ``[n]`` channel of each value that was looked at; None for one channel.
        channels: number of channels.
        capacity: size to which merging cuts a sample down.
    """

    count: int
    channel: Tensor | None
    channels: int
    capacity: int

    def __reduce__(self) -> tuple[Any, ...]:  # to another process: no plan, no layout
        return Population, (self.count, self.channel, self.channels, self.capacity)

    def channel_on(self, device: torch.device) -> Tensor:
        """The channels on a device, without waiting for it."""
        assert self.channel is not None
        if self.channel.device != device:
            self.channel = self.channel.to(device, non_blocking=True)
        return self.channel

    @cached_property
    def grouping(self) -> Grouping:
        """The sampled values by channel."""
        assert self.channel is not None
        channel = self.channel.cpu().numpy()
        order = np.argsort(channel, kind="stable")
        present, starts, sizes = np.unique(channel[order], return_index=True, return_counts=True)
        return Grouping(order, starts, present, sizes)


@dataclass(eq=False)
class Plan(Population):
    """Which positions of tensors of one layout are looked at.

    Attributes:
        shape: of the tensors that it fits.
        positions: ``[n]`` positions in memory, ascending, on the tensors' device; None for all positions.
        dense: whether the tensor fills its memory, so that memory positions can be used.
        on_host: the same positions where numpy can take the values, which is several times as fast.
        axes: an order of the axes in which a dense tensor lies in memory without jumps; None where it already does.
    """

    shape: torch.Size
    positions: Tensor | None
    dense: bool
    on_host: NDArray[np.int64] | None = None
    axes: tuple[int, ...] | None = None

    def take(self, tensor: Tensor) -> Taken:
        """``[n]`` copy of the values at the plan's positions."""
        if self.on_host is not None:
            array = (tensor.detach() if tensor.requires_grad else tensor).numpy()
            return (array if self.axes is None else array.transpose(self.axes)).take(self.on_host, None, None, "clip")
        flat = tensor.detach()
        if not self.dense:
            return self._take_scattered(flat)
        flat = flat.view(-1) if flat.is_contiguous() else flat.as_strided((self.count,), (1,))
        return flat.clone() if self.positions is None else flat.index_select(0, self.positions)

    def _take_scattered(self, tensor: Tensor) -> Tensor:
        if self.positions is None:
            return tensor.reshape(-1).clone()
        return tensor[torch.unravel_index(self.positions, self.shape)]


class Sample:
    """Values looked at, out of a population.

    Attributes:
        taken: ``[n]`` values, in the tensor's own dtype: a tensor, or a numpy array where it came from the host.
        of: the population.
        seed: where the keys come from when they are first needed.
        keys: ``[n]`` keys, once made.
    """

    __slots__ = ("keys", "of", "seed", "taken")

    def __init__(self, taken: Taken, of: Population, seed: tuple[int, ...], keys: Tensor | None = None) -> None:
        self.taken, self.of, self.seed, self.keys = taken, of, seed, keys

    @property
    def values(self) -> Tensor:
        """``[n]`` the values as a tensor."""
        return self.taken if isinstance(self.taken, Tensor) else torch.from_numpy(self.taken)

    @property
    def nbytes(self) -> int:
        """Size of the values."""
        return int(self.taken.nbytes)

    @property
    def count(self) -> int:
        """Size of the population."""
        return self.of.count

    @property
    def channel(self) -> Tensor | None:
        """``[n]`` channel of each value; None for one channel."""
        return self.of.channel

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.of.channels

    @property
    def complete(self) -> bool:
        """Whether every value of the population is here."""
        return len(self.taken) == self.of.count

    def with_keys(self) -> Tensor:
        """The n smallest of ``count`` uniform keys, in random order: as if each value had drawn its own."""
        if self.keys is not None:
            return self.keys
        values = self.values
        # Torch's CPU generator looks at 32 bits of its seed only: they must not be the ones that all samples share.
        generator = torch.Generator("cpu").manual_seed(int(np.random.SeedSequence(self.seed).generate_state(1)[0]))
        n, uniform = values.numel(), torch.float64
        if self.complete:
            return torch.rand(n, generator=generator, dtype=uniform, device="cpu").to(values.device)
        # Order statistics of uniforms by Renyi's representation: partial sums of exponentials over their total.
        gaps = torch.empty(n, dtype=uniform, device="cpu").exponential_(generator=generator)
        rest = torch._standard_gamma(torch.tensor(float(self.count + 1 - n), dtype=uniform, device="cpu"), generator)
        sums = gaps.cumsum(0)
        keys = sums / (sums[-1] + rest)
        return keys[torch.randperm(n, generator=generator, device="cpu")].to(values.device)


class Sampler:
    """Draws plans with a generator of its own, so that no global random stream moves.

    Plans of a layout go round in a pool, one a :meth:`turn`: the positions are independent of the data either way, and
    drawing them costs more than using them. Tensors that are merged come from different turns, so that they are looked
    at in different places.

    Args:
        size: values looked at in a tensor. 2048 bounds a quantile's rank error by 0.030 at 95 % (DKW); ours: with half
            as many a step of ResNet-20 costs 3 % less, and errors of heavy-tailed variances begin to be short.
        seed: of the generator.
    """

    def __init__(self, size: int = 2048, seed: int = 0) -> None:
        self.size = size
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._seed = seed
        self._layouts: dict[tuple[object, ...], int] = {}
        self._names = itertools.count()
        self._plans: list[dict[int, Plan]] = [{} for _ in range(_POOL)]
        self._drawn = self._turn = self._oldest = 0
        self._now = self._plans[0]

    def turn(self) -> None:
        """Another forward pass begins: look at other places, until the pool begins anew."""
        self._turn = (self._turn + 1) % _POOL
        self._now = self._plans[self._turn]

    def renew(self) -> None:
        """Forget one turn's plans, the oldest: sooner or later every tensor is looked at in places that are new."""
        self._plans[self._oldest].clear()
        self._oldest = (self._oldest + 1) % _POOL

    def layout(self, tensor: Tensor, axis: int | None) -> int:
        """A name for how a tensor lies in memory and where its channels are; never given to another layout."""
        key = (tensor.shape, tensor.stride(), axis, tensor.dtype, tensor.device)
        name = self._layouts.get(key)
        if name is None:
            if len(self._layouts) >= _LAYOUTS:  # lengths that vary for ever
                self._layouts.clear()
            name = self._layouts[key] = next(self._names)
        return name

    def sample(self, tensor: Tensor, axis: int | None, layout: int | None = None) -> Sample:
        """A sample of ``tensor``; the whole of it where it has at most twice ``size`` values.

        ``layout`` is what :meth:`layout` said of a tensor like this one; asked again where it is not given.
        """
        name = self.layout(tensor, axis) if layout is None else layout
        plan = self._now.get(name)
        if plan is None:
            plan = self._now[name] = self._draw(tensor, axis)
        self._drawn += 1
        return Sample(plan.take(tensor), plan, (self._seed, self._drawn))

    def _draw(self, tensor: Tensor, axis: int | None) -> Plan:
        stride, count = tensor.stride(), tensor.numel()
        dense = _is_dense(tensor.shape, stride)
        positions = None
        if count > 2 * self.size:
            positions = _distinct(count, self.size, self._generator)
        channel = None if axis is None else _channel(tensor.shape, stride if dense else None, axis, positions)
        plan = Plan(count, channel, 1 if axis is None else tensor.shape[axis], self.size, tensor.shape, None, dense)
        if dense and tensor.device.type == "cpu" and tensor.dtype in _NUMPY:
            plan.on_host = np.arange(count) if positions is None else positions.numpy()
            axes = tuple(sorted(range(len(stride)), key=lambda i: (-stride[i], -tensor.shape[i])))
            plan.axes = None if tensor.is_contiguous() else axes
        if positions is not None:
            if tensor.device.type == "cuda":  # from pinned memory the copy does not wait
                positions = positions.pin_memory()
            plan.positions = positions.to(tensor.device, non_blocking=True)
        return plan


def merge_samples(a: Sample, b: Sample) -> Sample:
    """A uniform sample of the union of two populations; commutative and associative.

    Complete samples stay complete while together they have at most twice the capacity.
    """
    capacity = min(a.of.capacity, b.of.capacity)
    values = torch.cat([a.values, b.values])
    keys = torch.cat([a.with_keys(), b.with_keys()])
    alike = a.channel is not None and b.channel is not None and a.channels == b.channels
    channel = torch.cat([one.of.channel_on(values.device) for one in (a, b)]) if alike else None
    count = a.count + b.count
    if count > 2 * capacity:
        # An incomplete sample holds its population's `capacity` smallest keys at least, so these are the union's.
        kept = keys.topk(capacity, largest=False, sorted=False).indices
        values, keys, channel = values[kept], keys[kept], None if channel is None else channel[kept]
    of = Population(count, channel, a.channels if alike else 1, capacity)
    return Sample(values, of, min(a.seed, b.seed), keys)


def stacked(samples: Sequence[Sample]) -> Iterator[tuple[list[int], NDArray[Any]]]:
    """Samples of equal length as rows of matrices on the host: ``(row numbers, [r, n])``, a cacheful at a time.

    Values are float32, or float64 where the tensor had it. Those on one device come in one copy.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, sample in enumerate(samples):
        taken = sample.taken
        groups.setdefault((len(taken), taken.dtype, getattr(taken, "device", None)), []).append(row)
    for (length, *_), rows in groups.items():
        # Passes over a matrix that stays in a core's cache are several times as fast; a GPU is asked once.
        on_host = isinstance(samples[rows[0]].taken, np.ndarray) or samples[rows[0]].values.device.type == "cpu"
        step = max(1, _CACHED_VALUES // max(int(str(length)), 1)) if on_host else len(rows)
        for first in range(0, len(rows), step):
            some = rows[first : first + step]
            yield some, _matrix([samples[row].taken for row in some])


def _matrix(taken: Sequence[Any]) -> NDArray[Any]:
    if isinstance(taken[0], np.ndarray):
        matrix: NDArray[Any] = np.stack(taken)
        return matrix if matrix.dtype == np.float64 else matrix.astype(np.float32, copy=False)
    tensors = torch.stack(list(taken)).cpu()
    return (tensors if tensors.dtype == torch.float64 else tensors.float()).numpy()


def _channel(shape: Sequence[int], stride: Sequence[int] | None, axis: int, positions: Tensor | None) -> Tensor:
    """``[n]`` channel at each position; they count in memory where a stride is given."""
    if positions is None:
        positions = torch.arange(torch.Size(shape).numel(), device="cpu")
    stride = stride or _contiguous_stride(shape)
    return positions.div(stride[axis], rounding_mode="floor") % shape[axis]


def _distinct(count: int, size: int, generator: torch.Generator) -> Tensor:
    """``size`` different positions below ``count``, ascending."""
    if count <= 16 * size:
        return torch.randperm(count, generator=generator, device="cpu")[:size].sort().values
    drawn = torch.empty(0, dtype=torch.int64, device="cpu")
    while drawn.numel() < size:  # collisions are rare here: one or two rounds
        more = torch.randint(count, (size - drawn.numel(),), generator=generator, device="cpu")
        drawn = torch.from_numpy(np.union1d(drawn.numpy(), more.numpy()))
    return drawn


def _is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the tensor fills a block of memory without gaps or overlaps."""
    expected = 1
    for step, length in sorted((step, length) for step, length in zip(stride, shape, strict=True) if length != 1):
        if step != expected:
            return False
        expected *= length
    return True


def _contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    stride, step = [], 1
    for length in reversed(shape):
        stride.append(step)
        step *= length
    return tuple(reversed(stride))
