"""How large the loader's batches are, and how many values a channel each leaves at every batch norm.

Sizes of a whole epoch follow from the lengths of the loader's samplers; no sample is read for it, and no sampler is
asked for an order, for that could move its random numbers. What it gives is held against the batches that are known.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.outputs import calls_at
from bnprobe.measures.evidence.patient import Patient, set_modes

__all__ = ["epoch_sizes", "measure"]


def measure(patient: Patient) -> list[Fact]:
    """Facts of the loader and of each batch norm.

    ``batch_size`` of each batch that was looked at; ``epoch_batch_size`` of each *different* size of an epoch, with the
    number of batches as ``count``, where it can be known; ``drop_last``. Of a layer ``least_values``, the fewest values
    a channel that one call gets in an epoch (of the batches looked at, where an epoch is not known), and
    ``least_values_size``, the size of the batch that leaves them.
    """
    if not patient.batch_norms:
        raise NotMeasuredError("the model has no batch normalization")
    seen = [patient.samples(batch) for batch in patient.batches]
    facts = [Fact("batch_size", float(size), batch=number) for number, size in enumerate(seen)]
    epoch = epoch_sizes(patient, seen)
    facts += [
        Fact("epoch_batch_size", float(size), batch=number, count=count)
        for number, (size, count) in enumerate(sorted(Counter(epoch or ()).items()))
    ]
    dropped = getattr(patient.loader, "drop_last", None)
    if isinstance(dropped, bool):
        facts.append(Fact("drop_last", float(dropped)))
    return [*facts, *_least_values(patient, seen, sorted(set(epoch or ())))]


def epoch_sizes(patient: Patient, seen: Sequence[int]) -> list[int] | None:
    """How many samples each batch of an epoch has; None where that cannot be known without reading data."""
    loader = patient.loader
    if isinstance(loader, list | tuple):
        return [patient.samples(batch) for batch in loader]
    if not isinstance(loader, DataLoader):
        return None
    indices = _index_sizes(loader)
    if indices is None or not indices:
        return None
    # A collate function may make several samples of one, as with several crops a picture.
    each, rest = divmod(seen[0], indices[0])
    expected = [each * size for size in indices]
    return expected if not rest and list(seen) == expected[: len(seen)] else None


def _index_sizes(loader: "DataLoader[Any]") -> list[int] | None:
    """By the lengths of the samplers; None for samplers of the user's own, streams in workers and endless ones."""
    sampler = loader.batch_sampler
    if isinstance(sampler, list | tuple):
        return [len(one) for one in sampler]
    if type(sampler) is not BatchSampler:
        return None
    streams = isinstance(loader.dataset, torch.utils.data.IterableDataset)
    if streams and loader.num_workers:
        return None  # each worker ends with a batch of its own
    try:
        total = len(loader.dataset if streams else sampler.sampler)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None
    full, rest = divmod(total, sampler.batch_size)
    return [sampler.batch_size] * full + ([rest] if rest and not sampler.drop_last else [])


def _least_values(patient: Patient, seen: Sequence[int], sizes: Sequence[int]) -> Iterable[Fact]:
    for name, calls in _values(patient).items():
        at, values = min(((seen[batch], count) for batch, count in calls), key=lambda pair: pair[1])
        each = {count / seen[batch] for batch, count in calls}
        if sizes and len(each) == 1 and (step := each.pop()).is_integer() and sizes[0] * step < values:
            at, values = sizes[0], int(sizes[0] * step)
        yield Fact("least_values", float(values), name, place="input", count=len(calls))
        yield Fact("least_values_size", float(at), name, place="input")


def _values(patient: Patient) -> dict[str, list[tuple[int, int]]]:
    """Of each layer, for each of its calls: number of the batch, values a channel."""
    sites = {site.name: site for site in patient.batch_norms}
    found: dict[str, list[tuple[int, int]]] = {}
    number = 0

    def see(name: str, _: int, x: Tensor, __: object) -> None:
        axis = sites[name].channel_axis(x)
        if axis is not None and x.numel():
            found.setdefault(name, []).append((number, x.numel() // x.shape[axis]))

    set_modes(patient, "stored")  # a batch of one value is shown to no layer in training mode
    with calls_at({name: site.module for name, site in sites.items()}, see), torch.no_grad():
        for number, batch in enumerate(patient.batches):  # noqa: B007 - `see` reads it
            patient.run(batch)
    return found
