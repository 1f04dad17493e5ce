"""Loaders that put samples into minibatches well, and in the ways that batch norm suffers from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.errors import ArgumentError
from bnprobe.testing.strategies.labels import Labels

__all__ = ["ORDERS", "Loader", "loaders"]

_Order = NDArray[np.int64]
_SEPARATION = 2.0  # distance between the means of neighbouring classes, in standard deviations within one


def _shuffled(rng: np.random.Generator, y: _Order, _batch: int) -> _Order:
    return rng.permutation(len(y))


def _class_sorted(_rng: np.random.Generator, y: _Order, _batch: int) -> _Order:
    return np.argsort(y, kind="stable")


def _buffered(rng: np.random.Generator, y: _Order, batch: int) -> _Order:
    """A shuffle buffer of two batches over class-sorted data, as streaming loaders have."""
    waiting, order = list(np.argsort(y, kind="stable")), []
    buffer = [waiting.pop(0) for _ in range(min(2 * batch, len(waiting)))]
    while buffer:
        order.append(buffer.pop(int(rng.integers(len(buffer)))))
        if waiting:
            buffer.append(waiting.pop(0))
    return np.array(order, dtype=np.int64)


def _domain_alternating(rng: np.random.Generator, y: _Order, batch: int) -> _Order:
    """Each minibatch from one class, classes taking turns; what does not fill a batch comes last."""
    queues = [list(rng.permutation(np.flatnonzero(y == label))) for label in np.unique(y)]
    order: list[int] = []
    while any(len(queue) >= batch for queue in queues):
        for queue in queues:
            if len(queue) >= batch:
                order += [queue.pop() for _ in range(batch)]
    return np.array([*order, *(one for queue in queues for one in queue)], dtype=np.int64)


# The shuffled one draws anew every epoch, as does the buffer; the others come in the same order for ever.
ORDERS: dict[str, Callable[[np.random.Generator, _Order, int], _Order]] = {
    "shuffled": _shuffled,
    "class_sorted": _class_sorted,
    "buffered": _buffered,
    "domain_alternating": _domain_alternating,
}


@dataclass(frozen=True)
class Loader:
    """A re-iterable loader of ``(x, y)``, as a recipe and as the thing itself.

    A sample of class k is Gaussian around 2 k in every feature. Each iteration is an epoch of its own.

    Attributes:
        labels: of the data set.
        batch: samples of a minibatch; may be 1.
        order: a key of :data:`ORDERS`.
        features: shape of one sample.
        drop_last: whether an incomplete last minibatch is left out.
        seed: of data and orders.

    Raises:
        ArgumentError: there is no such order, or the minibatch has no sample.
    """

    labels: Labels
    batch: int = 4
    order: str = "shuffled"
    features: tuple[int, ...] = (3,)
    drop_last: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in ORDERS or self.batch < 1:
            raise ArgumentError(
                f"order must be one of {', '.join(ORDERS)} and batch at least 1; got {self.order!r}, {self.batch!r}"
            )
        object.__setattr__(self, "_epochs", np.random.SeedSequence(self.seed))

    def data(self) -> tuple[Tensor, Tensor]:
        """The whole data set, in its own order."""
        y = self.labels.tensor()
        noise = np.random.default_rng(self.seed).normal(size=(len(y), *self.features))
        means = _SEPARATION * y.numpy().reshape(-1, *[1] * len(self.features))
        return torch.from_numpy((means + noise).astype(np.float32)), y

    def __len__(self) -> int:
        """Minibatches of an epoch."""
        n = self.labels.samples
        return n // self.batch if self.drop_last else -(-n // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch."""
        x, y = self.data()
        (sequence,) = self._epochs.spawn(1)  # type: ignore[attr-defined] # set above, as the dataclass is frozen
        order = torch.from_numpy(ORDERS[self.order](np.random.default_rng(sequence), y.numpy(), self.batch))
        for i in range(len(self)):
            chosen = order[i * self.batch : (i + 1) * self.batch]
            yield x[chosen], y[chosen]


def loaders(
    orders: tuple[str, ...] = tuple(ORDERS), *, batch: tuple[int, int] = (1, 8), samples: tuple[int, int] = (8, 64)
) -> st.SearchStrategy[Loader]:
    """Loaders, which print as their recipe; shrinks to a shuffled one of few samples and batches of one.

    Args:
        orders: keys of :data:`ORDERS`.
        batch: least and largest minibatch.
        samples: least and largest data set.
    """
    labels = st.builds(Labels, st.integers(*samples), st.integers(2, 4))
    return st.builds(
        Loader, labels, st.integers(*batch), st.sampled_from(orders), drop_last=st.booleans(), seed=st.integers(0, 99)
    )
