"""What a loader puts together in a batch."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp
from torch import Tensor

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.hooks.tensors import tensors_in
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.pitfalls.registry import RATE, pitfall
from bnprobe.testing.properties.broken import Broken

__all__ = ["Mixing", "batches_are_exchangeable", "batches_are_reshuffled"]

_Codes = NDArray[np.int64]
# How pure the batches of the alternatives are: from nearly one class each to somewhat clumped.
_CONCENTRATIONS = (0.03, 0.3, 3.0, 30.0)


@dataclass(frozen=True)
class Mixing:
    """How classes spread over batches.

    Attributes:
        log_evidence: natural logarithm of the evidence against a random order; a random order exceeds log(1 / rate)
            with probability at most ``rate``.
        dispersion: chi-squared of the table of batches and classes over its degrees of freedom: 1 if mixed.
        correlation: ICC of membership in a class, the share of its variance that lies between batches; of a unit that
            tells the classes apart the running variance misses so much.
        batches: how many were looked at.
    """

    log_evidence: float
    dispersion: float
    correlation: float
    batches: int


@pitfall("loader")
def batches_are_exchangeable(
    loader: Iterable[Any],
    by: Callable[[Any], Tensor] | None = None,
    *,
    batches: int | None = None,
    rate: float = RATE,
) -> Mixing:
    r"""A loader puts samples together at random: no batch has more of one class than chance gives it.

    Where batches are of one class or one domain, or from a small shuffle buffer over sorted data, running statistics
    miss what lies between batches (:func:`sorted_batches`), and evaluation does not fit training. Broken by data
    sorted by class or source and not shuffled, by a shuffle buffer that is small beside the data, by a batch for each
    domain.

    Null law: given which samples an epoch has, all orders are equally likely, and so each batch's counts of classes,
    given what is left of the epoch, have the multivariate hypergeometric distribution. The evidence is the product over
    batches of the likelihood ratio of clumped batches (Dirichlet-multinomial, a mixture of four concentrations) to
    that. Its mean in random order is at most 1, so by Markov's inequality it exceeds 1 / rate with probability at most
    ``rate``, for any classes and sizes of batches. Batches that are more alike than chance (stratified) pass.

    Args:
        loader: yields batches; one epoch of it is used.
        by: batch -> one number a sample. Integers are classes, other numbers are cut into four at the quartiles.
            Default: the second part of the batch (or ``labels``, ``label``, ``targets``, ``target``, ``y`` of a
            mapping) where it has one number a sample, else the mean of each sample's first tensor.
        batches: at most so many of the epoch; default all.
        rate: how often chance alone may fail a loader that mixes.

    Returns:
        The evidence, and how large the effect is.

    Raises:
        LawBrokenError: batches are clumped.
        NotMeasuredError: there are not two batches.
        ArgumentError: ``by`` does not give one number a sample.
    """
    values = [_numbers(batch, by) for batch in itertools.islice(loader, batches)]
    return _judge(_classes(values), "class" if _are_classes(values) else "quarter of the values", rate)


@pitfall("loader")
def batches_are_reshuffled(
    loader: Iterable[Any],
    key: Callable[[Any], Sequence[Any]] | None = None,
    *,
    rate: float = RATE,
) -> Mixing:
    r"""A loader puts other samples together in each epoch: those that shared a batch do so again only by chance.

    Where the batches are the same in every epoch, training ends at the optimum of that partition
    (:func:`fixed_partition`). Broken by ``shuffle=False``, by a sampler whose generator is seeded anew in each epoch
    (``DistributedSampler`` without ``set_epoch``), by data that are shuffled once and stored.

    Null law: that of :func:`batches_are_exchangeable`, with the batch that a sample was in before as its class.

    Args:
        loader: yields batches; two epochs of it are used.
        key: batch -> one hashable name a sample, the same in both epochs; default the bytes of the sample's first
            tensor, which augmentation changes.
        rate: how often chance alone may fail a loader that shuffles.

    Returns:
        The evidence, and how large the effect is.

    Raises:
        LawBrokenError: batches return.
        NotMeasuredError: samples do not return, or there are not two batches.
    """
    first, second = ([list((key or _bytes)(batch)) for batch in loader] for _ in range(2))
    home: dict[Any, int] = {}
    for number, names in enumerate(first):
        for name in names:
            home.setdefault(name, number)
    seen = [name in home for names in second for name in names]
    if not seen or sum(seen) < len(seen) / 2:
        raise NotMeasuredError("fewer than half of the samples are in both epochs; key= says how to know them again")
    codes = [np.asarray([home.get(name, -1) for name in names], np.int64) for names in second]
    return _judge([one + 1 for one in codes], "batch of the epoch before", rate)


def _judge(codes: list[_Codes], what: str, rate: float) -> Mixing:
    if len(codes) < 2:
        raise NotMeasuredError(f"there must be two batches at least; got {len(codes)}")
    width = max(int(one.max(initial=0)) for one in codes) + 1
    table = np.stack([np.bincount(one, minlength=width) for one in codes])
    table = table[:, table.sum(0) > 0]
    found = _mixing(table)
    if found.log_evidence <= -math.log(rate):
        return found
    pure = (table.max(1) / table.sum(1).clip(1)).mean()
    raise Broken(
        f"samples of the same {what} come together: the commonest one is {pure:.0%} of a batch on average, "
        f"{table.sum(0).max() / table.sum():.0%} of the epoch\n"
        f"misfit: dispersion {found.dispersion:.3g} where mixed batches have 1, ICC {found.correlation:.3g}; evidence "
        f"10^{found.log_evidence / math.log(10):.1f}, tolerance 10^{-math.log10(rate):.1f}: exceeded with probability "
        f"{rate:.1g} at most where all orders are equally likely (Markov), {len(table)} batches"
    )


def _mixing(table: NDArray[np.int64]) -> Mixing:
    """From the numbers of samples, ``[batches, classes]``."""
    sizes, totals = table.sum(1, keepdims=True), table.sum(0, keepdims=True)
    expected = sizes * totals / table.sum()
    freedom = max((len(table) - 1) * (table.shape[1] - 1), 1)
    dispersion = float(((table - expected) ** 2 / np.maximum(expected, 1e-300)).sum() / freedom)
    typical = float((sizes**2).sum() / sizes.sum())
    correlation = min(max((dispersion - 1) / max(typical - 1, 1), 0.0), 1.0)
    return Mixing(_log_evidence(table), dispersion, correlation, len(table))


def _log_evidence(table: NDArray[np.int64]) -> float:
    """Of a mixture of alternatives; each is a product over batches, given what is left."""
    left = table[::-1].cumsum(0)[::-1]  # of the epoch, before each batch
    sizes, pools = table.sum(1), left.sum(1)
    null = (_log_choose(left, table)).sum(1) - _log_choose(pools, sizes)
    ways = gammaln(sizes + 1) - gammaln(table + 1).sum(1)
    logs = []
    for concentration in _CONCENTRATIONS:
        prior = np.where(left > 0, concentration * left / np.maximum(pools, 1)[:, None], 1.0)  # 1: never drawn again
        gain = np.where(left > 0, gammaln(table + prior) - gammaln(prior), 0.0).sum(1)
        clumped = ways + gain + gammaln(concentration) - gammaln(concentration + sizes)
        logs.append(float((clumped - null)[sizes > 0].sum()))
    return float(logsumexp(logs) - math.log(len(logs)))


def _log_choose(n: NDArray[np.int64], k: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def _numbers(batch: Any, by: Callable[[Any], Tensor] | None) -> Tensor:
    """One a sample."""
    found = by(batch) if by is not None else _usual(batch)
    found = wide(torch.as_tensor(found)) if torch.as_tensor(found).is_floating_point() else torch.as_tensor(found).cpu()
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1:
        raise ArgumentError(f"by must give one number a sample; got a tensor of shape {tuple(found.shape)}")
    return found


def _usual(batch: Any) -> Tensor:
    labels = None
    if isinstance(batch, Mapping):
        labels = next((batch[name] for name in ("labels", "label", "targets", "target", "y") if name in batch), None)
    elif isinstance(batch, tuple | list) and len(batch) > 1:
        labels = batch[1]
    if isinstance(labels, Tensor) and (labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)):
        return labels
    first = _first(batch)
    return wide(first).reshape(len(first), -1).mean(1)


def _first(batch: Any) -> Tensor:
    for _, tensor in tensors_in(batch):
        if tensor.ndim:
            return tensor
    raise ArgumentError(
        f"a batch of the loader holds no tensor of samples: {type(batch).__name__}; by= or key= names them"
    )


def _bytes(batch: Any) -> list[bytes]:
    return [one.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for one in _first(batch).detach().cpu()]


def _are_classes(values: list[Tensor]) -> bool:
    return all(not one.is_floating_point() for one in values)


def _classes(values: list[Tensor]) -> list[_Codes]:
    if not values:
        return []
    together = torch.cat([one.to(torch.float64) for one in values]).numpy()
    if _are_classes(values):
        codes = np.unique(together, return_inverse=True)[1]
    else:
        codes = np.searchsorted(np.quantile(together, (0.25, 0.5, 0.75)), together)
    ends = np.cumsum([len(one) for one in values])[:-1]
    return [np.asarray(one, np.int64) for one in np.split(codes.reshape(-1), ends)]
