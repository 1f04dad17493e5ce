"""How far padding moves the statistics of norm layers, and whether outputs depend on how much of it there is."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.outputs import calls_at
from bnprobe.hooks.sites import Site
from bnprobe.hooks.tensors import tensors_in, with_tensors
from bnprobe.measures.evidence.padding import Padding, find
from bnprobe.measures.evidence.patient import Patient, set_modes
from bnprobe.measures.evidence.pooling import install

__all__ = ["measure", "valid"]

PERMUTATIONS = 2000
_STOCK = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm)


def measure(patient: Patient) -> list[Fact]:
    """``padding_share``: of all positions.

    Of each layer whose statistics go over positions: ``padding_shift``, |mean of all - mean of valid positions| in
    standard deviations of the valid ones, and ``padding_log_variance``, |log of the variances' ratio| (medians over
    channels); and of batch norms ``padding_slope``, share of the variance of batches' means that the batches' share of
    padding explains, with its p-value by permutation of batches. ``padding_swap``: with batch statistics, change of
    the outputs of samples when their mates become those with most instead of those with least padding; in standard
    deviations of outputs. ``padding_extension``: with everything in evaluation, change of the outputs when a batch is
    padded on by half of its length, as a longer mate would make it.
    """
    padding = find(patient)
    facts = [Fact("padding_share", padding.share, place="input")]
    facts += _layers(patient, padding)
    facts += _swap(patient, padding)
    return facts + _extension(patient, padding)


def valid(x: Tensor, channel_axis: int, lengths: Tensor, size: int) -> Tensor | None:
    """Which positions of a layer's input are no padding, in its shape without the channels; None: no telling.

    Inputs may be coarser in time than the batch (strides), or have samples and positions in one axis.
    """
    rows = x.movedim(channel_axis, -1)
    samples = len(lengths)
    if rows.dim() == 2 and rows.shape[0] == samples * size:
        return (torch.arange(size) < lengths[:, None]).flatten()
    if rows.dim() < 3 or rows.shape[0] != samples:
        return None
    axes = [axis for axis in range(1, rows.dim() - 1) if rows.shape[axis] == size]
    if not axes and rows.dim() == 3 and 1 < rows.shape[1] < size:
        axes = [1]
    if not axes:
        return None
    axis, length = axes[0], rows.shape[axes[0]]
    kept = torch.arange(length) < torch.ceil(lengths[:, None] * length / size)
    shape = [samples, *[1] * (rows.dim() - 2)]
    shape[axis] = length
    return kept.view(shape).expand(rows.shape[:-1])


def _layers(patient: Patient, padding: Padding) -> list[Fact]:
    sites = {site.name: site for site in patient.norms if _goes_over_positions(site)}
    sums: dict[str, NDArray[np.float64]] = {}
    means: dict[str, dict[int, NDArray[np.float64]]] = {}
    number = 0

    def see(name: str, call: int, x: Tensor, _: object) -> None:
        axis = sites[name].channel_axis(x)
        if call or axis is None or not x.is_floating_point():
            return
        kept = valid(x, axis, padding.lengths[number], padding.sizes[number])
        if kept is None:
            return
        rows = x.detach().double().movedim(axis, -1)
        inside = rows[kept.to(x.device)]
        every = rows.flatten(0, -2)
        found = torch.cat([_sums(every), _sums(inside)]).cpu().numpy()
        sums[name] = sums[name] + found if name in sums and sums[name].shape == found.shape else found
        means.setdefault(name, {})[number] = every.mean(0).cpu().numpy()

    pooled = patient.pooled
    patient.origin.rewind()
    set_modes(patient, "stored")
    install(patient, pooled)
    for number, batch in enumerate(patient.batches):  # noqa: B007 - read by `see`
        with calls_at({name: site.module for name, site in sites.items()}, see), torch.no_grad():
            patient.run(batch)
    facts = []
    for name, found in sums.items():
        facts += _shift(name, found)
        if sites[name].family == "batch_norm":
            facts += _slope(name, means[name], padding, patient.seed)
    return facts


def _sums(rows: Tensor) -> Tensor:
    """Count, sum and sum of squares of ``[n, C]``, as ``[3, C]``."""
    return torch.stack([torch.full_like(rows.sum(0), len(rows)), rows.sum(0), rows.square().sum(0)])


def _goes_over_positions(site: Site) -> bool:
    """Layers of PyTorch's own: of others it is not known whether they leave padding out."""
    kind = type(site.module)
    if not kind.__module__.startswith("torch.nn.modules.") or not isinstance(site.module, _STOCK):
        return False
    return not isinstance(site.module, nn.LayerNorm) or len(site.module.normalized_shape) > 1


def _shift(name: str, sums: NDArray[np.float64]) -> list[Fact]:
    count, total, squares, inner, inner_total, inner_squares = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, inside = total / count, inner_total / inner
        variance, own = squares / count - mean**2, inner_squares / inner - inside**2
        shift = np.where(own > 0, np.abs(mean - inside) / np.sqrt(own), np.nan)
        stretch = np.where((own > 0) & (variance > 0), np.abs(np.log(variance / own)), np.nan)
    if not np.isfinite(shift).any():
        return []
    return [
        Fact("padding_shift", float(np.nanmedian(shift)), name, place="input", count=int(count[0]), channels=shift),
        Fact("padding_log_variance", float(np.nanmedian(stretch)), name, place="input", channels=stretch),
    ]


def _slope(name: str, means: dict[int, NDArray[np.float64]], padding: Padding, seed: int) -> list[Fact]:
    """R^2 of batches' means on their padding, all channels together."""
    if len(means) < 6:
        return []
    numbers = sorted(means)
    table = np.stack([means[one] for one in numbers])
    shares = np.array([1 - float(padding.lengths[one].double().mean()) / padding.sizes[one] for one in numbers])
    table = table - table.mean(0)
    scale = table.std(0)
    table = table[:, scale > 0] / scale[scale > 0]
    shares = shares - shares.mean()
    if not table.size or not np.square(shares).sum() > 0:
        return []
    shares /= np.sqrt(np.square(shares).sum())
    draw = np.random.default_rng(seed)

    def explained(order: NDArray[np.float64]) -> float:
        return float(np.square(order @ table).mean() / len(table))

    found = explained(shares)
    chance = sum(explained(draw.permutation(shares)) >= found for _ in range(PERMUTATIONS))
    p_value = (1 + chance) / (1 + PERMUTATIONS)
    return [Fact("padding_slope", found, name, place="input", count=len(numbers), p_value=p_value)]


def _swap(patient: Patient, padding: Padding) -> list[Fact]:
    """Samples of middling length between the shortest, and between the longest."""
    if not patient.batch_norms:
        return []
    shares = torch.cat([one / size for one, size in zip(padding.lengths, padding.sizes, strict=True)])
    sizes = set(padding.sizes)
    numbers = range(len(patient.batches)) if len(sizes) == 1 else [int(np.argmax(padding.sizes))]
    try:
        whole = patient.joined([patient.batches[number] for number in numbers])
    except NotMeasuredError:
        return []
    if len(sizes) > 1:
        shares = padding.lengths[numbers[0]] / padding.sizes[numbers[0]]
    order = shares.argsort()
    size = min(len(order) // 3, patient.samples(patient.batches[0]))
    if size < 2:
        return []
    middle = order[(len(order) - size) // 2 :][:size]
    patient.origin.rewind()
    set_modes(patient, "batch")
    few = middle[: max(1, size // 4)]
    rest = {"short": order[:size], "long": order[-size:]}
    outputs = {}
    for name, mates in rest.items():
        mates = mates[~torch.isin(mates, few)]
        outputs[name] = patient.outputs(patient.part(whole, torch.cat([few, mates])))[: len(few)]
    spread = float(patient.outputs(whole).std(0, correction=0).square().mean().sqrt())
    changes = (outputs["short"] - outputs["long"]).square().mean(1).sqrt()
    if not spread > 0:
        return []
    return [Fact("padding_swap", float(changes.median()) / spread, place="output", count=len(few))]


def _extension(patient: Patient, padding: Padding) -> list[Fact]:
    """The longest half on top, of the padding's own value; models of a fixed length cannot be asked."""
    number = max(range(len(patient.batches)), key=lambda one: patient.samples(patient.batches[one]))
    batch = patient.batches[number]
    tensors = [one for _, one in tensors_in(batch)]
    x = tensors[padding.place]
    short = int(padding.lengths[number].argmin())
    if int(padding.lengths[number][short]) >= padding.sizes[number]:
        return []
    last = x[short].select(padding.axis - 1, x.shape[padding.axis] - 1)
    size = max(1, x.shape[padding.axis] // 2)
    more = last.unsqueeze(padding.axis - 1).unsqueeze(0).expand(
        len(x), *[size if axis == padding.axis else x.shape[axis] for axis in range(1, x.dim())]
    )  # fmt: skip
    longer = with_tensors(batch, lambda one: torch.cat([x, more], padding.axis) if one is x else one)
    patient.origin.rewind()
    set_modes(patient, "stored")
    try:
        before, after = patient.outputs(batch), patient.outputs(longer)
    except Exception:  # it takes one length only, or has an output a position
        return []
    if before.shape != after.shape:
        return []
    spread = float(before.std(0, correction=0).square().mean().sqrt())
    change = float((after - before).square().mean(1).sqrt().median())
    return [Fact("padding_extension", change / spread, place="output", count=len(before))] if spread > 0 else []
