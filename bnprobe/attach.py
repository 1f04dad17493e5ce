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
from torch import Tensor, nn

from bnprobe.collect import UNMEASURABLE, Collector, Key
from bnprobe.errors import ArgumentError, BnprobeError
from bnprobe.hooks.saved import GroupMoments, batch_moments, output_moments, saved_moments
from bnprobe.hooks.sites import LayerChoice, Site, find_sites, unwrap
from bnprobe.hooks.taps import Call, OptimizerTaps, Seen, Taps, why_unreadable
from bnprobe.records import DEFAULT_LEVELS, Layer
from bnprobe.schedule import Schedule, as_schedule
from bnprobe.statistics import Gradients, Moments, Observation, Quantiles, RunningGap, Saturation, Statistic
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
        run: what has been recorded, as :func:`bnprobe.load` reads it.
        now: number of the current step.
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
        self._gaps = any(isinstance(statistic, RunningGap) for statistic in statistics)
        self._weights = WeightNorms(sites) if any(isinstance(one, Gradients) for one in statistics) else None
        self._rates = LearningRates(sites, optimizer) if optimizer is not None else None
        self._observed: set[str] = set()
        self._why: dict[str, str] = {}
        self._inventory: list[Layer] = []
        self._by_hand = self._trained = False
        self._warned = False
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
        self.now = self._writer.first_step
        self._recording = bool(schedule(self.now))
        self.attached = True
        with self._detached_on_error():
            self._taps = Taps(sites, root, self)
            self._optimizer_taps = (
                OptimizerTaps(optimizer, self._before_update, self._tick) if optimizer is not None else None
            )
        atexit.register(self.detach)

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
        if not self.attached:
            return
        self.attached = self._recording = False
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

    # What the taps tell (bnprobe.hooks.taps.Listener). A measurement that fails must not stop somebody's training.

    def listening(self) -> bool:
        """Whether this step is recorded."""
        return self._recording

    def forward_begins(self, training: bool) -> None:
        """Without an optimizer and without ``step()``, a training forward begins the next step."""
        if training and self._optimizer is None and not self._by_hand:
            if self._trained:
                self._tick()
            self._trained = True

    def about_to_change(self, call: Call, inputs: list[Seen]) -> list[Observation]:
        """Read the inputs of an in-place layer before they are overwritten."""
        try:
            return [seen for one in inputs if (seen := self._observe(call.site, one)) is not None]
        except UNMEASURABLE as error:
            self._note(call.site, error)
            return []

    def called(self, call: Call, inputs: list[Seen] | None, outputs: list[Seen], read_before: Any) -> None:
        """Read a layer's inputs and outputs."""
        try:
            self._keep(call, [*(read_before or ()), *self._read(call.site, inputs, outputs, read_before)])
        except UNMEASURABLE as error:
            self._note(call.site, error)

    def graded(self, call: Call, place: str, gradient: Tensor) -> None:
        """Read the gradient at a layer's output."""
        try:
            seen = self._observe(call.site, Seen(place, gradient))
            self._keep(call, [seen] if seen is not None else [])
        except UNMEASURABLE as error:
            self._note(call.site, error)

    def _read(
        self, site: Site, inputs: list[Seen] | None, outputs: list[Seen], read_before: Sequence[Observation] | None
    ) -> list[Observation]:
        moments = self._moments(site, inputs, outputs)
        seen = [self._observe(site, one, moments if i == 0 else None) for i, one in self._intact(site, inputs, outputs)]
        before = next(iter(read_before or seen), None)
        made = output_moments(site, moments) if moments is not None else None
        for i, one in enumerate(outputs):
            alike = before is not None and before.shape == one.tensor.shape
            seen.append(self._observe(site, one, made if i == 0 else None, before.axis if before and alike else None))
        return [one for one in seen if one is not None]

    def _intact(self, site: Site, inputs: list[Seen] | None, outputs: list[Seen]) -> Iterator[tuple[int, Seen]]:
        """Inputs that surely are as the layer received them."""
        for i, one in enumerate(inputs or ()):
            if one.memory is None and any(one.tensor is made.tensor for made in outputs):
                self._why.setdefault(site.name, f"{one.place}: the layer hands on its input, perhaps changed")
            else:
                yield i, one

    def _observe(
        self, site: Site, one: Seen, moments: GroupMoments | None = None, axis: int | None = None
    ) -> Observation | None:
        why = why_unreadable(one.tensor)
        if why:
            self._why.setdefault(site.name, f"{one.place}: {why}")
            return None
        before = one.memory
        if before is not None:
            before.moments = before.moments or moments
            seen = Observation(site, one.place, one.tensor, before.axis, self._sampler, before.moments, before)
        else:
            own = site.channel_axis(one.tensor)
            axis = axis if axis is not None and site.family in ("nonlinearity", "other") else own
            seen = Observation(site, one.place, one.tensor, axis, self._sampler, moments)
            if not one.place.startswith("grad"):
                self._taps.remember(one.tensor, seen)
        self._collector.prepare(seen)
        seen.release()
        return seen

    def _moments(self, site: Site, inputs: list[Seen] | None, outputs: list[Seen]) -> GroupMoments | None:
        """What is known of a norm layer's input without a pass over it, or by one where the running gap needs it."""
        if not site.is_norm or not inputs or not outputs or why_unreadable(inputs[0].tensor):
            return None
        moments = saved_moments(site, inputs[0].tensor, outputs[0].tensor)
        if moments is None and self._gaps and site.family == "batch_norm":
            moments = batch_moments(inputs[0].tensor)
        return moments

    def _keep(self, call: Call, observations: Sequence[Observation]) -> None:
        phase = "train" if call.training else "eval"
        for seen in observations:
            self._collector.add(Key(self.now, phase, call.site.name, call.index, seen.place), seen)
            self._observed.add(call.site.name)

    # The clock.

    def _before_update(self) -> None:
        """The gradients are final: read the weights' norms and the learning rates."""
        if not self._recording:
            return
        for name, rate in self._rates.read() if self._rates else ():
            self._collector.add_numbers(Key(self.now, "train", name, 0, "weight"), {"learning_rate": rate})
        if self._weights is not None:
            for name, numbers in self._weights.read():
                self._collector.add_numbers(Key(self.now, "train", name, 0, "weight"), numbers)

    def _tick(self) -> None:
        self._taps.step_done()
        if self._recording:
            self._unwritten_steps += 1
            late = time.monotonic() - self._last_flush > _FLUSH_SECONDS
            if late or self._unwritten_steps >= _FLUSH_STEPS or self._collector.bytes >= _FLUSH_BYTES:
                self._flush_or_warn()
        self.now += 1
        self._recording = self.attached and bool(self._schedule(self.now))

    # Housekeeping.

    def _flush_or_warn(self) -> None:
        """In the middle of somebody's training a full disk is told, not raised; asked for, :meth:`flush` raises."""
        try:
            self.flush()
        except OSError as error:
            message = (
                f"bnprobe could not write to {str(self._run.path)!r}: {error}; records up to step {self.now} are lost"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            self._unwritten_steps, self._last_flush = 0, time.monotonic()

    def _update_inventory(self) -> None:
        silent = "it ran inside torch.compile" if self._taps.compiled else "its forward was not called"
        inventory = [
            site.describe(
                feeds=self._taps.flow.edges.get(site.name, ()),
                observed=site.name in self._observed,
                why=self._why.get(site.name, "" if site.name in self._observed else silent),
            )
            for site in self._sites
        ]
        if inventory != self._inventory:
            self._inventory = inventory
            self._writer.update_layers(inventory)

    def _note(self, site: Site, error: Exception) -> None:
        """What cannot be measured is said in the inventory, and once aloud; training goes on."""
        self._why[site.name] = f"{type(error).__name__}: {error}"
        if not self._warned:
            self._warned = True
            warnings.warn(f"bnprobe could not measure layer {site.name!r}: {error}", RuntimeWarning, stacklevel=2)

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
