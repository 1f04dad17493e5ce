"""Whether running statistics are those of other inputs: these, with a gain and an offset for each input channel.

The first batch norm behind a convolution (or linear layer) that is given the batch itself: offsets of the input's
channels move its means by the layer's answer to constants, gains its variances by each channel's share. Few unknowns
have to explain the gaps of all output channels at once; chance is what they explain of gaps dealt to other channels.
Approximate where the layer pads with zeros: there an offset makes variance as well, which is put down to the gain.
What was found is then undone in the input, and all layers and the loss are looked at again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.sites import Site
from bnprobe.hooks.tensors import tensors_in, with_tensors
from bnprobe.measures.evidence.housekeeping import Source, fed_by, few
from bnprobe.measures.evidence.moments import observe
from bnprobe.measures.evidence.patient import Patient, set_modes
from bnprobe.measures.evidence.resampling import bootstrap, excess_test
from bnprobe.measures.evidence.stale import FAR
from bnprobe.measures.evidence.triangle import LEAST_LOSS

__all__ = ["Affine", "explain", "measure"]

PERMUTATIONS = 400
LEAST_GAP = 0.2  # ours: below what any rule asks for
STEPS = 8  # of Gauss and Newton: equal gains are found in one
MOST_VALUES = 2**22
MOST_CHANNELS = 64

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """``gain * (x - mean) + mean + offset`` for each input channel, ``[C]``; and the share of the gaps it explains."""

    gain: Array
    offset: Array
    share: float


@dataclass(frozen=True)
class _Answer:
    """What the first layer does: to constants ``[O, C]``; covariances of the channels' contributions ``[O, C, C]``."""

    to_constants: Array
    covariances: Array


def measure(patient: Patient) -> list[Fact]:
    """``preprocessing_gap``: root mean square of the first layer's gaps: standard deviations, log variances.

    ``preprocessing_share`` (R^2) with its p-value; ``preprocessing_gain``, ``preprocessing_offset`` a channel: what
    turns these inputs into those expected. ``gap_given``, ``gap_undone``, ``gap_flipped``: share of all channels of all
    layers that are far from their statistics, as given, with it undone, and with the three channels in reverse order.
    ``loss_undone``, ``loss_flipped`` and ``excess_stored_over_undone``, ``..._flipped``, where there is a loss.
    """
    _ = patient.pooled  # before anything is read: it leaves its own statistics in the layers
    patient.origin.rewind()
    site, source, place = _first(patient)
    answer = _answer(patient, source, place)
    stored = _stored(site)
    pooled = patient.pooled.mean[site.name].cpu().numpy(), patient.pooled.variance[site.name].cpu().numpy()
    found, gap, p_value = _explained(answer, stored, pooled, patient.seed)
    axis = _axis(source.module)
    mean = _mean(patient, place, axis)

    def undo(x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[axis] = -1
        gain, centre, offset = (
            torch.as_tensor(one, device=x.device).view(shape) for one in (found.gain, mean, found.offset)
        )
        return (gain * (x.double() - centre) + centre + offset).to(x.dtype)

    facts = [
        Fact("preprocessing_gap", gap, site.name, place="input"),
        Fact("preprocessing_share", found.share, site.name, place="input", count=len(pooled[0]), p_value=p_value),
        Fact("preprocessing_gain", float(np.exp(np.log(found.gain).mean())), site.name, channels=found.gain),
        Fact("preprocessing_offset", float(np.abs(found.offset).mean()), site.name, channels=found.offset),
    ]
    if gap < LEAST_GAP:
        return facts  # nothing to explain: the passes below are dear
    facts += [Fact("gap_given", _far(patient, place, lambda x: x)), Fact("gap_undone", _far(patient, place, undo))]
    ways: dict[str, Callable[[Tensor], Tensor]] = {"undone": undo}
    if len(mean) == 3 and isinstance(source.module, nn.Conv2d):
        ways["flipped"] = lambda x: x.flip(1)
        facts.append(Fact("gap_flipped", _far(patient, place, ways["flipped"])))
    return facts + _losses(patient, place, ways)


def explain(answer: _Answer, stored: tuple[Array, Array], pooled: tuple[Array, Array]) -> Affine:
    """The gains and offsets that explain most of what lies between two pairs of means and variances ``[O]``."""
    spread = np.sqrt(pooled[1])
    gaps = (stored[0] - pooled[0]) / spread
    offset = np.linalg.lstsq(answer.to_constants / spread[:, None], gaps, rcond=None)[0]
    left = gaps - answer.to_constants @ offset / spread
    ratios = np.log(stored[1] / pooled[1])
    logs: Array = np.zeros(answer.covariances.shape[1])
    level = np.einsum("oij->o", answer.covariances).clip(1e-300)
    for _ in range(STEPS):
        scaled = answer.covariances * np.exp(logs[:, None] + logs[None])
        now = np.einsum("oij->o", scaled).clip(1e-300)
        shares = np.einsum("oij->oi", scaled) / now[:, None]
        step = np.linalg.lstsq(2 * shares, ratios - np.log(now / level), rcond=None)[0]
        logs = np.clip(logs + np.clip(step, -8, 8), -12, 12)
    now = np.einsum("oij->o", answer.covariances * np.exp(logs[:, None] + logs[None])).clip(1e-300)
    rest = ratios - np.log(now / level)
    total = np.square(gaps).sum() + np.square(ratios).sum()
    share = 1 - (np.square(left).sum() + np.square(rest).sum()) / total if total > 0 else 0.0
    return Affine(np.exp(logs), np.asarray(offset, dtype=np.float64), float(share))


def _explained(
    answer: _Answer, stored: tuple[Array, Array], pooled: tuple[Array, Array], seed: int
) -> tuple[Affine, float, float]:
    alive = (pooled[1] > 0) & (stored[1] > 0) & np.isfinite(stored[0]) & np.isfinite(stored[1])
    inner = answer.to_constants.shape[1]
    if alive.sum() < 2 * inner + 2:
        raise NotMeasuredError(f"{alive.sum()} channels cannot tell the gains and offsets of {inner} input channels")
    answer = _Answer(answer.to_constants[alive], answer.covariances[alive])
    stored, pooled = (stored[0][alive], stored[1][alive]), (pooled[0][alive], pooled[1][alive])
    found = explain(answer, stored, pooled)
    gaps, ratios = (stored[0] - pooled[0]) / np.sqrt(pooled[1]), np.log(stored[1] / pooled[1])
    draw = np.random.default_rng(seed)
    chance = []
    for _ in range(PERMUTATIONS):
        order = draw.permutation(len(gaps))
        # The gaps in units of the channel go to another channel.
        dealt = pooled[0] + gaps[order] * np.sqrt(pooled[1]), pooled[1] * np.exp(ratios[order])
        chance.append(explain(answer, dealt, pooled).share)
    p_value = (1 + sum(one >= found.share for one in chance)) / (1 + PERMUTATIONS)
    return found, float(np.sqrt((np.square(gaps) + np.square(ratios)).mean())), p_value


def _first(patient: Patient) -> tuple[Site, Source, int]:
    """The first tracked batch norm whose layer before is given the batch, and which of the batch's tensors that is."""
    batch = [one for _, one in tensors_in(few(patient))]
    feeding = fed_by(patient)
    for site in patient.tracked:
        source = feeding.get(site.name)
        if source is None or site.name not in patient.pooled.mean:
            continue
        for place, one in enumerate(batch):
            same = one.is_floating_point() and one.shape == source.given.shape and one.dtype == source.given.dtype
            if same and torch.equal(one, source.given):
                return site, source, place
    raise NotMeasuredError("no batch norm follows a convolution or linear layer that is given the batch as it is")


def _axis(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear) else 1


def _stored(site: Site) -> tuple[Array, Array]:
    module: Any = site.module
    return module.running_mean.detach().double().cpu().numpy(), module.running_var.detach().double().cpu().numpy()


def _answer(patient: Patient, source: Source, place: int) -> _Answer:
    """One input channel at a time, the others zero."""
    module, axis = source.module, _axis(source.module)
    x = [one for _, one in tensors_in(patient.batches[0])][place].detach()
    inner = x.shape[axis]
    if inner > MOST_CHANNELS:
        raise NotMeasuredError(f"the input has {inner} channels; gains and offsets of {MOST_CHANNELS} can be told")
    with torch.no_grad():
        size = max(1, module(x[:1]).numel())
        x = x[: max(2, MOST_VALUES // (size * inner))]
        nothing = module(torch.zeros_like(x[:1]))
        shape = [1] * x.dim()
        shape[axis] = inner
        constants, parts = [], []
        for one in torch.eye(inner, dtype=x.dtype, device=x.device):
            mask = one.view(shape)
            constants.append(_rows(module(mask.expand(x[:1].shape)) - nothing, axis).mean(1))
            parts.append(_rows(module(x * mask) - nothing, axis))
        values = torch.stack(parts)
        values = values - values.mean(2, keepdim=True)
        covariances = torch.einsum("iom,jom->oij", values, values) / values.shape[2]
    return _Answer(torch.stack(constants, 1).cpu().numpy(), covariances.cpu().numpy())


def _rows(x: Tensor, axis: int) -> Tensor:
    """``[O, values]`` in float64."""
    return x.double().movedim(axis, 0).flatten(1)


def _changed(batch: Any, place: int, change: Callable[[Tensor], Tensor]) -> Any:
    numbers = iter(range(10**6))
    return with_tensors(batch, lambda one: change(one) if next(numbers) == place else one)


def _mean(patient: Patient, place: int, axis: int) -> Array:
    total, count = None, 0
    for batch in patient.batches:
        rows = _rows([one for _, one in tensors_in(batch)][place].detach(), axis)
        total = rows.sum(1) if total is None else total + rows.sum(1)
        count += rows.shape[1]
    assert total is not None
    mean: Array = (total / count).cpu().numpy()
    return mean


def _far(patient: Patient, place: int, change: Callable[[Tensor], Tensor]) -> float:
    """Share of channels, of all layers together, whose stored statistics are far from their inputs'."""
    sites = {site.name: site for site in patient.tracked}
    patient.origin.rewind()
    set_modes(patient, "stored")
    seen = observe(
        patient.tracked, enumerate(patient.batches), lambda batch: patient.run(_changed(batch, place, change))
    )
    far = []
    for name, layer in seen.items():
        mean, variance = (one.numpy() for one in layer.together()[1:])
        stored = _stored(sites[name])
        alive = variance > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.abs(stored[0] - mean) / np.sqrt(variance) > FAR[0]
            far.append((off | (np.abs(np.log(stored[1] / variance)) > FAR[1]))[alive])
    every = np.concatenate(far) if far else np.array([])
    return float(every.mean()) if every.size else float("nan")


def _losses(patient: Patient, place: int, ways: dict[str, Callable[[Tensor], Tensor]]) -> list[Fact]:
    if patient.why_no_loss:
        return []
    patient.origin.rewind()
    set_modes(patient, "stored")
    stored = np.array([patient.loss(batch) for batch in patient.batches])
    facts = []
    for way, change in ways.items():
        other = np.array([patient.loss(_changed(batch, place, change)) for batch in patient.batches])

        def share(rows: NDArray[np.int64], other: Array = other) -> float:
            return float((stored[rows].mean() - other[rows].mean()) / max(other[rows].mean(), LEAST_LOSS))

        low, high = bootstrap(share, len(stored), patient.seed)
        facts += [
            Fact(f"loss_{way}", float(other.mean()), place="loss", count=len(other)),
            Fact(
                f"excess_stored_over_{way}", share(np.arange(len(stored))), place="loss", count=len(stored), low=low,
                high=high, p_value=excess_test(stored - other),
            ),
        ]  # fmt: skip
    return facts
