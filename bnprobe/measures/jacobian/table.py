"""The singular values of every layer, as a table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from bnprobe.errors import ArgumentError, BnprobeError
from bnprobe.hooks.segments import Captured, SegmentChoice, capture, cut, of_call
from bnprobe.hooks.sites import LayerChoice, Site, find_sites, unwrap
from bnprobe.measures.jacobian.measure import Count, Method, Per, Wanted, measure_segment
from bnprobe.measures.jacobian.spectrum import Spectrum
from bnprobe.measures.untouched import Origin, RandomStreams, untouched

__all__ = ["COLUMNS", "measure_layers", "measure_segments", "spectra"]

COLUMNS = (
    "layer", "kind", "samples", "outputs", "inputs", "coupled", "method", "max", "min", "mean_square",
    "condition_number", "share_near_one", "error", "max_error", "min_error", "why",
)  # fmt: skip


def spectra(
    model: nn.Module,
    x: Any,
    layers: LayerChoice = None,
    k: Count = (10, 3),
    *,
    per: Per = None,
    method: Method = None,
    memory: int = 2**30,
    seed: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    """The singular values of each layer's Jacobian at the input that ``x`` causes there, one row a layer.

    One forward shows all layers' inputs; then each layer is measured by itself, as :func:`bnprobe.spectrum` does. A
    layer that is called several times is measured at its first call.

    Args:
        model: as for :func:`bnprobe.spectrum`, as are ``x``, ``per``, ``method``, ``memory`` and ``seed``.
        x: the model's input.
        layers: as for :func:`bnprobe.attach`: None for every normalization layer and every other leaf with parameters
            or a pointwise nonlinearity; else glob(s), class(es), or ``(name, module) -> bool``.
        k: as for :func:`bnprobe.spectrum`; default the ten largest and three smallest. Where a layer's values come all
            at once (closed forms, small matrices), all of them count.
        per: whose Jacobian.
        method: how to compute it.
        memory: bytes for one layer's matrices and vectors.
        seed: of the vectors at which Lanczos starts.
        progress: a progress bar; None: where standard error is a terminal.

    Returns:
        Columns ``layer``, ``kind`` (class), ``samples`` (N; 1 of a whole batch), ``outputs`` and ``inputs`` of one
        Jacobian, ``coupled``, ``method``; over all samples the largest value ``max`` and the smallest ``min``, the
        mean of the mean squares ``mean_square`` and of ``share_near_one`` (values in [0.9, 1.1]), the largest
        ``condition_number``; ``error``: the largest error of a value, and ``max_error`` and ``min_error`` of
        these two (of the smallest values Lanczos often has no more than an upper bound). Missing is what was not asked
        for. ``why`` is empty, or says "not measured: ..." for layers that have no Jacobian or are not called.

    Raises:
        ArgumentError, SelectionError: as in :func:`bnprobe.spectrum` and :func:`bnprobe.attach`.
    """
    wanted = replace(Wanted.of(k, per, method, memory, seed), whole=True)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    root, sites = unwrap(model), find_sites(model, layers)
    rows = []
    with untouched(root) as origin:
        calls = _calls(root, x, sites)
        origin.rewind()
        bar = tqdm(sites, desc="spectra", unit="layer", disable=None if progress is None else not progress)
        for site in bar:
            bar.set_postfix_str(site.name)
            rows.append(_row(site, _measured(site, calls.pop(site.name, None), origin, wanted)))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(("samples", "outputs", "inputs"), "Int64"))


def measure_layers(root: nn.Module, x: Any, sites: Sequence[Site], wanted: Wanted) -> dict[str, Spectrum | str]:
    """Each layer's spectrum, or why there is none, by name; ``root`` has no wrappers."""
    with untouched(root) as origin:
        calls = _calls(root, x, sites)
        origin.rewind()
        return {site.name: _measured(site, calls.pop(site.name, None), origin, wanted) for site in sites}


def measure_segments(
    root: nn.Module, x: Any, segments: Mapping[str, SegmentChoice], wanted: Wanted
) -> dict[str, Spectrum | str]:
    """The spectrum of each piece of a model, or why there is none, by name; ``root`` has no wrappers."""
    found = {}
    for name, segment in segments.items():
        with untouched(root) as origin:

            def measure() -> Spectrum:
                return measure_segment(cut(root, x, segment, RandomStreams), origin, wanted)  # noqa: B023 - called now

            found[name] = _or_why(measure)
    return found


def _calls(root: nn.Module, x: Any, sites: Sequence[Site]) -> dict[str, Captured]:
    reachable = {site.name: site.module for site in sites if not isinstance(site.module, torch.jit.ScriptModule)}
    return capture(root, x, reachable, RandomStreams)


def _measured(site: Site, call: Captured | None, origin: Origin, wanted: Wanted) -> Spectrum | str:
    """A layer's spectrum, or why there is none."""
    if isinstance(site.module, torch.jit.ScriptModule):
        return "not measured: a scripted module runs outside of Python"
    if call is None:
        return "not measured: it is not called in this forward"
    captured = call
    return _or_why(lambda: measure_segment(of_call(site.module, captured, site.name), origin, wanted))


def _or_why(measure: Callable[[], Spectrum]) -> Spectrum | str:
    try:
        return measure()
    except BnprobeError as error:
        return f"not measured: {error}"
    except RuntimeError as error:  # torch's own: one layer that cannot be differentiated does not hide the others
        return f"not measured: {type(error).__name__}: {str(error).splitlines()[0]}"


def _row(site: Site, found: Spectrum | str) -> dict[str, Any]:
    about = {"layer": site.name, "kind": site.describe().kind}
    return {**about, "why": found} if isinstance(found, str) else {**about, **_numbers(found), "why": ""}


def _numbers(found: Spectrum) -> dict[str, Any]:
    values = found.values  # noqa: PD011 - of a spectrum, not of a frame
    lowest = found.complete or found.which[1]
    return {
        "samples": len(values),
        "outputs": found.shape[0],
        "inputs": found.shape[1],
        "coupled": found.coupled,
        "method": found.method,
        "max": float(values[:, 0].max()),
        "min": float(values[:, -1].min()) if lowest else np.nan,
        "mean_square": float(found.mean_square.mean()),
        "condition_number": float(found.condition_number.max()),
        "share_near_one": float(found.share_near_one.mean()),
        "error": float(found.error.max()),
        "max_error": float(found.error[values[:, 0].argmax(), 0]),
        "min_error": float(found.error[values[:, -1].argmin(), -1]) if lowest else np.nan,
    }
