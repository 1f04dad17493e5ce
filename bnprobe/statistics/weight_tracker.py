"""Follows scale-invariant weights through a training run."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bnprobe.statistics.measurement import Readings
from bnprobe.statistics.track import Found, Tracker
from bnprobe.statistics.weight_columns import Rates, columns, cosines, rates_of
from bnprobe.statistics.weight_reading import Row, Slot, WeightReader, to_host, unreadable

__all__ = ["Candidates", "WeightTracker"]

Array = NDArray[np.float64]
_BY_CHANCE = 0.1  # of the cosine of independent directions, 1/sqrt(n): what a screened parameter's may be at most

# Whether gradients can be read after a step with a closure: it was called once, at the weights before the step.
_CALLED_ONCE = (
    "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD",
)  # fmt: skip


@dataclass(frozen=True)
class Candidates:
    """Weights that may be scale-invariant, and how to see which are.

    Attributes:
        slots: the weights.
        search: names, given the model; asked once.
        screen, tolerance: updates at which gradients are looked at, and the largest cosine; 0 for no screening.
    """

    slots: Sequence[Slot]
    search: Callable[[nn.Module], Collection[str]] | None = None
    screen: int = 0
    tolerance: float = 0.0


@dataclass
class _Update:
    """Numbers of one update of one optimizer, on their device."""

    step: int
    index: int
    rows: list[Row]
    rates: Mapping[int, Rates]


@dataclass
class _Opened:
    """An update that is going on."""

    step: int
    parts: list[Any]
    rates: Mapping[int, Rates]
    graded_after: bool = False


@dataclass(frozen=True)
class _Numbers:
    """Numbers of one update on the host: ``[6, W]`` of the weights ``which``."""

    step: int
    which: Sequence[int]
    values: Array
    single: bool
    rates: Mapping[int, Rates]


class WeightTracker(Tracker):
    """Follows weights that are scale-invariant; at first, where nobody knows which, all that may be.

    Args:
        root: the model, wrappers taken off.
        candidates: the weights.
        optimizers: in the order of their numbers.
        due: whether a step is read.
    """

    def __init__(
        self,
        root: nn.Module,
        candidates: Candidates,
        optimizers: Sequence[torch.optim.Optimizer],
        due: Callable[[int], bool],
    ) -> None:
        self._root, self._candidates, self._optimizers, self._due = root, candidates, tuple(optimizers), due
        self._reader = WeightReader(candidates.slots)
        self._members = tuple(range(len(candidates.slots)))  # those that are followed
        self.runs_passes, self._screening = candidates.search is not None, candidates.screen > 0
        self._tries = self._next_try = 0
        self._held: list[dict[int, int]] = []
        self._looks: object = None
        self._open: dict[int, _Opened] = {}
        self._updates: list[_Update] = []
        self._screened: list[_Numbers] = []
        self.why: dict[str, str] = {}

    def before(self, step: int, index: int, closure: bool) -> bool:
        """Copy the weights that this optimizer holds, and read them and their gradients."""
        self._open.pop(index, None)
        if not self._due(step) or not self._known():
            return False
        optimizer = self._optimizers[index]
        held = self._groups()[index]
        which = [i for i in self._members if i in held]
        rates = [rates_of(optimizer, group) for group in optimizer.param_groups]
        scale = getattr(optimizer, "grad_scale", None)
        parts = self._reader.before(which, graded=not closure, scale=scale if isinstance(scale, torch.Tensor) else None)
        late = closure and _leaves_gradients(optimizer)
        self._open[index] = _Opened(step, parts, {i: _rate(rates, held[i]) for i in which}, late)
        return bool(which)

    def after(self, index: int) -> None:
        """Read the weights again."""
        opened = self._open.pop(index, None)
        if opened is not None:
            rows = self._reader.after(opened.parts, graded=opened.graded_after)
            self._updates.append(_Update(opened.step, index, rows, opened.rates))

    def ended(self, step: int) -> bool:
        """Read what has changed since the step before, and copy the weights if the next step is to be read."""
        opened = self._open.pop(0, None)
        if opened is not None and opened.step == step:
            self._updates.append(_Update(step, 0, self._reader.after(opened.parts, graded=False), opened.rates))
        if self._due(step + 1) and self._known():
            self._open[0] = _Opened(step + 1, self._reader.before(self._members, graded=False), {})
        return opened is not None

    def take(self) -> list[Found]:
        """What has been read, screened where need be."""
        read, self._updates = self._updates, []
        updates = {(one.step, one.index): one for one in read}.values()  # of two in a step the later, as of norms
        values = iter(to_host([row for update in updates for row in update.rows]))
        numbers = [
            _Numbers(update.step, row.which, next(values), row.values.dtype != torch.float64, update.rates)
            for update in updates
            for row in update.rows
        ]
        if self._screening:
            self._screened += numbers
            numbers = self._screened if self._screen() else []
        if not self._screening:
            self._screened = []
        self._say_unreadable()
        return [one for some in numbers for one in self._readings(some)]

    def end(self) -> None:
        """Give the copies up."""
        self._open.clear()
        self._reader.forget(range(len(self._reader.slots)))

    # Which weights.

    def _known(self) -> bool:
        """Whether it is known what to follow; searches for it, each time after twice as many occasions."""
        if not self.runs_passes:
            return True
        self._tries += 1
        if self._tries <= self._next_try:
            return False
        self._next_try = 2 * self._tries
        search = self._candidates.search
        names = search(self._root) if search is not None else ()
        self.runs_passes = False
        slots = self._reader.slots
        self._follow([i for i in self._members if slots[i].name in names], "it is not scale-invariant")
        return True

    def _screen(self) -> bool:
        """Drop what is not scale-invariant, once there are enough updates to tell."""
        wanted, slots = self._candidates.screen, self._reader.slots
        steps = sorted({one.step for one in self._screened})
        if len(steps) < wanted:
            said = f"which parameters are scale-invariant shows after {wanted} updates; so far {len(steps)}"
            self.why = dict.fromkeys((slot.layer for slot in slots), said)
            return False
        seen: dict[int, list[float]] = {i: [] for i in self._members}
        for one in self._screened:
            if one.step <= steps[wanted - 1]:
                for i, cosine in zip(one.which, cosines(one.values), strict=True):
                    seen[i].append(float(cosine))
        passed = [i for i, some in seen.items() if len(some) >= wanted and self._orthogonal(i, some)]
        self._screening = False
        self._follow(passed, f"no sign of scale invariance at the first {wanted} updates")
        for i in passed:
            largest = max(map(abs, seen[i]))
            self._say(
                i,
                f"taken for scale-invariant by its gradients at the first {wanted} updates (cosine at most "
                f"{largest:.1g}), not confirmed by scaling it",
            )
        return True

    def _follow(self, members: Sequence[int], why_not: str) -> None:
        """From now on these and no others."""
        self.why = {}
        dropped = set(self._members) - set(members)
        self._members = tuple(members)
        self._reader.forget(dropped)
        for i in sorted(dropped):
            weight = self._reader.slots[i].now
            reason = unreadable(weight)
            if reason or weight.dim() > 1:  # of gains and biases nobody expects it
                self._say(i, f"not read: {reason}" if reason else why_not)

    def _orthogonal(self, index: int, seen: Sequence[float]) -> bool:
        """Whether gradients with these cosines are orthogonal to their weight."""
        weight = self._reader.slots[index].now
        if weight.dim() < 2:  # a lazy one has turned out to be a gain or a bias
            return False
        by_chance = weight.numel() ** -0.5
        return bool(np.sqrt(np.mean(np.square(seen))) <= min(self._candidates.tolerance, _BY_CHANCE * by_chance))

    def _say(self, index: int, what: str) -> None:
        slot = self._reader.slots[index]
        said = f"{slot.place.removeprefix('weight.')}: {what}"
        before = self.why.get(slot.layer)
        self.why[slot.layer] = f"{before}; {said}" if before else said

    def _say_unreadable(self) -> None:
        for i in self._members:
            slot = self._reader.slots[i]
            reason = unreadable(slot.now)
            if reason and reason not in self.why.get(slot.layer, ""):
                self._say(i, f"not read: {reason}")

    # Rates and records.

    def _groups(self) -> list[dict[int, int]]:
        """By optimizer, which weights it updates, and the number of their group; -1 where it holds none of them."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        slots = self._reader.slots
        looks = ([id(slot.now) for slot in slots], [len(group["params"]) for group in groups])
        if looks != self._looks:  # groups may be added, and parameters exchanged, while training goes on
            self._looks = looks
            self._held = [_held_by(optimizer, slots) for optimizer in self._optimizers]
            somewhere = {i for held in self._held for i in held}
            self._held[-1] |= {i: -1 for i in range(len(slots)) if i not in somewhere}
        return self._held

    def _readings(self, numbers: _Numbers) -> Iterator[Found]:
        """Records of one update, by place."""
        slots, followed = self._reader.slots, set(self._members)
        rows = [row for row, i in enumerate(numbers.which) if i in followed and slots[i].now is not None]
        for place in dict.fromkeys(slots[numbers.which[row]].place for row in rows):
            some = [row for row in rows if slots[numbers.which[row]].place == place]
            here = [numbers.which[row] for row in some]
            sizes = np.array([slots[i].now.numel() for i in here], np.float64)
            unit = np.full(len(here), 2.0**-24 if numbers.single else 2.0**-53)
            rates = [numbers.rates.get(i, Rates()) for i in here]
            values = columns(numbers.values[:, some], sizes, unit, rates)
            layers, counts = [slots[i].layer for i in here], [int(size) for size in sizes]
            yield Found(numbers.step, Readings(place, layers, counts, values))


def _held_by(optimizer: torch.optim.Optimizer, slots: Sequence[Slot]) -> dict[int, int]:
    group_of = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return {i: group_of[id(slot.now)] for i, slot in enumerate(slots) if id(slot.now) in group_of}


def _rate(rates: Sequence[Rates], group: int) -> Rates:
    return rates[group] if group >= 0 else Rates()


def _leaves_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the gradients that its closure has made are still there after its step, and belong to the old weights."""
    kind = type(optimizer)
    # Nesterov's momentum is added to the gradients themselves, by one of PyTorch's implementations.
    nesterov = any(group.get("nesterov") for group in optimizer.param_groups)
    return kind.__module__.startswith("torch.optim.") and kind.__name__ in _CALLED_ONCE and not nesterov
