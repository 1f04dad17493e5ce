"""What a recalibration did to which layers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["RecalibratedLayer", "Recalibration"]

_COLUMNS = ("layer", "d_mu", "d_mu_max", "d_lv", "d_lv_max", "change", "count", "calls", "skipped")


@dataclass(frozen=True, eq=False)
class RecalibratedLayer:
    r"""One layer whose statistics were replaced.

    Attributes:
        name: as in ``named_modules()``.
        d_mu: ``[C]``, by how many standard deviations the stored mean was off; inf where it was not finite.
        d_lv: ``[C]``, :math:`|\log (v + \epsilon) / (v' + \epsilon)|` of the stored and the new variance.
        change: the largest d_mu or d_lv of a channel that a pass with all layers' new statistics still brought; NaN
            where ``passes`` left no time for one.
        count: of values per channel of which the statistics are.
        calls: of the layer in a pass.
        skipped: those whose input was not finite; ``num_batches_tracked`` counts the others.
    """

    name: str
    d_mu: NDArray[np.float64]
    d_lv: NDArray[np.float64]
    change: float
    count: int
    calls: int
    skipped: int


@dataclass(frozen=True, eq=False)
class Recalibration:
    """What :func:`bnprobe.remedies.recalibrate` did.

    Attributes:
        layers: whose statistics were replaced.
        left: by name, why others were left alone.
        passes: over the batches.
        settled: whether a pass confirmed that nothing changes beyond the tolerance.
        tolerance: in units of d_mu and d_lv.
        batches: that this process ran, in each pass.
    """

    layers: tuple[RecalibratedLayer, ...]
    left: Mapping[str, str]
    passes: int
    settled: bool
    tolerance: float
    batches: int

    def frame(self) -> pd.DataFrame:
        """One row a layer; d_mu and d_lv as median and maximum over channels."""
        rows = [
            (
                one.name,
                np.median(one.d_mu),
                one.d_mu.max(),
                np.median(one.d_lv),
                one.d_lv.max(),
                one.change,
                one.count,
                one.calls,
                one.skipped,
            )
            for one in self.layers
        ]
        return pd.DataFrame(rows, columns=list(_COLUMNS))

    def __str__(self) -> str:
        end = f"settled to {self.tolerance:g}" if self.settled else "not settled"
        lines = [f"{len(self.layers)} layers recalibrated on {self.batches} batches in {self.passes} passes, {end}"]
        lines += [self.frame().to_string(index=False, float_format=lambda value: f"{value:.3g}")] if self.layers else []
        return "\n".join([*lines, *(f"left alone: {name}: {why}" for name, why in self.left.items())])
