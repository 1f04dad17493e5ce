"""How many independent values a batch is worth, and whether batches are random samples of the data.

Both are read from the moments of each batch where samples do not influence one another (evaluation mode, pooled
statistics). The mean of a batch of n independent values has the variance sigma^2 / n: the n that explains how much
batch means differ is the *effective* number of values. Channels are not independent, so statistics are sums over
channels, and their chance is found by permuting samples over batches.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.contrasts import chance
from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.tensors import tensors_in
from bnprobe.measures.evidence.moments import LayerMoments
from bnprobe.measures.evidence.patient import Patient

__all__ = ["Units", "effective_values", "grouping", "measure"]

Array = NDArray[np.float64]
RESAMPLES = 1000
MOST_CHANNELS = 64  # of a permutation test; ours: more cost time, and channels are correlated anyway


def measure(patient: Patient) -> list[Fact]:
    """Facts of each batch norm that two batches or more reach, and of the labels.

    ``n_eff_values`` with a bootstrap interval over batches, ``values_per_batch``; where samples are rows of the layer's
    input (first and deepest layer) ``composition_ratio`` with the p-value of a permutation of samples over batches,
    ``composition_ratio_limit`` (what chance alone reaches in one of a hundred), ``n_eff_samples``,
    ``samples_per_batch`` and ``between_sample_share`` (of the variance, how much lies between samples).
    ``label_purity`` and ``label_purity_random``: how often two samples of a batch have the same label.
    """
    if not patient.batch_norms:
        raise NotMeasuredError("the model has no batch normalization")
    if len(patient.batches) < 2:
        raise NotMeasuredError("needs two batches or more (sixteen to have power); one was given")
    facts: list[Fact] = []
    for name, layer in patient.moments.items():
        facts += _values(name, layer, patient.seed)
    for name in _free_of_mates(patient):
        facts += _composition(patient, name)
    return [*facts, *_labels(patient)]


def effective_values(means: Array, counts: Array, variances: Array, seed: int) -> tuple[float, float, float]:
    """Effective number of independent values in a batch of mean size, and its 95 % interval.

    C / sum over channels of (variance of batch means / total variance). Shares are averaged, not effective numbers: a
    channel that hardly varies between batches must not make up for one that varies much.

    Args:
        means: ``[B, C]`` of each batch.
        counts: ``[B]`` values a channel.
        variances: ``[B, C]``, biased.
        seed: of the bootstrap over batches.
    """
    batches = counts.size
    center = np.average(means, axis=0, weights=counts)
    total = np.average(variances + (means - center) ** 2, axis=0, weights=counts)
    alive = total > 1e-12 * (total + center**2)
    if batches < 2 or not alive.any():
        return float("nan"), float("nan"), float("nan")
    off = (means - center)[:, alive] / np.sqrt(total[alive])
    gram = off @ off.T
    own = counts * np.diag(gram)

    def values(weights: Array) -> Array:
        """``[R]`` for weights ``[R, B]`` of batches; a mean of n values varies by 1 / n, so n weighs its square."""
        weighted = weights * counts
        size = weighted.sum(1)
        spread = weights @ own - np.einsum("rb,bc,rc->r", weighted, gram, weighted) / size
        mean_size = size / batches
        with np.errstate(divide="ignore"):
            return np.asarray(alive.sum() * (batches - 1) * mean_size / np.maximum(spread, 0.0))

    found = float(values(np.ones((1, batches)))[0])
    draws = np.random.default_rng(seed).multinomial(batches, np.full(batches, 1 / batches), RESAMPLES)
    # A resample's sum of squares is (B - 1) / B of what it stands for: some batches are drawn twice.
    low, high = np.quantile(values(draws.astype(np.float64)) * (batches - 1) / batches, (0.025, 0.975))
    return found, float(low), float(high)


@dataclass(frozen=True)
class Units:
    """What is permuted over batches: samples; or, where rows are nodes, graphs.

    Attributes:
        sums: ``[U, C]`` over each unit's rows, centred, each channel in its standard deviations.
        weights: ``[U]`` how many rows each has.
        sizes: ``[B]`` how many units each batch has, in the order of ``sums``.
    """

    sums: Array
    weights: Array
    sizes: NDArray[np.int64]

    def between(self, order: NDArray[np.int64] | None = None) -> float:
        """Sum over batches of rows times squared distance of the batch mean from the centre, over channels."""
        sums, weights = (self.sums, self.weights) if order is None else (self.sums[order], self.weights[order])
        starts = np.concatenate(([0], np.cumsum(self.sizes)[:-1]))
        totals = np.add.reduceat(sums, starts, axis=0)
        return float(((totals**2).sum(1) / np.add.reduceat(weights, starts)).sum())


def grouping(units: Units, seed: int) -> tuple[float, float, float] | None:
    """By how much batch means vary more than those of random batches; its p-value; the ratio that chance reaches."""
    observed = units.between()
    count = units.weights.size
    found = chance(observed, lambda draw: units.between(draw.permutation(count)), seed)
    if not found.mean > 0:
        return None
    return observed / found.mean, found.p_value, found.high / found.mean


def _values(name: str, layer: LayerMoments, seed: int) -> Iterable[Fact]:
    means, variances = (torch.stack(one).numpy() for one in (layer.means, layer.variances))
    counts = np.array(layer.counts, dtype=np.float64)
    usable = np.isfinite(means).all(1) & np.isfinite(variances).all(1)
    if usable.sum() < 2:
        return
    found, low, high = effective_values(means[usable], counts[usable], variances[usable], seed)
    if np.isfinite(found):
        yield Fact("n_eff_values", found, name, place="input", count=int(usable.sum()), low=low, high=high)
        yield Fact("values_per_batch", float(counts[usable].mean()), name, place="input", count=int(usable.sum()))


def _free_of_mates(patient: Patient) -> list[str]:
    """First and deepest layer, if nothing before them mixes samples even in evaluation mode."""
    tracked = {site.name for site in patient.tracked}
    mixing = [number for number, site in enumerate(patient.batch_norms) if site.name not in tracked]
    last = mixing[0] if mixing else len(patient.batch_norms)
    names = [site.name for site in patient.batch_norms[: last + 1]]
    return [name for name in names if name in patient.moments and patient.moments[name].samples]


def _composition(patient: Patient, name: str) -> Iterable[Fact]:
    layer = patient.moments[name]
    if len(layer.samples) != len(layer.batches):
        return  # some batches reached it in another shape
    rows = [one.numpy() for one in layer.samples]
    if len(rows) < 2 or not all(np.isfinite(one).all() for one in rows):
        return
    owners = [_owners(patient, number, len(one)) for number, one in zip(layer.batches, rows, strict=True)]
    if any(one is None for one in owners):
        return  # rows are neither samples nor nodes of samples: what would be permuted is not known
    everything = np.concatenate(rows)
    spread = everything.std(0)
    alive = spread > 1e-6 * (np.abs(everything).max(0) + 1e-300)
    if not alive.any():
        return
    chosen = _some(np.flatnonzero(alive))
    center = everything[:, chosen].mean(0)
    scaled = [(one[:, chosen] - center) / spread[chosen] for one in rows]
    units = _units(scaled, [one for one in owners if one is not None])
    found = grouping(units, patient.seed)
    if found is None:
        return
    ratio, p_value, limit = found
    size, batches = float(units.sizes.mean()), len(rows)
    yield Fact("composition_ratio", ratio, name, place="input", count=batches, p_value=p_value)
    yield Fact("composition_ratio_limit", limit, name, place="input", count=batches)
    yield Fact("n_eff_samples", size / ratio, name, place="input", count=batches)
    yield Fact("samples_per_batch", size, name, place="input", count=batches)
    share = _between_samples(layer, spread)
    if share is not None:
        yield Fact("between_sample_share", share, name, place="input", count=batches)


def _between_samples(layer: LayerMoments, spread: Array) -> float | None:
    """Mean over channels of (variance of samples' means / total variance)."""
    means, variances = torch.stack(layer.means).numpy(), torch.stack(layer.variances).numpy()
    counts = np.array(layer.counts, dtype=np.float64)
    total = np.average(variances + (means - np.average(means, axis=0, weights=counts)) ** 2, axis=0, weights=counts)
    alive = total > 0
    return float((spread[alive] ** 2 / total[alive]).mean()) if alive.any() else None


def _some(channels: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most ``MOST_CHANNELS`` of them, evenly spread."""
    return channels[np.unique(np.linspace(0, channels.size - 1, MOST_CHANNELS).round().astype(np.int64))]


def _units(rows: Sequence[Array], owners: Sequence[NDArray[np.int64]]) -> Units:
    sums, weights, sizes = [], [], []
    for some, owner in zip(rows, owners, strict=True):
        count = int(owner.max()) + 1
        total = np.zeros((count, some.shape[1]))
        np.add.at(total, owner, some)
        sums.append(total)
        weights.append(np.bincount(owner, minlength=count).astype(np.float64))
        sizes.append(count)
    return Units(np.concatenate(sums), np.concatenate(weights), np.array(sizes))


def _owners(patient: Patient, number: int, rows: int) -> NDArray[np.int64] | None:
    """Which sample each of ``[rows]`` belongs to."""
    batch = patient.batches[number]
    graph = _graph_index(patient, batch, rows)
    if graph is not None:
        return graph
    return np.arange(rows) if rows == patient.samples(batch) else None


def _graph_index(patient: Patient, batch: object, rows: int) -> NDArray[np.int64] | None:
    """0, 0, 1, 1, 1, 2: the graph of each node, as libraries of graph networks keep it; with a label for each graph."""
    labels = patient.labels(batch)
    if labels is None or labels.numel() == rows:
        return None
    for _, one in tensors_in(batch):
        if one is labels or one.shape != (rows,) or one.is_floating_point() or one.dtype == torch.bool:
            continue
        steps = one.diff()
        ordered = int(one[0]) == 0 and bool(((steps == 0) | (steps == 1)).all())
        if ordered and int(one[-1]) + 1 == labels.numel():
            return np.asarray(one.cpu().numpy(), dtype=np.int64)
    return None


def _labels(patient: Patient) -> Iterable[Fact]:
    found = [patient.labels(batch) for batch in patient.batches]
    known: list[Tensor] = [one.cpu() for one in found if one is not None and one.numel() > 1]
    if len(known) < 2 or len(known) < len(found) - 1:  # the last batch may have a single one
        return
    _, classes = torch.unique(torch.cat(known), return_inverse=True)
    kinds, total = int(classes.max()) + 1, classes.numel()
    if not 1 < kinds <= total // 2:
        return  # numbers of samples, no classes
    numbers = classes.numpy()
    batch = np.repeat(np.arange(len(known)), [one.numel() for one in known])
    sizes = np.bincount(batch)

    def purity(labels: NDArray[np.int64]) -> float:
        table = np.bincount(batch * kinds + labels, minlength=sizes.size * kinds).reshape(-1, kinds)
        return float((table * (table - 1)).sum() / (sizes * (sizes - 1)).sum())

    counts = np.bincount(numbers, minlength=kinds)
    observed = purity(numbers)
    result = chance(observed, lambda draw: purity(draw.permutation(numbers)), patient.seed)
    yield Fact("label_purity", observed, count=len(known), p_value=result.p_value)
    # Without replacement: of pairs drawn from all samples, the share with one label.
    yield Fact("label_purity_random", float((counts * (counts - 1)).sum() / (total * (total - 1))), count=len(known))
