"""Hypotheses put to the test: parameters are scaled, all at once and each by a factor of its own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.measures.scale_invariance.held import Held
from bnprobe.measures.scale_invariance.hypotheses import Array, Hypothesis, host, wide
from bnprobe.measures.scale_invariance.listening import Divided, Relative, Seen
from bnprobe.measures.scale_invariance.passes import Change, Pass, Passes

__all__ = ["Tester", "Trial"]

_POWERS = (0.25, 0.5, 2.0, 4.0)
_SHIFT = 0.25  # what a norm layer's input notices and its rounding does not (ours)
_MOSTLY = 0.5  # of the largest change (ours)
_RESERVED = 3  # passes that remain for measuring what holds
_FOR_ZEROS = 6  # passes for telling apart what stands beside a zero: gains of a network as it is made (ours)
_RETRIES = 3  # with ever fewer channels of one parameter (ours)
_SURELY = 0.3  # relative change of a unit's own gradient that is no rounding (ours; factors change it by 0.5 and more)


@dataclass(frozen=True, eq=False)
class Trial:
    """One pass at changed parameters beside the pass at the model's own.

    Attributes:
        hypotheses: what was scaled or shifted.
        numbers: by which factors (of shifts: by how much), ``[units]`` for each hypothesis.
        mismatches: ``[units]`` for each: ``|a G(a w) - G(w)| / |G(w)|``; of shifts the gradient's change.
        ratios: ``[units]`` for each: ``|a G(a w)| / |G(w)|``.
        inner: ``[C]`` for each member of each: <w, a G(a w)>.
        loss: relative change of the loss.
        others: relative change of the gradients of what was left alone.
        beside_zero: ``[units]`` for each: the same of those parameters of its layer that are zero.
        seen: the normalizations.
        exact: relative size up to which a number counts as zero.
    """

    hypotheses: list[Hypothesis]
    numbers: list[Array]
    mismatches: list[Array]
    ratios: list[Array]
    inner: list[tuple[Array, ...]]
    loss: float
    others: float
    beside_zero: list[Array]
    seen: list[Seen]
    exact: float

    def holds(self, tolerance: float) -> bool:
        """Whether nothing changed."""
        same = self.loss <= min(tolerance, 16 * self.exact) and self.others <= tolerance
        return same and not self.failing(tolerance)

    def failing(self, tolerance: float) -> list[Hypothesis]:
        """Those whose own gradients changed."""
        pairs = zip(self.hypotheses, self.mismatches, strict=True)
        return [one for one, changed in pairs if not changed.max() <= self.allowed(one, tolerance)]

    def allowed(self, hypothesis: Hypothesis, tolerance: float) -> float:
        """What counts as unchanged; a gradient that vanishes does so whatever the rounding of the forward."""
        return tolerance if hypothesis.floor is None else min(tolerance, self.exact)

    def beside(self, hypotheses: Sequence[Hypothesis]) -> "Trial":
        """The same trial among more hypotheses, which it left alone."""
        drawn = {id(one): numbers for one, numbers in zip(self.hypotheses, self.numbers, strict=True)}
        return replace(
            self, hypotheses=list(hypotheses), numbers=[drawn.get(id(one), np.ones(one.count)) for one in hypotheses]
        )


@dataclass(eq=False)
class Tester:
    """Finds out which hypotheses hold.

    Args:
        held: the parameters.
        passes: runs the model.
        screened: the pass with relative epsilons, at the model's own parameters.
        base: the pass as the user wrote it.
        generator: of the factors.
        limit: passes at most.
        exact: relative size up to which a number counts as zero.
        noise: relative size of what may be rounding.
        start: by what the weights of the passes to compare with are scaled already.

    Attributes:
        refuted: ``(hypothesis, units, verdict, why)`` of what did not hold.
    """

    held: Sequence[Held]
    passes: Passes
    screened: Pass
    base: Pass
    generator: np.random.Generator
    limit: int
    exact: float
    noise: float
    start: float = 1.0
    refuted: list[tuple[Hypothesis, NDArray[np.bool_], str, str]] = field(default_factory=list)
    _zero: dict[int, bool] = field(default_factory=dict, init=False)
    _spare: int = field(default=_FOR_ZEROS, init=False)
    _tries: dict[tuple[int, ...], int] = field(default_factory=dict, init=False)

    def powers(self, hypothesis: Hypothesis) -> Array:
        """Random powers of two: scaling by them makes no rounding errors, so that a law holds in the same bits."""
        return self.generator.choice(_POWERS, hypothesis.count) if not hypothesis.shift else self.factors(hypothesis)

    def factors(self, hypothesis: Hypothesis) -> Array:
        """Random factors from 1/10 to 10; of shifts, random amounts of either sign."""
        if not hypothesis.shift:
            return np.asarray(10.0 ** self.generator.uniform(-1, 1, hypothesis.count))
        weight = self.held[hypothesis.members[0]].tensor.detach()
        size = max(_SHIFT, float(weight.abs().double().square().mean().sqrt()))
        amount = size * self.generator.uniform(0.5, 2, hypothesis.count)
        return np.asarray(amount * self.generator.choice((-1, 1), hypothesis.count))

    def surviving(
        self, hypotheses: Sequence[Hypothesis], draw: Callable[[Hypothesis], Array], tolerance: float
    ) -> tuple[list[Hypothesis], Trial | None]:
        """Those under which nothing changes, and the trial of all of them together where there was one.

        Where something changes, the suspects are tried without the others, and the others without them.
        """
        left = list(hypotheses)
        if not left:
            return [], None
        if self.passes.count >= self.limit - min(_RESERVED, self.limit // 4):
            return self.give_up(left, f"not confirmed: more than {self.limit} passes are needed")
        if all(self._beside_zeros(one) for one in left):
            if self._spare <= 0:
                return self.give_up(
                    left, "not confirmed: if it holds, then perhaps only with what is zero in its layer"
                )
            self._spare -= 1
        try:
            trial: Trial | None = self.trial(left, draw)
        except NotMeasuredError as error:
            trial, why = None, str(error)
        if trial is not None and trial.holds(tolerance):
            return self._alone(left, trial, tolerance)
        if len(left) == 1:
            return self._restricted(left[0], trial, draw, tolerance) if trial else self.give_up(left, why)
        bad = self._suspects(left, trial)
        good, _ = self.surviving([one for one in left if one not in bad], draw, tolerance)
        return [*good, *self.surviving(bad, draw, tolerance)[0]], None

    def _alone(
        self, hypotheses: list[Hypothesis], trial: Trial, tolerance: float
    ) -> tuple[list[Hypothesis], Trial | None]:
        """Those that are invariant alone; of the others, the trial says nothing once they are out.

        Where a parameter is zero (a beta at the beginning), scaling it together with its gamma is scaling gamma alone:
        what tells them apart is that then its gradient becomes 1/a of what it was.
        """
        good = []
        for one, changed in zip(hypotheses, trial.beside_zero, strict=True):
            wrong = changed > tolerance
            if wrong.any():
                names = ", ".join(self.held[place].name for place in self.zeros(one.members))
                self.refuted.append((one, wrong, "not", f"only together with {names}, now zero"))
            else:
                good.append(one)
        return good, trial if len(good) == len(hypotheses) else None

    def zeros(self, members: Sequence[int]) -> list[int]:
        """Parameters of the same layer that are zero, and their gradients are not."""
        layers = {self.held[place].layer_name for place in members}
        return [
            place
            for place, one in enumerate(self.held)
            if place not in members and one.layer_name in layers and not one.why
            and self.screened.gradients[place] is not None and self._is_zero(place)
        ]  # fmt: skip

    def _beside_zeros(self, hypothesis: Hypothesis) -> bool:
        return not hypothesis.shift and bool(self.zeros(hypothesis.members))

    def _is_zero(self, place: int) -> bool:
        if place not in self._zero:
            gradient = self.screened.gradients[place]
            self._zero[place] = not self.passes.own(place).any() and gradient is not None and bool(gradient.any())
        return self._zero[place]

    def _suspects(self, left: list[Hypothesis], trial: Trial | None) -> list[Hypothesis]:
        """Some of them, not all.

        What may hold only with a zero beside it; else whose gradient was not quite orthogonal, or changed most; else
        the first half.
        """
        most = {} if trial is None else {one: worst.max() for one, worst in zip(left, trial.mismatches, strict=True)}
        doubted = [one for one in left if one.doubt > self.noise]
        changed = [one for one in most if not most[one] < _MOSTLY * max(most.values())]
        for some in ([one for one in left if self._beside_zeros(one)], doubted, changed):
            if 0 < len(some) < len(left):
                return some
        return left[: len(left) // 2]

    def attempt(
        self, hypotheses: Sequence[Hypothesis], draw: Callable[[Hypothesis], Array], tolerance: float
    ) -> Trial | None:
        """A measured trial of all of them; None where something changes, or the passes are used up."""
        if not hypotheses or self.passes.count >= self.limit:
            return None
        try:
            trial = self.trial(hypotheses, draw, written=True)
        except NotMeasuredError:
            return None
        return trial if trial.holds(tolerance) else None

    def trial(
        self, hypotheses: Sequence[Hypothesis], draw: Callable[[Hypothesis], Array], written: bool = False
    ) -> Trial:
        """Scale them all, each unit by a number of its own.

        Args:
            hypotheses: what to scale or shift.
            draw: the numbers.
            written: whether epsilon is what the user wrote, times the square of the factor (then its effects are
                measured); or a share of the variance.

        Raises:
            NotMeasuredError: the model does not run so.
        """
        numbers = [draw(one) for one in hypotheses]
        changes = self.changes(hypotheses, [one * self.start for one in numbers])
        base = self.base if written else self.screened
        found = self.passes.run(Divided(base.seen) if written else Relative(base.seen), changes)
        if found.loss.isnan():
            raise NotMeasuredError("the loss is not finite when it is scaled")
        touched = {member for one in hypotheses for member in one.members}
        zeros = [[] if one.shift else [z for z in self.zeros(one.members) if z not in touched] for one in hypotheses]
        compared = [self._compared(one, base, found, changes) for one in hypotheses]
        before, after = float(base.loss), float(found.loss)
        return Trial(
            hypotheses=list(hypotheses),
            numbers=numbers,
            mismatches=[one[0] for one in compared],
            ratios=[one[1] for one in compared],
            inner=[one[2] for one in compared],
            loss=abs(after - before) / max(abs(before), 1e-30),
            others=_others(base, found, touched.union(*zeros)),
            beside_zero=[
                self._beside_zero(one, some, base, found) for one, some in zip(hypotheses, zeros, strict=True)
            ],
            seen=found.seen,
            exact=self.exact,
        )

    def changes(self, hypotheses: Sequence[Hypothesis], numbers: Sequence[Array]) -> dict[int, Change]:
        """What the numbers do to each parameter."""
        changes: dict[int, Change] = {}
        for one, drawn in zip(hypotheses, numbers, strict=True):
            for member in one.members:
                values = one.of_channels(drawn, member, 0.0 if one.shift else 1.0)
                device = self.held[member].tensor.device
                tensor = torch.from_numpy(values).to(device, torch.float32 if device.type == "mps" else torch.float64)
                change = changes.get(member, Change())
                changes[member] = replace(change, shift=tensor) if one.shift else replace(change, factor=tensor)
        return changes

    def _compared(
        self, hypothesis: Hypothesis, base: Pass, found: Pass, changes: dict[int, Change]
    ) -> tuple[Array, Array, tuple[Array, ...]]:
        """Mismatches and ratios by unit, inner products by member and channel."""
        squares, inner = np.zeros((3, hypothesis.count)), []
        for member, units in zip(hypothesis.members, hypothesis.units, strict=True):
            before, after = base.gradients[member], found.gradients[member]
            if before is None or after is None:
                inner.append(np.zeros(len(units)))
                continue
            one = self.held[member]
            rows, old = wide(one.rows(after)), wide(one.rows(before))
            factor = changes[member].factor
            if factor is not None:
                rows = rows * factor[:, None] / self.start
            own = wide(one.rows(self.passes.own(member)))
            sums = torch.stack([(rows - old).square().sum(1), rows.square().sum(1), old.square().sum(1)])
            inner.append(host((own * rows).sum(1)))
            numbers = host(sums)[:, units >= 0]
            squares += [np.bincount(units[units >= 0], row, hypothesis.count) for row in numbers]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.sqrt(squares[1] / squares[2])
            if hypothesis.floor is not None:
                return np.sqrt(squares[0]) / hypothesis.floor, ratio * np.nan, tuple(inner)
            mismatch = np.where(squares[0] > 0, np.sqrt(squares[0] / squares[2]), 0.0)
        return mismatch, ratio, tuple(inner)

    def _beside_zero(self, hypothesis: Hypothesis, zeros: Sequence[int], base: Pass, found: Pass) -> Array:
        """``[units]``: relative change of the gradients of these, channel by channel where they have its channels."""
        worst, units = np.zeros(hypothesis.count), hypothesis.units[0]
        for place in zeros:
            before, after = base.gradients[place], found.gradients[place]
            if before is None or after is None:
                continue
            one = self.held[place]
            old, new = wide(one.rows(before)), wide(one.rows(after))
            change, size = host(torch.stack([(new - old).square().sum(1), old.square().sum(1)]))
            if one.channels != len(units):
                worst = np.maximum(worst, math.sqrt(change.sum() / max(size.sum(), 1e-300)))
                continue
            used = units >= 0
            change, size = (np.bincount(units[used], row[used], hypothesis.count) for row in (change, size))
            least = size.mean() * self.noise**2  # of channels with next to no gradient rounding is all
            worst = np.maximum(worst, np.sqrt(change / np.maximum(size, max(least, 1e-300))))
        return worst

    def _restricted(
        self, hypothesis: Hypothesis, trial: Trial, draw: Callable[[Hypothesis], Array], tolerance: float
    ) -> tuple[list[Hypothesis], Trial | None]:
        """Try it again without the units whose own gradients changed."""
        wrong = ~(trial.mismatches[0] <= trial.allowed(hypothesis, tolerance))
        self._tries[hypothesis.members] = self._tries.get(hypothesis.members, 0) + 1
        if self._tries[hypothesis.members] > _RETRIES:
            return self.give_up([hypothesis], "not confirmed: which of its channels change the loss did not come out")
        if wrong.all() or not wrong.any():
            most = float(trial.mismatches[0].min()) if wrong.all() else max(trial.loss, trial.others)
            return self._refused(hypothesis, wrong | ~wrong.any(), most)
        self._refused(hypothesis, wrong, float(trial.mismatches[0][wrong].min()))
        names = np.cumsum(~wrong) - 1
        units = tuple(np.where((one >= 0) & ~wrong[one], names[one], -1) for one in hypothesis.units)
        floor = None if hypothesis.floor is None else hypothesis.floor[~wrong]
        left = replace(hypothesis, units=units, count=int((~wrong).sum()), floor=floor)
        return self.surviving([left], draw, tolerance)

    def _refused(
        self, hypothesis: Hypothesis, wrong: NDArray[np.bool_], most: float
    ) -> tuple[list[Hypothesis], Trial | None]:
        what = "shifting" if hypothesis.shift else "scaling"
        if most >= _SURELY or not np.isfinite(most):
            self.refuted.append((hypothesis, wrong, "not", f"{what} it changes the loss or its gradients"))
        else:
            why = f"{what} it changes the loss or its gradients by {most:.1e} of them: too much for rounding"
            self.refuted.append((hypothesis, wrong, "not" if hypothesis.shift else "undecided", why))
        return [], None

    def give_up(self, hypotheses: Sequence[Hypothesis], why: str) -> tuple[list[Hypothesis], Trial | None]:
        """Note that they are undecided."""
        self.refuted += [(one, np.ones(one.count, bool), "undecided", why) for one in hypotheses]
        return [], None


def _others(base: Pass, found: Pass, touched: set[int]) -> float:
    """Relative change of the gradients of parameters that were left alone."""
    change, size = [], []
    for place, (before, after) in enumerate(zip(base.gradients, found.gradients, strict=True)):
        if place not in touched and before is not None and after is not None:
            change.append(wide((after - before).abs()).square().sum())
            size.append(wide(before.abs()).square().sum())
    if not size:
        return 0.0
    total: Tensor = torch.stack(change).sum() / torch.stack(size).sum().clamp_min(1e-300)
    return float(total.sqrt())
