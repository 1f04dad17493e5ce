"""Singular values of layers' Jacobians during training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bnprobe.errors import ArgumentError
from bnprobe.hooks.segments import SegmentChoice, find_layer
from bnprobe.hooks.sites import LayerChoice, Site, unwrap
from bnprobe.hooks.tensors import tensors_in
from bnprobe.measures.jacobian import Spectrum
from bnprobe.measures.jacobian.measure import Count, Method, Per, Wanted
from bnprobe.measures.jacobian.table import measure_layers, measure_segments
from bnprobe.records import COMPUTED, Measured
from bnprobe.schedule import Schedule, as_schedule
from bnprobe.statistics.fixed_batch import beside, kept
from bnprobe.statistics.measurement import Measurement, Occasion, Readings

__all__ = ["Spectra"]

Array = NDArray[np.float64]
_Pair = tuple[float, float]  # a value and what it may be off
_NONE = (np.nan, np.nan)


@dataclass(frozen=True, eq=False, repr=False)
class Spectra(Measurement):
    """Singular values of Jacobians on a fixed batch, as :func:`bnprobe.spectra` measures: of layers, or of segments.

    The model is measured in the mode in which it is, outside of autocast, with the weights that the step's forward
    used. In a job of several processes rank 0 measures; a model whose layers wait for the other ranks
    (``SyncBatchNorm`` in train mode, sharded weights) is not measured. A measurement costs as much as many steps.

    Records have the place ``jacobian`` and the phase of the model's mode; their ``count`` is samples times values. Over
    the N samples of the batch, or the batch as a whole where its samples interact:

    =====================  =====================================================================================
    statistic              meaning
    =====================  =====================================================================================
    ``singular_value``     its channels are the wanted values, descending, each the mean over the samples; the value
                           is their mean where all values of the layer were wanted
    ``singular_max``       the largest value of any sample; ``singular_min`` the smallest, where it was wanted
    ``mean_square``        mean of the squares of *all* values; estimated where some were not wanted
    ``condition_number``   the largest of any sample, infinite where a value is 0
    ``share_near_one``     share of values in [0.9, 1.1], where all were wanted
    =====================  =====================================================================================

    Beside each stands its ``error``: a bound made of the values' own, see :class:`bnprobe.measures.jacobian.Spectrum`;
    of an estimated ``mean_square`` a standard error.

    Args:
        batch: the model's input: a tensor, a tuple of positional or a mapping of keyword arguments. It is copied now,
            and moved to the model's device where it lies elsewhere.
        every: every so many steps, or a schedule; default 100, ours: then it costs little beside the training.
        layers: which; None for those that the probe listens to, or where ``segments`` are given for no single layer.
        segments: pieces of the model, as ``layer`` of :func:`bnprobe.spectrum`: ``("a", "b")`` from the input of one
            layer to the output of another, None from end to end. Their records are those of a layer ``"a -> b"``, or
            ``"input -> output"``; the inventory lists them with the class of their last layer, or of the model.
        k: None for all values of a layer, a number for the largest ones, two numbers for so many of the largest and
            smallest. Default ten and three, as for :func:`bnprobe.spectra`.
        per, method, memory, seed: as for :func:`bnprobe.spectrum`.

    Raises:
        ArgumentError: the batch has no tensor, or another argument is not usable.
        SelectionError: when it is attached: there is no such layer.
    """

    batch: Any
    every: int | Schedule = 100
    layers: LayerChoice = None
    k: Count = (10, 3)
    per: Per = None
    method: Method = None
    memory: int = 2**30
    seed: int = 0
    segments: Sequence[SegmentChoice] = ()

    def __post_init__(self) -> None:
        as_schedule(self.every)
        self._wanted()
        if next(tensors_in(self.batch), None) is None:
            raise ArgumentError(f"batch must be the model's input: tensors; got {type(self.batch).__name__}")
        if isinstance(self.segments, str) or not all(one is None or _is_pair(one) for one in self.segments):
            raise ArgumentError(
                f"segments must be pairs of layers' names, or None for the whole model; got {self.segments!r}"
            )
        object.__setattr__(self, "segments", tuple(self.segments))
        object.__setattr__(self, "batch", kept(self.batch))

    def __repr__(self) -> str:
        """Without the batch, which may be large, and is another on every rank."""
        layers = getattr(self.layers, "__qualname__", repr(self.layers))
        every = getattr(self.every, "__qualname__", repr(self.every))
        more = f", segments={list(self.segments)}" if self.segments else ""
        return f"Spectra(every={every}, layers={layers}, k={self.k}, per={self.per!r}, method={self.method!r}{more})"

    def sites(self, model: nn.Module, listened: Sequence[Site]) -> list[Site]:
        """The layers to measure, and the segments as if they were layers.

        Raises:
            SelectionError: there is no such layer.
        """
        chosen = [] if self.segments and self.layers is None else super().sites(model, listened)
        root = unwrap(model)
        for name, segment in self._named().items():
            ends = [root] if segment is None else [find_layer(root, one) for one in segment]
            chosen.append(Site(name, ends[-1], "other"))
        return chosen

    def measure(self, occasion: Occasion) -> Readings:
        """The spectra of the layers, each by itself, and of the segments."""
        batch, named = beside(occasion.root, self.batch), self._named()
        layers = [site for site in occasion.sites if site.name not in named]
        found = measure_layers(occasion.root, batch, layers, self._wanted()) if layers else {}
        segments = {site.name: named[site.name] for site in occasion.sites if site.name in named}
        found |= measure_segments(occasion.root, batch, segments, self._wanted())
        why = {name: one for name, one in found.items() if isinstance(one, str)}
        spectra = {name: one for name, one in found.items() if isinstance(one, Spectrum)}
        return Readings("jacobian", list(spectra), _counts(spectra.values()), _values(list(spectra.values())), why)

    def _named(self) -> dict[str, SegmentChoice]:
        return {"input -> output" if one is None else " -> ".join(one): one for one in self.segments}

    def _wanted(self) -> Wanted:
        return Wanted.of(self.k, self.per, self.method, self.memory, self.seed)


def _is_pair(names: Any) -> bool:
    return isinstance(names, tuple) and len(names) == 2 and all(isinstance(one, str) for one in names)


def _counts(spectra: Any) -> list[int]:
    return [one.values.size for one in spectra]


def _values(spectra: Sequence[Spectrum]) -> dict[str, Measured]:
    """The statistics of R layers; without those that none has."""
    columns = {name: [read(one) for one in spectra] for name, read in _READ.items()}
    made = {name: _measured(pairs) for name, pairs in columns.items() if not np.isnan([v for v, _ in pairs]).all()}
    if not spectra:
        return made
    listed = _measured([_mean(one) for one in spectra])
    values = [one.values.mean(0) for one in spectra]
    errors = [one.error.mean(0) for one in spectra]
    return {"singular_value": Measured(listed.value, COMPUTED, listed.error, values, None, errors), **made}


def _measured(pairs: Sequence[_Pair]) -> Measured:
    value, error = np.array(pairs, np.float64).reshape(-1, 2).T
    return Measured(value, COMPUTED, error)


def _mean(found: Spectrum) -> _Pair:
    return (float(found.values.mean()), float(found.error.mean())) if found.complete else _NONE


def _largest(found: Spectrum) -> _Pair:
    return (float(found.values[:, 0].max()), float(found.error[:, 0].max())) if found.which[0] else _NONE


def _smallest(found: Spectrum) -> _Pair:
    known = found.complete or found.which[1]
    return (float(found.values[:, -1].min()), float(found.error[:, -1].max())) if known else _NONE


def _mean_square(found: Spectrum) -> _Pair:
    # Of estimates the mean of the standard errors: too large by up to sqrt(N), for all samples share their vectors.
    return float(found.mean_square.mean()), float(found.mean_square_error.mean())


def _condition_number(found: Spectrum) -> _Pair:
    ratio = found.condition_number
    if np.isnan(ratio).any():
        return _NONE
    high, low = found.values[:, 0] + found.error[:, 0], found.values[:, -1] - found.error[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.where(low > 0, high / low, np.inf) - ratio
    return float(ratio.max()), float(np.where(np.isfinite(reach), reach, np.inf).max())


def _share_near_one(found: Spectrum) -> _Pair:
    doubtful = sum(np.abs(found.values - edge) <= found.error for edge in (0.9, 1.1))
    return float(found.share_near_one.mean()), float(np.mean(np.asarray(doubtful) > 0))


_READ = {
    "singular_max": _largest,
    "singular_min": _smallest,
    "mean_square": _mean_square,
    "condition_number": _condition_number,
    "share_near_one": _share_near_one,
}
