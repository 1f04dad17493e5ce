"""Whether an exported model (traced, folded, compiled, quantized) does what the model does."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.tensors import tensors_in
from bnprobe.measures.evidence.mates import change, company, spread
from bnprobe.measures.evidence.patient import Patient
from bnprobe.measures.evidence.swap import in_double, ready

__all__ = ["measure"]

BATCHES = 8


def measure(patient: Patient) -> list[Fact]:
    """``parity_gap`` (largest), ``parity_rms``: of outputs, in their standard deviations, never relative to an output.

    ``parity_noise``: largest gap between the model and its copy in double precision. ``parity_disagreement``: share of
    samples with another largest entry, where batches have class labels. ``parity_epsilon``: rounding of the exported
    outputs' dtype; ``parity_quantized``; ``parity_shape``: 0 where outputs differ in shape. ``swap_change_exported``
    with ``swap_noise_exported``: as in ``swap``. ``fold_gain_spread`` a layer: largest over median gain that folding
    multiplies weights with.
    """
    exported = patient.given.exported
    if exported is None:
        raise NotMeasuredError("needs exported=: a callable that should do what the model does")
    facts = [*_compared(patient, exported), *_gains(patient)]
    try:
        found = company(patient)
        seen = change(lambda batch: _theirs(patient, exported, batch), found)
    except Exception:  # it may take no other batches than those it was made with
        return facts
    swapped = Fact("swap_change_exported", seen.value, place="output", count=seen.count, low=seen.low, high=seen.high)
    return [*facts, swapped, Fact("swap_noise_exported", seen.noise, place="output", count=seen.count)]


def _ours(patient: Patient, batch: Any) -> Tensor:
    ready(patient)
    return patient.outputs(batch).cpu()


def _theirs(patient: Patient, exported: Any, batch: Any) -> Tensor:
    ready(patient)
    return patient.outputs(batch, exported).cpu()


def _compared(patient: Patient, exported: Any) -> Iterator[Fact]:
    ours, theirs, used, why = [], [], [], ""
    for batch in patient.batches[:BATCHES]:
        ready(patient)
        one = _ours(patient, batch)
        try:
            other = _theirs(patient, exported, batch)
        except Exception as error:  # a size that it was not made for
            why = f"{type(error).__name__}: {error}"
            continue
        if one.shape != other.shape:
            yield Fact("parity_shape", 0.0)
            raise NotMeasuredError(
                f"exported gives outputs of shape {tuple(other.shape)}, the model {tuple(one.shape)}"
            )
        ours.append(one)
        theirs.append(other)
        used.append(batch)
    if not ours:
        raise NotMeasuredError(f"exported takes none of the batches: {why}")
    yield from _gaps(patient, exported, used, ours, theirs)


def _gaps(patient: Patient, exported: Any, used: list[Any], ours: list[Tensor], theirs: list[Tensor]) -> Iterator[Fact]:
    scale = spread(ours)
    one, other = torch.cat(ours), torch.cat(theirs)
    off = (one - other).abs() / scale
    count = len(one)
    yield Fact("parity_gap", _largest(off), place="output", count=count)
    yield Fact("parity_rms", _largest(off.square().mean().sqrt()), place="output", count=count)
    double = in_double(patient, used[0])
    if double is not None:
        noise = (double(used[0]).cpu() - ours[0]).abs().max() / scale
        yield Fact("parity_noise", float(noise), place="output", count=len(ours[0]))
    if all(patient.labels(batch) is not None for batch in used) and one.shape[1] > 1:
        share = (one.argmax(1) != other.argmax(1)).double().mean()
        yield Fact("parity_disagreement", float(share), place="output", count=count)
    ready(patient)
    with torch.no_grad():
        raw = [x for _, x in tensors_in(patient.run(used[0], exported)) if x.is_floating_point()]
    yield Fact("parity_epsilon", max(torch.finfo(x.dtype).eps for x in raw))
    yield Fact("parity_quantized", float(_is_quantized(exported)))


def _largest(values: Tensor) -> float:
    """Infinite where one is no number: it is no small difference."""
    value = float(values.max())
    return value if value == value else float("inf")


def _gains(patient: Patient) -> Iterator[Fact]:
    patient.origin.rewind()
    for site in patient.tracked:
        variance, weight = site.module.running_var, getattr(site.module, "weight", None)
        assert isinstance(variance, Tensor)
        gain = (variance.detach().double() + float(getattr(site.module, "eps", 0))).clamp_min(1e-300).rsqrt()
        gain = gain * weight.detach().double().abs() if isinstance(weight, Tensor) else gain
        middle = float(gain.median())
        if middle > 0:
            yield Fact("fold_gain_spread", float(gain.max()) / middle, site.name, count=gain.numel())


def _is_quantized(exported: Any) -> bool:
    if not isinstance(exported, nn.Module):
        return False
    if any(".quantized." in f"{type(one).__module__}." for one in exported.modules()):
        return True
    try:
        return "quantize" in str(getattr(exported, "graph", ""))
    except RuntimeError:  # a script without a graph of its own
        return False
