"""Population statistics of batch norm, measured on data instead of averaged along the training."""

import math
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
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
from bnprobe.remedies.pooling import Pool, in_a_job, pool_over_ranks, smallest_over_ranks
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
    in eval mode; fvcore's PreciseBN and ``update_bn`` let the layers before normalize by the batch. That takes a pass a
    layer (up to that layer only, half of it on average) and one that confirms. With fewer ``passes`` so many layers are
    exact, and those behind are measured as PreciseBN does, which is right where batches are large and random.
    **One batch that holds all samples is exact in one pass**: where memory allows, ``[torch.cat(...)]`` is the quickest
    loader (``passes=1``).

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
        passes: over the batches. Default: until all layers are exact and one pass changes nothing beyond the tolerance;
            20 more where a layer is called several times, and so may feed itself.
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
        UserWarning: inputs that are not finite; a variance that the buffers' dtype cannot hold; not settled after
            all passes (a layer that feeds itself and does not converge, or a forward that is another one each time).
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
        while not settled and work.passes < (passes or len(chosen) + 1 + work.repeats * _REPEATS):
            origin.streams.restore()
            work.run(whole=passes is not None or in_a_job())  # sharded modules want their forwards to end
            settled = bool(work.changes) and max(work.changes.values()) <= tolerance
        after = {name: _statistics(layer) for name, layer in chosen.items()}
    done, why = _judge(chosen, work, before, after)
    for one in done:
        _replace(chosen[one.name], after[one.name], one.calls - one.skipped)
    result = Recalibration(done, {**left, **why}, work.passes, settled, tolerance, work.batches)
    _warn(result, why, passes)
    return result


class _Work:
    """Passes over the batches, each of which makes one more layer exact.

    In a pass, layers that are exact hold still, and the others normalize by the batch, as in training. So the first of
    them in the order of calls, whose input depends on none of the others, gets its exact statistics. To let the others
    normalize by what the pass before found would be quicker in a shallow net, and grow out of all bounds in a deep
    one: each layer amplifies the misfit of the one before. When all are exact, a pass in which all hold still confirms
    it.

    Attributes:
        pools: of the last pass that measured the layer.
        changes: by layer, the largest d_mu or d_lv that a confirming pass still brought; empty before.
        passes: so far.
        batches: in the last pass.
        repeats: whether a layer is called several times in a forward.
    """

    def __init__(
        self, root: nn.Module, layers: dict[str, _BatchNorm], data: Batches, forward: Forward | None, ranks: bool
    ) -> None:
        self._root, self._layers, self._data, self._forward, self._ranks = root, layers, data, forward, ranks
        self._original = {name: _statistics(layer) for name, layer in layers.items()}
        self._order: list[str] = []  # of the first calls
        self._exact = 0  # so many of them
        self.pools: dict[str, Pool] = {}
        self.changes: dict[str, float] = {}
        self.passes = self.batches = 0
        self.repeats = False

    def run(self, whole: bool) -> None:
        """One pass, after which the layers hold what it found.

        Args:
            whole: whether layers that do not get exact yet are wanted as well.
        """
        confirming = self.passes > 0 and self._exact == len(self._order)
        last = None if whole or confirming or self._ranks or self.repeats or not self.passes else self._next()
        measured = [last] if last else [name for name in self._layers if confirming or not self._is_exact(name)]
        before = {name: _statistics(self._layers[name]) for name in measured}
        pools = {name: Pool(self._layers[name].num_features, before[name][0].device) for name in measured}
        self._run(pools, not confirming, last)
        for name, pool in pools.items():
            _put(self._layers[name], pool, self._original[name])
            if confirming:
                now = _statistics(self._layers[name])
                self.changes[name] = _largest(*_distances(before[name], now, self._layers[name].eps))
        self.pools.update(pools)
        self.passes += 1
        # Where there is but one batch, normalizing by the batch is normalizing by all values.
        self._exact = len(self._order) if self._alone_in_one_batch() else min(self._exact + 1, len(self._order))

    def _run(self, pools: dict[str, Pool], along: bool, last: str | None) -> None:
        error = None
        try:
            self._forwards(pools, along, last)
        except Exception as failure:
            if not self._ranks:
                raise
            error = failure
        if self._ranks:
            pool_over_ranks(list(pools.values()), error)
        if not self.passes and self._ranks:
            place = {name: index for index, name in enumerate(self._order)}
            never = len(self._layers)
            places = smallest_over_ranks([*(place.get(name, never) for name in self._layers), not self.repeats])
            self.repeats = not places.pop()
            ordered = sorted(zip(places, self._layers, strict=True))
            self._order = [name for index, name in ordered if index < never]

    def _forwards(self, pools: dict[str, Pool], along: bool, last: str | None) -> None:
        self.batches, first = 0, not self.passes
        listened = {name: self._layers[name] for name in pools}

        def see(name: str, index: int, x: Tensor) -> None:
            if first:
                self.repeats |= index > 0
                if name not in self._order:
                    self._order.append(name)
            own = pools[name].add(x)
            if name == last:
                raise _Reached
            if along:  # one value a channel has no variance of its own
                _put(self._layers[name], pools[name], self._original[name])
                _put(self._layers[name], own, _statistics(self._layers[name]))

        for batch in self._data:
            with suppress(_Reached), torch.no_grad(), inputs_at(listened, see):
                call(self._root, batch, self._forward)
            self.batches += 1
        if not self.batches and not self._ranks:
            raise ArgumentError("the loader has no batch")

    def _next(self) -> str:
        return self._order[self._exact]

    def _is_exact(self, name: str) -> bool:
        return name in self._order[: self._exact]

    def _alone_in_one_batch(self) -> bool:
        return self.batches == 1 and not self._ranks and not self.repeats


class _Reached(BaseException):
    """The rest of this forward is not needed."""


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
        change = work.changes.get(name, math.nan)
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
