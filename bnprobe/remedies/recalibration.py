"""Population statistics of batch norm, measured on data instead of averaged along the training."""

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.hooks.outputs import inputs_at
from bnprobe.hooks.sites import LayerChoice, unwrap
from bnprobe.measures.untouched import untouched
from bnprobe.remedies.batch_norms import batch_norms
from bnprobe.remedies.calling import Batches, Forward, call, evaluating
from bnprobe.remedies.freezing import is_frozen
from bnprobe.remedies.pooling import Pool, in_a_job, pool_over_ranks
from bnprobe.remedies.recalibrated import RecalibratedLayer, Recalibration

__all__ = ["recalibrate"]

_BATCHES = 200  # of fvcore's PreciseBN
_TOLERANCE = 1e-4  # ours: the sampling error of 10^8 independent values
_REPEATS = 20  # ours: passes more where layers are called again, and may feed themselves
Statistics = tuple[Tensor, Tensor]


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    batches: int | None = _BATCHES,
    forward: Forward | None = None,
    layers: LayerChoice = None,
    passes: int | None = None,
    tolerance: float = _TOLERANCE,
    frozen: bool = False,
    alone: bool = False,
) -> Recalibration:
    r"""Give batch norm layers the mean and variance of all values that they meet on these batches, in place.

    Mean and unbiased variance are those of all values of all batches together:

    .. math:: \mu = \frac1M \sum_b m_b \mu_b, \qquad
        \sigma^2 = \frac1{M - 1} \sum_b m_b \left(\sigma_b^2 + (\mu_b - \mu)^2\right)

    so it does not matter how samples are put into batches. An average of the batches' own variances, as
    ``torch.optim.swa_utils.update_bn`` and the running average of training have it, lacks the second part: batches
    sorted by class make it too small.

    Each layer's statistics are those of its input where all layers before it normalize by theirs already, as they will
    in eval mode; fvcore's PreciseBN and ``update_bn`` let the layers before normalize by the batch. The first pass
    lets each layer normalize by the values that it has met so far, each further pass by the statistics that the pass
    before found. Pass k settles the k-th layer at the latest: a chain of L layers is exact after L passes, usually to
    the tolerance earlier. Where a layer feeds itself there may be 20 passes more.

    Only ``running_mean``, ``running_var`` and ``num_batches_tracked`` (the calls that count) of the chosen layers
    change, in place; momentum is as before. Dropout is off meanwhile, whatever the mode. Where anything raises, nothing
    changes. A call of a layer whose input has a mean or variance that is not finite is left out of that layer's
    statistics, with a warning.

    In a job of several processes (``torch.distributed`` initialised) the values of all are pooled, and **every process
    has to call it**; the numbers of batches may differ.

    Sources: Wu and Johnson 2021, *Rethinking "Batch" in BatchNorm*, section 3 (population statistics instead of a
    running average); Ioffe and Szegedy 2015, algorithm 2 (unbiased variance). Layer by layer is ours.

    Args:
        model: any module, in any mode; wrappers (DDP, compiled, ...) are looked through.
        loader: an iterable of batches: tensors, ``(x, y)`` of which x is the input, mappings (keyword arguments where
            the model takes them). One that can be read once is right. For more than one pass its batches are kept.
        batches: how many at most; None: all. Default 200, as in fvcore's PreciseBN. Wu and Johnson find
            10^3 to 10^4 samples enough.
        forward: ``(model, batch) -> anything``, how the model (without wrappers) is called instead.
        layers: which; default all with running statistics. Else as in :func:`bnprobe.attach`; batch norm layers among
            the chosen count.
        passes: over the batches. Default: until one changes nothing beyond the tolerance.
        tolerance: as a share of a standard deviation (mean) and of the variance. Default 1e-4, ours: far below what
            sampling leaves.
        frozen: whether layers are included that do not learn statistics in training either: in eval mode inside of a
            model in training mode, or held by :func:`freeze`.
        alone: do not pool over the processes of a job.

    Returns:
        What changed, layer by layer, and which layers were left alone for which reason.

    Raises:
        ArgumentError: an argument is not usable; the loader has no batch; a layer chosen by name or class keeps no
            running statistics; a lazy layer has not run yet.
        SelectionError: no batch norm layer is chosen.
        NotMeasuredError: another process of the job failed.

    Warns:
        UserWarning: inputs that are not finite; a variance that the buffers' dtype cannot hold; not settled although
            there were more passes than layers (a layer that feeds itself and does not converge, or a forward that is
            another one each time).
    """
    for name, count in (("batches", batches), ("passes", passes)):
        if count is not None and count < 1:
            raise ArgumentError(f"{name} must be at least 1 or None; got {count!r}")
    if not tolerance >= 0:
        raise ArgumentError(f"tolerance must not be negative; got {tolerance!r}")
    root = unwrap(model)
    chosen, left = _choose(root, layers, frozen)
    before = {name: _statistics(layer) for name, layer in chosen.items()}
    with untouched(root) as origin, evaluating(root):
        work = _Work(root, chosen, Batches(loader, batches, passes != 1), forward, in_a_job() and not alone)
        settled = not chosen
        while not settled and work.passes < (passes or len(chosen) + 2 + work.repeats * _REPEATS):
            origin.streams.restore()
            work.run()
            settled = work.passes > 1 and work.largest_change() <= tolerance
        after = {name: _statistics(layer) for name, layer in chosen.items()}
    done, why = _judge(chosen, work, before, after)
    for one in done:
        _replace(chosen[one.name], after[one.name], one.calls - one.skipped)
    result = Recalibration(done, {**left, **why}, work.passes, settled, tolerance, work.batches)
    _warn(result, why, passes)
    return result


class _Work:
    """Passes over the batches.

    Attributes:
        pools: of the last pass, by layer.
        changes: by layer, the largest d_mu or d_lv of the last pass.
        passes: so far.
        batches: in the last pass.
        repeats: whether a layer is called several times in a forward.
    """

    def __init__(
        self, root: nn.Module, layers: dict[str, _BatchNorm], data: Batches, forward: Forward | None, ranks: bool
    ) -> None:
        self._root, self._layers, self._data, self._forward, self._ranks = root, layers, data, forward, ranks
        self._original = {name: _statistics(layer) for name, layer in layers.items()}
        self.pools: dict[str, Pool] = {}
        self.changes: dict[str, float] = {}
        self.passes = self.batches = 0
        self.repeats = False

    def run(self) -> None:
        """One pass, after which the layers hold what it found."""
        self.pools = {name: Pool(layer.num_features, _mean_of(layer).device) for name, layer in self._layers.items()}
        before = {name: _statistics(layer) for name, layer in self._layers.items()}
        error = None
        try:
            self._forwards()
        except Exception as failure:
            if not self._ranks:
                raise
            error = failure
        if self._ranks:
            self.repeats = pool_over_ranks(list(self.pools.values()), error, self.repeats)
        for name, layer in self._layers.items():
            _put(layer, self.pools[name], self._original[name])
            self.changes[name] = _largest(*_distances(before[name], _statistics(layer), layer.eps))
        self.passes += 1

    def largest_change(self) -> float:
        """Of all layers."""
        return max(self.changes.values())

    def _forwards(self) -> None:
        self.batches = 0

        def see(name: str, index: int, x: Tensor) -> None:
            self.repeats |= index > 0
            self.pools[name].add(x)
            if not self.passes:
                _put(self._layers[name], self.pools[name], self._original[name])

        for batch in self._data:
            with torch.no_grad(), inputs_at(self._layers, see):
                call(self._root, batch, self._forward)
            self.batches += 1
        if not self.batches and not self._ranks:
            raise ArgumentError("the loader has no batch")


def _choose(root: nn.Module, layers: LayerChoice, frozen: bool) -> tuple[dict[str, _BatchNorm], dict[str, str]]:
    """Layers to be recalibrated, and why others are not."""
    chosen, left = {}, {}
    for name, layer in batch_norms(root, layers).items():
        if layer.running_mean is None or layer.running_var is None:
            left[name] = "it keeps no running statistics (track_running_stats=False)"
            if layers is not None:
                raise ArgumentError(f"layers chooses {name!r}, but {left[name]}")
        elif not frozen and (is_frozen(layer) or (root.training and not layer.training)):
            left[name] = "frozen; frozen=True includes it"
        else:
            chosen[name] = layer
    return chosen, left


def _judge(
    layers: dict[str, _BatchNorm], work: _Work, before: dict[str, Statistics], after: dict[str, Statistics]
) -> tuple[tuple[RecalibratedLayer, ...], dict[str, str]]:
    done, left = [], {}
    for name, layer in layers.items():
        pool = work.pools[name]
        calls, skipped, values = (int(one.item()) for one in (pool.calls, pool.skipped, pool.count))
        why = _why_left(layer, pool, calls, skipped, values)
        if why:
            left[name] = why
            continue
        d_mu, d_lv = (one.numpy() for one in _distances(before[name], after[name], layer.eps))
        change = work.changes[name] if work.passes > 1 else math.nan
        done.append(RecalibratedLayer(name, d_mu, d_lv, change, values, calls, skipped))
    return tuple(done), left


def _why_left(layer: _BatchNorm, pool: Pool, calls: int, skipped: int, values: int) -> str:
    if not calls:
        return "it was not called"
    if calls == skipped:
        return f"none of its {calls} inputs is finite"
    if values < 2:
        return "one value a channel has no variance"
    if not _fits(layer, pool):
        return f"its mean or variance is too large for {_mean_of(layer).dtype}"
    return ""


def _warn(result: Recalibration, why: Mapping[str, str], passes: int | None) -> None:
    skipped = [f"{one.name} ({one.skipped} of {one.calls})" for one in result.layers if one.skipped]
    if skipped:
        warnings.warn(f"calls with inputs that are not finite were left out: {', '.join(skipped)}", stacklevel=3)
    if why:
        told = "; ".join(f"{name!r}: {reason}" for name, reason in why.items())
        warnings.warn(f"layers were left as they were: {told}", stacklevel=3)
    if passes is None and not result.settled:
        largest = max((one.change for one in result.layers), default=math.nan)
        warnings.warn(
            f"statistics still change by {largest:.2g} after {result.passes} passes (tolerance {result.tolerance:g})",
            stacklevel=3,
        )


def _mean_of(layer: _BatchNorm) -> Tensor:
    if layer.running_mean is None:
        raise NotMeasuredError("a layer lost its running statistics in the forward")
    return layer.running_mean


def _var_of(layer: _BatchNorm) -> Tensor:
    if layer.running_var is None:
        raise NotMeasuredError("a layer lost its running statistics in the forward")
    return layer.running_var


def _statistics(layer: _BatchNorm) -> Statistics:
    """Copies of what it holds."""
    return _mean_of(layer).detach().clone(), _var_of(layer).detach().clone()


def _put(layer: _BatchNorm, pool: Pool, original: Statistics) -> None:
    """What the pool found, where that is something, else the original; without waiting for the device."""
    found = (_mean_of(layer), pool.mean), (_var_of(layer), pool.variance())
    fits = _fits(layer, pool).to(_mean_of(layer).device)
    for (buffer, values), otherwise in zip(found, original, strict=True):
        _write(buffer, torch.where(fits, values.to(buffer.dtype).to(buffer.device), otherwise))


def _fits(layer: _BatchNorm, pool: Pool) -> Tensor:
    """Whether there are mean and variance, finite as the layer stores them."""
    mean, variance = pool.mean.to(_mean_of(layer).dtype), pool.variance().to(_var_of(layer).dtype)
    return (mean.isfinite() & variance.isfinite()).all() & (pool.count > 1)


def _replace(layer: _BatchNorm, statistics: Statistics, calls: int) -> None:
    _write(_mean_of(layer), statistics[0])
    _write(_var_of(layer), statistics[1])
    if layer.num_batches_tracked is not None:
        _write(layer.num_batches_tracked, torch.tensor(calls))


def _write(buffer: Tensor, values: Tensor) -> None:
    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
        buffer.copy_(values)


def _distances(old: Statistics, new: Statistics, eps: float) -> Statistics:
    """d_mu and d_lv of each channel, in float64 on the host; inf where there is no number."""
    (mean, variance), (new_mean, new_variance) = (
        tuple(one.to("cpu").to(torch.float64) for one in pair) for pair in (old, new)
    )
    d_mu = torch.where(mean == new_mean, 0.0, (mean - new_mean).abs() / (new_variance + eps).sqrt())
    d_lv = torch.where(variance == new_variance, 0.0, ((variance + eps) / (new_variance + eps)).log().abs())
    return torch.where(d_mu.isfinite(), d_mu, torch.inf), torch.where(d_lv.isfinite(), d_lv, torch.inf)


def _largest(*distances: Tensor) -> float:
    return max(float(one.max()) for one in distances)
