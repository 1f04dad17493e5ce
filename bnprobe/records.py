"""The vocabulary of measurements: what a record is, and how it lies in a table.

A *record* is everything measured of one tensor: which step and phase, which layer and call, which place (``input``,
``output``, ``grad_output``, ``weight``; ``jacobian``: what was measured of d output / d input; ``grad_weight``: of the
gradient in a layer's parameters; ``loss``: of a loss as a function of all parameters, a record of the root, whose name
is empty; ``state``: what a layer or the model is set to; a part of one, such as the second output or a parameter that
is not called weight, as ``output.1`` or ``weight.bias``), and beside these keys one group of columns a statistic:

=======================  ============================================================================
column                   meaning
=======================  ============================================================================
``mean``                 the layer's value (float64); null where it was not measured or does not exist
``mean.error``           what the value may be off: a standard error for moments, the reach of a 95 % interval
                         for shares, a bound in *probability* (rank) for quantiles, minimum and maximum; 0 where
                         the value is exact
``mean.source``          ``saved`` (autograd had it), ``computed`` (from all values), ``sampled``
``mean.channels``        one value a channel, as a list, where the statistic has them
``mean.channel_errors``  standard errors of these, where they are sampled
``quantile.grid``        the quantile function at the run's levels, as a list
=======================  ============================================================================

Nothing here needs torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "COMPUTED",
    "DEFAULT_LEVELS",
    "FRAME_COLUMNS",
    "KEYS",
    "PHASES",
    "PLACES",
    "SAMPLED",
    "SAVED",
    "SOURCES",
    "Layer",
    "Measured",
    "Record",
]

PLACES = ("input", "output", "grad_output", "weight", "jacobian", "grad_weight", "loss", "state")
PHASES = ("train", "eval")
KEYS = ("step", "phase", "layer", "call", "place")
SAVED, COMPUTED, SAMPLED = SOURCES = ("saved", "computed", "sampled")
FRAME_COLUMNS = (*KEYS, "statistic", "level", "value", "error", "count", "exact", "source")

# Sixtieths hold 0.15, 0.50 and 0.85 (Ioffe & Szegedy 2015, figure 1) exactly; four more levels show the tails.
# Ours: 65 levels resolve a Wasserstein distance to about 1 % for smooth distributions (tests/distances).
DEFAULT_LEVELS: tuple[float, ...] = tuple(sorted({k / 60 for k in range(61)} | {0.001, 0.005, 0.995, 0.999}))


@dataclass(frozen=True)
class Layer:
    """One line of a run's inventory.

    Attributes:
        name: path as in ``named_modules()``, wrappers looked through.
        kind: class name, e.g. ``BatchNorm2d``.
        family: ``batch_norm``, ``layer_norm``, ``group_norm``, ``instance_norm``, ``rms_norm``, ``other_norm``,
            ``linear``, ``conv``, ``nonlinearity`` or ``other``.
        channels: number of channels, where the layer declares one.
        eps, momentum: of a norm layer, where it has them.
        feeds: names of the layers that read this layer's output, directly or through operations without a layer.
        observed: whether at least one tensor of it was measured.
        why: the reason where something of it was not measured, else an empty string.
    """

    name: str
    kind: str
    family: str
    channels: int | None = None
    eps: float | None = None
    momentum: float | None = None
    feeds: tuple[str, ...] = ()
    observed: bool = False
    why: str = ""


@dataclass(frozen=True)
class Measured:
    """One statistic of R records.

    Attributes:
        value: ``[R]`` float64; NaN where the statistic does not exist for a record.
        source: ``saved``, ``computed`` or ``sampled``; one for all, R of them, or ``[R]`` their places in ``SOURCES``.
        error: ``[R]`` float64 or None for "exact".
        channels: R arrays ``[C]`` (or None for a record without channels), or None for "no channels at all".
        channel_errors: as ``channels``, what those values may be off; None for a record whose channel values are exact.
        grid: ``[R, Q]`` for a quantile function; then ``value`` is NaN.
    """

    value: NDArray[np.float64]
    source: str | Sequence[str] | NDArray[np.int8]
    error: NDArray[np.float64] | None = None
    channels: Sequence[NDArray[np.floating[Any]] | None] | None = None
    grid: NDArray[np.floating[Any]] | None = None
    channel_errors: Sequence[NDArray[np.floating[Any]] | None] | None = None


@dataclass(frozen=True)
class Record:
    """Key of one record, with the number of values that it summarises."""

    step: int
    phase: str
    layer: str
    call: int
    place: str
    count: int = field(default=0)
