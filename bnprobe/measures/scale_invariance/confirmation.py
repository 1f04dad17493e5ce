"""Hypotheses put to the test: parameters are scaled, all at once and each by a factor of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.measures.scale_invariance.held import Held
from bnprobe.measures.scale_invariance.hypotheses import Array, Hypothesis, host, wide
from bnprobe.measures.scale_invariance.listening import Divided, Seen
from bnprobe.measures.scale_invariance.passes import Change, Pass, Passes

__all__ = ["Tester", "Trial"]

_POWERS = (0.25, 0.5, 2.0, 4.0)
_SHIFT = 0.25  # what a norm layer's input notices and its rounding does not (ours)
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
        seen: the normalizations.
    """

    hypotheses: list[Hypothesis]
    numbers: list[Array]
    mismatches: list[Array]
    ratios: list[Array]
    inner: list[tuple[Array, ...]]
    loss: float
    others: float
    seen: list[Seen]

    def holds(self, tolerance: float) -> bool:
        """Whether nothing changed."""
        return max(self.loss, self.others, *(float(one.max()) for one in self.mismatches)) <= tolerance

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
        base: the pass as the user wrote it, at the model's own parameters.
        generator: of the factors.
        limit: passes at most.

    Attributes:
        refuted: ``(hypothesis, units, verdict, why)`` of what did not hold.
    """

    held: Sequence[Held]
    passes: Passes
    base: Pass
    generator: np.random.Generator
    limit: int
    refuted: list[tuple[Hypothesis, Array, str, str]] = field(default_factory=list)

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

        Where something changes, those whose own gradients changed are tried without the others, and the others
        without them; where that tells nothing, halves are.
        """
        left = list(hypotheses)
        if not left:
            return [], None
        if self.passes.count >= self.limit:
            self._refute(left, "undecided", f"not confirmed: more than {self.limit} passes are needed")
            return [], None
        try:
            trial: Trial | None = self.trial(left, draw)
        except NotMeasuredError as error:
            trial, why = None, str(error)
        if trial is not None and trial.holds(tolerance):
            return left, trial
        if len(left) == 1:
            return self._restricted(left[0], trial, draw, tolerance) if trial else self._give_up(left, why)
        bad = [] if trial is None else _failing(trial, tolerance)
        if not bad or len(bad) == len(left):
            bad = left[: len(left) // 2]
        good, _ = self.surviving([one for one in left if one not in bad], draw, tolerance)
        return [*good, *self.surviving(bad, draw, tolerance)[0]], None

    def attempt(
        self, hypotheses: Sequence[Hypothesis], draw: Callable[[Hypothesis], Array], tolerance: float
    ) -> Trial | None:
        """A measured trial of all of them; None where something changes, or the passes are used up."""
        if not hypotheses or self.passes.count >= self.limit:
            return None
        try:
            trial = self.trial(hypotheses, draw, measure=True)
        except NotMeasuredError:
            return None
        return trial if trial.holds(tolerance) else None

    def trial(
        self, hypotheses: Sequence[Hypothesis], draw: Callable[[Hypothesis], Array], measure: bool = False
    ) -> Trial:
        """Scale them all, each unit by a number of its own.

        Raises:
            NotMeasuredError: the model does not run so.
        """
        numbers = [draw(one) for one in hypotheses]
        changes = self.changes(hypotheses, numbers)
        found = self.passes.run(Divided(self.base.seen, measure=measure), changes)
        if found.loss.isnan():
            raise NotMeasuredError("the loss is not finite when it is scaled")
        touched = {member for one in hypotheses for member in one.members}
        compared = [self._compared(one, found, changes) for one in hypotheses]
        before, after = float(self.base.loss), float(found.loss)
        return Trial(
            hypotheses=list(hypotheses),
            numbers=numbers,
            mismatches=[one[0] for one in compared],
            ratios=[one[1] for one in compared],
            inner=[one[2] for one in compared],
            loss=abs(after - before) / max(abs(before), np.finfo(np.float32).tiny),
            others=self._others(found, touched),
            seen=found.seen,
        )

    def changes(self, hypotheses: Sequence[Hypothesis], numbers: Sequence[Array]) -> dict[int, Change]:
        """What the numbers do to each parameter."""
        changes: dict[int, Change] = {}
        for one, drawn in zip(hypotheses, numbers, strict=True):
            for member in one.members:
                values = one.of_channels(drawn, member, 0.0 if one.shift else 1.0)
                device = self.held[member].tensor.device
                tensor = torch.from_numpy(values).to(device, torch.float32 if device.type == "mps" else torch.float64)
                changes[member] = Change(shift=tensor) if one.shift else Change(factor=tensor)
        return changes

    def _compared(
        self, hypothesis: Hypothesis, found: Pass, changes: dict[int, Change]
    ) -> tuple[Array, Array, tuple[Array, ...]]:
        """Mismatches and ratios by unit, inner products by member and channel."""
        squares, inner = np.zeros((3, hypothesis.count)), []
        for member, units in zip(hypothesis.members, hypothesis.units, strict=True):
            before, after = self.base.gradients[member], found.gradients[member]
            if before is None or after is None:
                inner.append(np.zeros(len(units)))
                continue
            one = self.held[member]
            rows, old = wide(one.rows(after)), wide(one.rows(before))
            factor = changes[member].factor
            if factor is not None:
                rows = rows * factor[:, None]
            own = wide(one.rows(self.passes.own(member)))
            sums = torch.stack([(rows - old).square().sum(1), rows.square().sum(1), old.square().sum(1)])
            inner.append(host((own * rows).sum(1)))
            numbers = host(sums)[:, units >= 0]
            squares += [np.bincount(units[units >= 0], row, hypothesis.count) for row in numbers]
        floor = self._floor(hypothesis) if hypothesis.shift else squares[2]
        with np.errstate(divide="ignore", invalid="ignore"):
            mismatch, ratio = np.sqrt(squares[0] / floor), np.sqrt(squares[1] / squares[2])
        return np.where(squares[0] > 0, mismatch, 0.0), ratio, tuple(inner)

    def _floor(self, hypothesis: Hypothesis) -> Array:
        """Of a shift: the squared gradient of all that was not shifted, against which its own change is seen."""
        kept = [one for place, one in enumerate(self.base.gradients) if one is not None and place not in hypothesis.members]
        total = float(sum(wide(one).abs().square().mean() for one in kept) / len(kept)) if kept else 1.0
        return np.full(hypothesis.count, total)

    def _others(self, found: Pass, touched: set[int]) -> float:
        change, size = [], []
        for place, (before, after) in enumerate(zip(self.base.gradients, found.gradients, strict=True)):
            if place not in touched and before is not None and after is not None:
                change.append(wide((after - before).abs()).square().sum())
                size.append(wide(before.abs()).square().sum())
        if not size:
            return 0.0
        total: Tensor = torch.stack(change).sum() / torch.stack(size).sum().clamp_min(1e-300)
        return float(total.sqrt())

    def _restricted(
        self, hypothesis: Hypothesis, trial: Trial, draw: Callable[[Hypothesis], Array], tolerance: float
    ) -> tuple[list[Hypothesis], Trial | None]:
        """Try it again without the units whose own gradients changed."""
        wrong = trial.mismatches[0] > tolerance
        if wrong.all() or not wrong.any():
            most = float(trial.mismatches[0].min()) if wrong.all() else max(trial.loss, trial.others)
            return self._refused(hypothesis, wrong | ~wrong.any(), most)
        self._refused(hypothesis, wrong, float(trial.mismatches[0][wrong].min()))
        names = np.cumsum(~wrong) - 1
        units = tuple(np.where((one >= 0) & ~wrong[one], names[one], -1) for one in hypothesis.units)
        return self.surviving([replace(hypothesis, units=units, count=int((~wrong).sum()))], draw, tolerance)

    def _refused(self, hypothesis: Hypothesis, wrong: Array, most: float) -> tuple[list[Hypothesis], Trial | None]:
        what = "shifting" if hypothesis.shift else "scaling"
        if most >= _SURELY or not np.isfinite(most):
            self.refuted.append((hypothesis, wrong, "not", f"{what} it changes the loss or its gradients"))
        else:
            why = f"{what} it changes the loss or its gradients by {most:.1e} of them: too much for rounding"
            self.refuted.append((hypothesis, wrong, "not" if hypothesis.shift else "undecided", why))
        return [], None

    def _give_up(self, hypotheses: Sequence[Hypothesis], why: str) -> tuple[list[Hypothesis], Trial | None]:
        self._refute(hypotheses, "undecided", why)
        return [], None

    def _refute(self, hypotheses: Sequence[Hypothesis], verdict: str, why: str) -> None:
        for one in hypotheses:
            self.refuted.append((one, np.ones(one.count, bool), verdict, why))


def _failing(trial: Trial, tolerance: float) -> list[Hypothesis]:
    """Those whose own gradients changed."""
    return [
        one for one, changed in zip(trial.hypotheses, trial.mismatches, strict=True) if not changed.max() <= tolerance
    ]
