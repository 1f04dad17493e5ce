"""Attach a probe to a model: joins layers, statistics, schedule and store, and keeps the clock."""

import atexit
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from bnprobe.arguments import as_tuple, check, describe
from bnprobe.collect import UNMEASURABLE, Collector
from bnprobe.errors import BnprobeError
from bnprobe.hooks.scaling import SCALED, Scaling, stepped_by_a_scaler
from bnprobe.hooks.sites import LayerChoice, Site, find_sites, unwrap
from bnprobe.hooks.taps import OptimizerTaps, Taps
from bnprobe.listen import Reader
from bnprobe.measuring import Measurer
from bnprobe.ranks import leads, open_outlet, seed_of_rank
from bnprobe.records import DEFAULT_LEVELS, Layer
from bnprobe.schedule import Schedule, as_schedule
from bnprobe.statistics import Gradients, Measurement, Moments, Quantiles, RunningGap, Saturation, Statistic, Track
from bnprobe.statistics.sample import Sampler
from bnprobe.statistics.weights import LearningRates, WeightNorms, by_holder
from bnprobe.store import Run, Writer
from bnprobe.tracking import Trackers

__all__ = ["Probe", "attach"]

# A flush costs a few milliseconds whatever it writes; these keep it rare and what a kill can take small (ours).
_FLUSH_STEPS, _FLUSH_BYTES, _FLUSH_SECONDS = 64, 8 * 2**20, 10.0


def attach(
    model: nn.Module,
    *statistics: Statistic | Measurement | Track,
    layers: LayerChoice = None,
    every: int | Schedule = 1,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    scaler: torch.amp.GradScaler | None = None,
    out: str | os.PathLike[str] | None = None,
    start: int | None = None,
    sample: int = 2048,
    seed: int = 0,
) -> "Probe":
    """Listen to a model while it trains, without changing what it does.

    In a job of several processes (``torch.distributed``) every rank attaches with the same arguments and rank 0
    records what all of them saw; ``count`` tells how much went in. A rank whose ``out`` or settings differ, or that
    attaches alone, has a record of its own and says so.

    Args:
        model: any module; DDP, FSDP and compiled wrappers are looked through.
        statistics: instances from :mod:`bnprobe.statistics`; none given: ``Moments``, ``Quantiles``, ``Gradients``,
            ``RunningGap`` and ``Saturation`` with their defaults. Measurements among them (``Spectra``) run passes of
            their own, and tracks (``WeightScale``) follow weights, at the steps that their own schedules name.
        layers: None for every normalization layer and every other leaf with parameters or a pointwise nonlinearity;
            else glob(s) on ``named_modules()`` paths, module class(es), or ``(name, module) -> bool``.
        every: record every so many steps, or a schedule ``step -> bool`` (:mod:`bnprobe.schedule`).
        optimizer: its ``step()`` ends a step and its learning rates are recorded. Of several, the ``step()`` of the
            last ends a step, and each layer's weights are read when the optimizer that holds them steps. Without it
            ``probe.step()`` ends a step; without either, a training-mode forward of the model begins the next one.
        scaler: the loop's gradient scaler: gradients are recorded divided by its scale, and a step that it skips ends
            as well. Without it they are recorded as they come, multiplied by the scale, which ``run.layers`` says.
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
    optimizers = as_tuple(optimizer)
    check(model, statistics, optimizers, scaler, sample)
    chosen = statistics or (Moments(), Quantiles(), Gradients(), RunningGap(), Saturation())
    return Probe(
        unwrap(model),
        chosen,
        partial(find_sites, model, layers),
        as_schedule(every),
        optimizers,
        scaler,
        out,
        start,
        sample,
        seed,
    )


class Probe:
    """A model being listened to; made by :func:`attach`.

    Attributes:
        attached: whether it still listens.
    """

    def __init__(
        self,
        root: nn.Module,
        statistics: Sequence[Statistic | Measurement | Track],
        find: Callable[[], list[Site]],
        schedule: Schedule,
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler | None,
        out: str | os.PathLike[str] | None,
        start: int | None,
        sample: int,
        seed: int,
    ) -> None:
        self._find, self._schedule, self._optimizers = find, schedule, tuple(optimizers)
        sites = self._sites = find()
        measurements = [one for one in statistics if isinstance(one, Measurement)]
        self._sampler = Sampler(sample, seed_of_rank(seed))
        self._collector = Collector([one for one in statistics if isinstance(one, Statistic)])
        self._measurer = Measurer(measurements, root, sites, self._optimizers, self._collector)
        tracks = [one for one in statistics if isinstance(one, Track)]
        self._trackers = Trackers(tracks, root, sites, self._optimizers, self._collector)
        gaps = any(isinstance(statistic, RunningGap) for statistic in statistics)
        self._reader = Reader(self._sampler, self._collector, gaps, self._forward_begins)
        norms = any(isinstance(one, Gradients) for one in statistics)
        self._weights = [WeightNorms(some) for some in by_holder(sites, self._optimizers)] if norms else []
        self._rates = [LearningRates(sites, optimizer) for optimizer in self._optimizers]
        self._scaling = Scaling(scaler, next(reversed(self._optimizers), None)) if scaler is not None else None
        self._reader.scaling = self._scaling
        self._inventory: list[Layer] = []
        self._graded: set[str] = set()
        self._scaled = False
        self._late: list[Site] = []
        self._pid = os.getpid()
        self._by_hand = self._trained = False
        self._unwritten_steps, self._last_flush = 0, time.monotonic()
        settings = describe(statistics, schedule, self._optimizers, sample, seed)
        layers = [site.describe() for site in (*sites, *self._others)]
        levels = next((one.levels for one in statistics if isinstance(one, Quantiles)), DEFAULT_LEVELS)

        def open_writer(path: Path, more: Mapping[str, Any]) -> Writer:
            return Writer(path, settings={**settings, **more}, layers=layers, levels=levels, start=start)

        self._outlet = open_outlet(out, open_writer, {**settings, "levels": levels}, [one.name for one in layers])
        self._measurer.enabled = self._trackers.enabled = leads(self._outlet)
        self._reader.now = self._outlet.first_step
        self._reader.recording = bool(schedule(self.now))
        self.attached = True
        with self._detached_on_error():
            self._taps = self._reader.taps = Taps(sites, root, self._reader)
            self._optimizer_taps = [self._tap(i) for i in range(len(self._optimizers))]
        atexit.register(self.detach)

    @property
    def now(self) -> int:
        """Number of the current step."""
        return self._reader.now

    @property
    def run(self) -> Run:
        """Everything recorded so far.

        Asked for in the middle of a step, it ends that step's records: what the step brings later is recorded beside.
        In a job of several processes it has the steps that all of them have completed and reported, which they do now
        and then, at :meth:`flush` and at :meth:`detach`.

        Raises:
            RunError: rank 0 records what this rank sees, in a directory that cannot be read from here.
        """
        if self.attached:
            self.flush()
        return self._outlet.run

    def step(self) -> None:
        """A training step is over; for loops whose optimizer the probe was not given. Call it from the first step on.

        Raises:
            BnprobeError: the probe was given an optimizer, which keeps the clock, or it is detached.
        """
        if self._optimizers:
            raise BnprobeError("probe.step() is for probes without an optimizer; this one's optimizer keeps the clock")
        if not self.attached:
            raise BnprobeError("probe.step() after detach(): the probe no longer listens")
        self._by_hand = True
        self._before_update()
        self._tick()

    def flush(self) -> None:
        """Write what has been seen to the run directory; in a job of several processes, or report it to rank 0."""
        self._flush(complete=self.now - 1)

    def _flush(self, complete: int) -> None:
        self._trackers.collect()
        with torch.no_grad():
            self._outlet.write(self._collector, complete)
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
        self._end_skipped()
        self.attached = self._reader.recording = False
        atexit.unregister(self.detach)
        self._let_go()
        try:
            self._late = self._added()
            self.flush()
        finally:
            self._trackers.end()
            self._outlet.close(next_step=self.now)

    def __enter__(self) -> "Probe":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        state = "attached" if self.attached else "detached"
        return f"Probe({state}, {len(self._sites)} layers, step {self.now}, {str(self._outlet.path)!r})"

    # The clock.

    def _forward_begins(self, training: bool) -> None:
        """Without an optimizer and without ``step()``, a training forward begins the next step."""
        self._end_skipped()
        if training and not self._optimizers and not self._by_hand:
            if self._trained:
                self._tick()
            self._trained = True

    def _end_skipped(self) -> None:
        """A step that the scaler skipped, because of an overflow, is over as well."""
        if self._scaling is not None and self._scaling.skipped():
            self._tick()

    def _tap(self, index: int) -> OptimizerTaps:
        return OptimizerTaps(
            self._optimizers[index], partial(self._update_begins, index), partial(self._updated, index)
        )

    def _update_begins(self, index: int, closure: bool) -> None:
        """An optimizer is about to step; with a closure, its gradients are still to come."""
        if index == len(self._optimizers) - 1:
            self._end_skipped()
        self._trackers.before(self.now, index, closure)
        if not closure:
            self._before_update(index)

    def _updated(self, index: int, closure: bool) -> None:
        """An optimizer has stepped."""
        if closure:
            self._before_update(index)
        self._trackers.after(self.now, index)
        if index == len(self._optimizers) - 1:
            if self._scaling is not None:
                self._scaling.stepped()
            self._tick()

    def _before_update(self, index: int = 0) -> None:
        """The gradients are final: read the weights' norms and the learning rates."""
        if index == len(self._optimizers) - 1:
            self._measurer.take(self.now)
        if not self._reader.recording:
            return
        self._scaled = self._scaled or (self._scaling is None and stepped_by_a_scaler())
        try:
            self._read_weights(index)
        except UNMEASURABLE as error:
            self._reader.warn_once(f"bnprobe could not read the weights: {error}")

    def _read_weights(self, index: int) -> None:
        if self._rates:
            self._collector.add_numbers(self.now, "learning_rate", *self._rates[index].read())
        if self._weights:
            scale = getattr(self._optimizers[index], "grad_scale", None) if self._optimizers else None
            for name, layers, values in self._weights[index].read(scale):
                self._collector.add_numbers(self.now, name, layers, values)
                if name == "grad_norm":
                    self._graded.update(layers)

    def _tick(self) -> None:
        self._measurer.take(self.now)
        if not self._optimizers:
            self._trackers.ended(self.now)
        self._taps.step_done()
        if self._reader.recording or self._measurer.took(self.now) or self._trackers.took(self.now):
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
            self._flush(complete=self.now)
        except Exception as error:  # whatever it is, it is not worth somebody's training
            where = str(self._outlet.path)
            message = f"bnprobe could not write to {where!r}: {error}; records up to step {self.now} are lost"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            self._unwritten_steps, self._last_flush = 0, time.monotonic()

    def _update_inventory(self) -> None:
        inventory = [
            site.describe(
                feeds=self._taps.flow.edges.get(site.name, ()),
                observed=site.name in self._reader.observed,
                why=self._why(site),
            )
            for site in self._sites
        ]
        inventory += [
            site.describe(
                observed=site.name in self._measurer.measured | self._trackers.measured,
                why="; ".join(one for one in (self._measurer.why(site.name), self._trackers.why(site.name)) if one),
            )
            for site in self._others
        ]
        inventory += [site.describe(why="it was added after attaching") for site in self._late]
        if inventory != self._inventory:
            self._inventory = inventory
            self._outlet.update_layers(inventory)

    @property
    def _others(self) -> list[Site]:
        """Layers that are measured and not listened to."""
        return list({site.name: site for site in (*self._measurer.others, *self._trackers.others)}.values())

    def _added(self) -> list[Site]:
        """Layers that would be listened to now and were not there, under their names, when the probe was attached."""
        known = {site.name for site in self._sites}
        try:
            return [site for site in self._find() if site.name not in known]
        except (BnprobeError, *UNMEASURABLE):  # none is left, or the user's own choice fails
            return []

    def _why(self, site: Site) -> str:
        observed = site.name in self._reader.observed
        graded = site.name in self._graded  # its weights had gradients, so something has used them
        why = self._reader.why.get(site.name, self._taps.why_silent(site, observed, graded))
        more = (
            SCALED if self._scaled and observed else "",
            self._measurer.why(site.name),
            self._trackers.why(site.name),
        )
        return "; ".join(one for one in (why, *more) if one)

    @contextmanager
    def _detached_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.attached = False
            self._let_go()
            self._outlet.close()
            raise

    def _let_go(self) -> None:
        for taps in (getattr(self, "_taps", None), *getattr(self, "_optimizer_taps", ())):
            if taps is not None:
                taps.remove()
