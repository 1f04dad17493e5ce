"""Loaders that put samples together in every way that batch norm meets, as recipes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from bnprobe.errors import ArgumentError

__all__ = ["ORDERS", "Loader", "loaders"]

_Order = Callable[[Tensor, int, torch.Generator], Tensor]


def _fixed(labels: Tensor, _: int, __: torch.Generator) -> Tensor:
    """As the data lie, in every epoch."""
    return torch.arange(len(labels))


def _shuffled(labels: Tensor, _: int, random: torch.Generator) -> Tensor:
    return torch.randperm(len(labels), generator=random)


def _sorted(labels: Tensor, _: int, __: torch.Generator) -> Tensor:
    """By class."""
    return labels.argsort(stable=True)


def _buffered(labels: Tensor, batch: int, random: torch.Generator) -> Tensor:
    """Sorted data through a shuffle buffer of two batches, as streaming data sets have it."""
    waiting, order = [], []
    for one in _sorted(labels, batch, random).tolist():
        waiting.append(one)
        if len(waiting) > 2 * batch:
            order.append(waiting.pop(int(torch.randint(len(waiting), (), generator=random))))
    rest = torch.randperm(len(waiting), generator=random)
    return torch.tensor([*order, *(waiting[i] for i in rest)], dtype=torch.long)


def _alternating(labels: Tensor, batch: int, random: torch.Generator) -> Tensor:
    """Each class is a domain, shuffled by itself; whole batches of them take turns."""
    parts: list[Tensor] = []
    for label in torch.unique(labels):
        own = (labels == label).nonzero()[:, 0]
        parts.append(own[torch.randperm(len(own), generator=random)])
    turns = [list(torch.split(part, batch)) for part in parts]
    order = [turn[i] for i in range(max(map(len, turns))) for turn in turns if i < len(turn)]
    return torch.cat(sorted(order, key=lambda one: len(one) < batch))  # what fills no batch comes last


ORDERS: dict[str, _Order] = {
    "fixed": _fixed,
    "shuffled": _shuffled,
    "sorted": _sorted,
    "buffered": _buffered,
    "alternating": _alternating,
}


@dataclass(frozen=True, repr=False)
class Loader:
    """What a loader is made of; its ``repr`` is an expression that makes it again.

    The data are Gaussian, of variance 1 around the mean of their class; means are the class's number times
    ``distance``. Labels repeat 0, 1, ..., so that the data themselves are mixed.

    Attributes:
        order: in which samples come, a key of :data:`ORDERS`.
        samples: in an epoch.
        batch_size: of all batches but the last, which may have fewer.
        classes: or domains.
        shape: of a sample, channels first.
        distance: of neighbouring classes' means.
        drop_last: whether an incomplete last batch is left out.
        seed: of data and order.

    Raises:
        ArgumentError: an order that there is not, or a number below 1.
    """

    order: str = "shuffled"
    samples: int = 64
    batch_size: int = 8
    classes: int = 2
    shape: tuple[int, ...] = (3,)
    distance: float = 2.0
    drop_last: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ArgumentError(f"order must be one of {', '.join(ORDERS)}; got {self.order!r}")
        if min(self.samples, self.batch_size, self.classes) < 1:
            raise ArgumentError(
                f"samples, batch_size and classes must be at least 1; got {self.samples}, {self.batch_size} and "
                f"{self.classes}"
            )

    @property
    def labels(self) -> Tensor:
        """``[N]``, in the order of the data."""
        return torch.arange(self.samples) % self.classes

    @property
    def data(self) -> Tensor:
        """``[N, *shape]``."""
        random = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.samples, *self.shape, generator=random)
        return noise + self.distance * self.labels.reshape(-1, *[1] * len(self.shape))

    def loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The loader; its epochs differ where the order is random. It draws from no global stream but its own."""
        own = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            TensorDataset(self.data, self.labels),
            batch_size=self.batch_size,
            sampler=_Sampler(self),
            drop_last=self.drop_last,
            generator=own,
        )

    def __repr__(self) -> str:
        """An expression, without what is at its default."""
        told = [repr(self.order)]
        told += [
            f"{name}={getattr(self, name)!r}"
            for name, field in self.__dataclass_fields__.items()
            if name != "order" and getattr(self, name) != field.default
        ]
        return f"Loader({', '.join(told)})"


class _Sampler(Sampler[int]):
    """One order an epoch."""

    def __init__(self, recipe: Loader) -> None:
        self._recipe, self._random = recipe, torch.Generator().manual_seed(recipe.seed + 1)

    def __iter__(self) -> Iterator[int]:
        recipe = self._recipe
        order: list[Any] = ORDERS[recipe.order](recipe.labels, recipe.batch_size, self._random).tolist()
        return iter(order)

    def __len__(self) -> int:
        return self._recipe.samples


@st.composite
def loaders(
    draw: st.DrawFn,
    orders: Sequence[str] = tuple(ORDERS),
    *,
    samples: tuple[int, int] = (4, 64),
    batch_sizes: tuple[int, int] = (1, 16),
    classes: tuple[int, int] = (2, 4),
    shape: tuple[int, ...] = (3,),
) -> Loader:
    """Recipes of loaders, tiny batches and incomplete last ones among them; shrinks to few samples in fixed order.

    Args:
        draw: passed by hypothesis.
        orders: keys of :data:`ORDERS`.
        samples: least and largest number.
        batch_sizes: least and largest.
        classes: least and largest number.
        shape: of a sample.
    """
    order = draw(st.sampled_from(orders))
    count = draw(st.integers(*samples))
    size = draw(st.integers(batch_sizes[0], min(batch_sizes[1], max(count, batch_sizes[0]))))
    drop_last = draw(st.booleans()) if size <= count else False
    return Loader(
        order, count, size, draw(st.integers(*classes)), shape, drop_last=drop_last, seed=draw(st.integers(0, 99))
    )
