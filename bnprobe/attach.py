"""Attach a probe to a model: joins layers, statistics, schedule and store, and keeps the clock."""

import atexit
import os
import shutil
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from bnprobe.collect import UNMEASURABLE, Collector, Key
from bnprobe.errors import ArgumentError, BnprobeError
from bnprobe.hooks.sites import LayerChoice, Site, find_sites, unwrap
from bnprobe.hooks.taps import OptimizerTaps, Taps
from bnprobe.listen import Reader
from bnprobe.records import DEFAULT_LEVELS, Layer
from bnprobe.schedule import Schedule, as_schedule
from bnprobe.statistics import Gradients, Moments, Quantiles, RunningGap, Saturation, Statistic
from bnprobe.statistics.sample import Sampler
from bnprobe.statistics.weights import LearningRates, WeightNorms
from bnprobe.store import Run, Writer

__all__ = ["Probe", "attach"]

# A flush costs a few milliseconds whatever it writes; these keep it rare and what a kill can take small (ours).
_FLUSH_STEPS, _FLUSH_BYTES, _FLUSH_SECONDS = 64, 8 * 2**20, 10.0


def attach(
    model: nn.Module,
    *statistics: Statistic,
    layers: LayerChoice = None,
    every: int | Schedule = 1,
    optimizer: torch.optim.Optimizer | None = None,
    out: str | os.PathLike[str] | None = None,
    start: int | None = None,
    sample: int = 2048,
    seed: int = 0,
) -> "Probe":
    """Listen to a model while it trains, without changing what it does.

    Args:
        model: any module; DDP, FSDP and compiled wrappers are looked through.
        statistics: instances from :mod:`bnprobe.statistics`; none given: ``Moments``, ``Quantiles``, ``Gradients``,
            ``RunningGap`` and ``Saturation`` with their defaults.
        layers: None for every normalization layer and every other leaf with parameters or a pointwise nonlinearity;
            else glob(s) on ``named_modules()`` paths, module class(es), or ``(name, module) -> bool``.
        every: record every so many steps, or a schedule ``step -> bool`` (:mod:`bnprobe.schedule`).
        optimizer: its ``step()`` ends a step and its learning rates are recorded. Without it ``probe.step()`` ends a
            step; without either, a training-mode forward of the model begins the next one.
        out: run directory, made if need be; an existing run is resumed. None: a temporary directory that lives as
            long as the run object, so that memory does not grow.
        start: number of the first step; None: 0, or where a resumed run ended.
        sample: values looked at in a tensor where a statistic samples.
        seed: of the sampled positions; no global random stream is used.

    Returns:
        The attached probe; as a context manager it detaches and flushes at the end, also after an exception.

    Raises:
        ArgumentError: an argument is not usable.
        SelectionError: ``layers`` chooses nothing.
        RunBusyError, RunError: ``out`` is in use, or is no run directory.
    """
    _check(model, statistics, optimizer, sample)
    chosen = statistics or (Moments(), Quantiles(), Gradients(), RunningGap(), Saturation())
    return Probe(
        unwrap(model), chosen, find_sites(model, layers), as_schedule(every), optimizer, out, start, sample, seed
    )


class Probe:
    """A model being listened to; made by :func:`attach`.

    Attributes:
        attached: whether it still listens.
    """

    def __init__(
        self,
        root: nn.Module,
        statistics: Sequence[Statistic],
        sites: Sequence[Site],
        schedule: Schedule,
        optimizer: torch.optim.Optimizer | None,
        out: str | os.PathLike[str] | None,
        start: int | None,
        sample: int,
        seed: int,
    ) -> None:
        self._sites, self._schedule, self._optimizer = list(sites), schedule, optimizer
        self._sampler, self._collector = Sampler(sample, seed), Collector(statistics)
        gaps = any(isinstance(statistic, RunningGap) for statistic in statistics)
        self._reader = Reader(self._sampler, self._collector, gaps, self._forward_begins)
        self._weights = WeightNorms(sites) if any(isinstance(one, Gradients) for one in statistics) else None
        self._rates = LearningRates(sites, optimizer) if optimizer is not None else None
        self._inventory: list[Layer] = []
        self._pid = os.getpid()
        self._by_hand = self._trained = False
        self._unwritten_steps, self._last_flush = 0, time.monotonic()
        path = Path(out if out is not None else tempfile.mkdtemp(prefix="bnprobe-"))
        self._writer = Writer(
            path,
            settings=_settings(statistics, schedule, optimizer, sample, seed),
            layers=[site.describe() for site in sites],
            levels=next((one.levels for one in statistics if isinstance(one, Quantiles)), DEFAULT_LEVELS),
            start=start,
        )
        self._run = Run(path)
        if out is None:
            weakref.finalize(self._run, shutil.rmtree, path, ignore_errors=True)
        self._reader.now = self._writer.first_step
        self._reader.recording = bool(schedule(self.now))
        self.attached = True
        with self._detached_on_error():
            self._taps = self._reader.taps = Taps(sites, root, self._reader)
            self._optimizer_taps = (
                OptimizerTaps(optimizer, self._before_update, self._tick) if optimizer is not None else None
            )
        atexit.register(self.detach)

    @property
    def now(self) -> int:
        """Number of the current step."""
        return self._reader.now

    @property
    def run(self) -> Run:
        """Everything recorded so far.

        Asked for in the middle of a step, it ends that step's records: what the step brings later is recorded beside.
        """
        if self.attached:
            self.flush()
        return self._run

    def step(self) -> None:
        """A training step is over; for loops whose optimizer the probe was not given. Call it from the first step on.

        Raises:
            BnprobeError: the probe was given an optimizer, which keeps the clock, or it is detached.
        """
        if self._optimizer is not None:
            raise BnprobeError("probe.step() is for probes without an optimizer; this one's optimizer keeps the clock")
        if not self.attached:
            raise BnprobeError("probe.step() after detach(): the probe no longer listens")
        self._by_hand = True
        self._before_update()
        self._tick()

    def flush(self) -> None:
        """Write what has been seen to the run directory."""
        if len(self._collector):
            with torch.no_grad():
                self._writer.append(self._collector.table())
        for name, reason in self._collector.failures.items():
            warnings.warn(
                f"bnprobe could not finish {name}: {reason}; its values are missing", RuntimeWarning, stacklevel=2
            )
        self._collector.failures.clear()
        self._update_inventory()
        self._sampler.renew()
        self._unwritten_steps, self._last_flush = 0, time.monotonic()

    def detach(self) -> None:
        """Stop listening, write what is left, and close the run; doing it twice does no harm."""
        if not self.attached or os.getpid() != self._pid:  # a forked child (a data loader's worker) ends nothing
            return
        self.attached = self._reader.recording = False
        atexit.unregister(self.detach)
        self._let_go()
        try:
            self.flush()
        finally:
            self._writer.close(next_step=self.now)

    def __enter__(self) -> "Probe":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        state = "attached" if self.attached else "detached"
        return f"Probe({state}, {len(self._sites)} layers, step {self.now}, {str(self._run.path)!r})"

    # The clock.

    def _forward_begins(self, training: bool) -> None:
        """Without an optimizer and without ``step()``, a training forward begins the next step."""
        if training and self._optimizer is None and not self._by_hand:
            if self._trained:
                self._tick()
            self._trained = True

    def _before_update(self) -> None:
        """The gradients are final: read the weights' norms and the learning rates."""
        if not self._reader.recording:
            return
        try:
            self._read_weights()
        except UNMEASURABLE as error:
            self._reader.warn_once(f"bnprobe could not read the weights: {error}")

    def _read_weights(self) -> None:
        for name, rate in self._rates.read() if self._rates else ():
            self._collector.add_numbers(Key(self.now, "train", name, 0, "weight"), {"learning_rate": rate})
        if self._weights is not None:
            for name, numbers in self._weights.read():
                self._collector.add_numbers(Key(self.now, "train", name, 0, "weight"), numbers)

    def _tick(self) -> None:
        self._taps.step_done()
        if self._reader.recording:
            self._unwritten_steps += 1
            late = time.monotonic() - self._last_flush > _FLUSH_SECONDS
            if late or self._unwritten_steps >= _FLUSH_STEPS or self._collector.bytes >= _FLUSH_BYTES:
                self._flush_or_warn()
        self._reader.now += 1
        self._reader.recording = self.attached and bool(self._schedule(self.now))

    # Housekeeping.

    def _flush_or_warn(self) -> None:
        """In the middle of somebody's training a full disk is told, not raised; asked for, :meth:`flush` raises."""
        try:
            self.flush()
        except Exception as error:  # whatever it is, it is not worth somebody's training
            message = (
                f"bnprobe could not write to {str(self._run.path)!r}: {error}; records up to step {self.now} are lost"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            self._unwritten_steps, self._last_flush = 0, time.monotonic()

    def _update_inventory(self) -> None:
        inventory = [
            site.describe(
                feeds=self._taps.flow.edges.get(site.name, ()),
                observed=site.name in self._reader.observed,
                why=self._reader.why.get(site.name, self._taps.why_silent(site, site.name in self._reader.observed)),
            )
            for site in self._sites
        ]
        if inventory != self._inventory:
            self._inventory = inventory
            self._writer.update_layers(inventory)

    @contextmanager
    def _detached_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.attached = False
            self._let_go()
            self._writer.close()
            raise

    def _let_go(self) -> None:
        for taps in (getattr(self, "_taps", None), getattr(self, "_optimizer_taps", None)):
            if taps is not None:
                taps.remove()


def _check(model: Any, statistics: Sequence[Any], optimizer: Any, sample: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    for one in statistics:
        if isinstance(one, type) and issubclass(one, Statistic):
            raise ArgumentError(f"statistics are instances: write {one.__name__}(), not {one.__name__}")
        if not isinstance(one, Statistic):
            raise ArgumentError(f"statistics must come from bnprobe.statistics; got {one!r}")
    kinds = [type(one).__name__ for one in statistics]
    if len(set(kinds)) < len(kinds):
        raise ArgumentError(f"each statistic may be given once; got {', '.join(kinds)}")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentError(f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}")
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 2:
        raise ArgumentError(f"sample must be an int of at least 2; got {sample!r}")


def _settings(
    statistics: Sequence[Statistic],
    schedule: Schedule,
    optimizer: torch.optim.Optimizer | None,
    sample: int,
    seed: int,
) -> dict[str, Any]:
    quantiles = next((one for one in statistics if isinstance(one, Quantiles)), None)
    return {
        "statistics": [repr(one) for one in statistics],
        "every": _name(schedule),
        "optimizer": type(optimizer).__name__ if optimizer is not None else None,
        "sample": sample,
        "seed": seed,
        "quantile_channels": list(quantiles.channels) if quantiles else [],
    }


def _name(schedule: Callable[[int], bool]) -> str:
    return getattr(schedule, "__qualname__", None) or repr(schedule)
