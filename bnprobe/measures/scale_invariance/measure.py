"""Find the scale-invariant parameters of a model: screening by one backward pass, confirmation by scaling."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.hooks.sites import unwrap
from bnprobe.measures.loss import Loss, loss_or_cross_entropy
from bnprobe.measures.scale_invariance.confirmation import Tester, Trial
from bnprobe.measures.scale_invariance.held import Held, held_by
from bnprobe.measures.scale_invariance.hypotheses import (
    Hypothesis,
    Products,
    balanced,
    products,
    scalings,
    together,
    vanishing,
)
from bnprobe.measures.scale_invariance.listening import AsWritten, Relative
from bnprobe.measures.scale_invariance.passes import Pass, Passes
from bnprobe.measures.scale_invariance.prediction import UNKNOWN, predict, sites_of
from bnprobe.measures.scale_invariance.result import ScaleInvariance
from bnprobe.measures.scale_invariance.signs import equivariant
from bnprobe.measures.scale_invariance.unseen import unseen
from bnprobe.measures.scale_invariance.updates import updates
from bnprobe.measures.scale_invariance.verdicts import Evidence, findings
from bnprobe.measures.untouched import untouched

__all__ = ["scale_invariance"]

_DTYPES = (None, torch.float64, torch.float32)


def scale_invariance(
    model: nn.Module,
    loss: Loss | None,
    batch: Any,
    *,
    confirm: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
    dtype: torch.dtype | None = None,
    passes: int = 32,
    seed: int = 0,
) -> ScaleInvariance:
    r"""Which parameters of a model can be scaled without changing the loss: whole tensors, single channels, groups.

    *Screening.* Along a scale-invariant w the gradient vanishes: :math:`\langle w, \nabla_w L \rangle = 0` (Euler). One
    backward pass tests that for every tensor, block of channels and channel. In this pass each normalization's epsilon
    is a fixed share of its variance, so that the law holds to the last digit whatever the epsilon.

    *Confirmation.* All candidates are scaled at once, each channel by a random factor of its own, first by powers of
    two (which round nothing), then by any from 1/10 to 10; loss and all gradients must stay, and the candidate's own
    become 1/a of what they were. Epsilon is scaled with the variance, by :math:`BN_{a^2 \epsilon}(a x) =
    BN_\epsilon(x)`: *scale-invariant* here means so but for epsilon. What epsilon does is measured and predicted beside
    it: the factor of x-hat, :math:`r(a) = a \sqrt{(s^2 + \epsilon) / (a^2 s^2 + \epsilon)}`, and
    :math:`\langle w, \nabla_w L \rangle = (1 - \rho)\, \gamma\, \partial L / \partial \gamma` for the loss as it is
    written. Where something changes, candidates are tried in parts.

    No knowledge of the architecture is needed for the verdicts; normalizations are seen where they call PyTorch's
    functions (``F.batch_norm``, ``F.layer_norm``, ...). A layer that computes its statistics by itself is judged too,
    but its epsilon is not known: then weights that were multiplied by 1,024 must obey the law better by the square of
    that, and nothing is predicted.

    *Signs.* "Scale-invariant" is said of positive factors. A negative one turns x-hat around; where it does nothing
    else, the column ``sign`` says "equivariant".

    *Frozen parameters* are measured like others: invariance is a matter of the function, not of the training.

    Model, gradients, optimizer, buffers, modes and random streams are afterwards bitwise as before. Every pass starts
    from the same random state, so that dropout masks are part of the function.

    Args:
        model: any module, in the modes in which it is to be measured (in evaluation mode batch norm normalizes
            nothing); DDP, FSDP and compiled wrappers are looked through for the names.
        loss: ``(model, batch) -> scalar``; None: cross entropy, where the batch is ``(x, y)`` with class labels y.
        batch: what the loss takes.
        confirm: False: screening only, for the price of one step; candidates are then "undecided".
        optimizer: given: its learning rates and weight decay, and the step that it would take, are in the table.
        dtype: ``torch.float64`` measures in double precision, whatever the model's own; the model is not converted.
        passes: how many at most; what is not settled by then is "undecided". Default 32, ours; five are usual.
        seed: of the factors.

    Returns:
        What was found out about each parameter.

    Raises:
        ArgumentError: an argument is not usable; or the model is lazy and has not seen a batch.
        NotMeasuredError: the loss is not a finite scalar with a gradient, or is another in every pass.
    """
    _check(model, optimizer, dtype, passes)
    root = unwrap(model)
    with untouched(root) as origin:
        held = held_by(root)
        if not held:
            raise NotMeasuredError("the model has no parameters")
        runs = Passes(model, root, loss_or_cross_entropy(loss, batch), batch, held, origin, dtype)
        return _Measurement(held, runs, passes, seed).result(confirm, optimizer)


def _check(model: Any, optimizer: Any, dtype: Any, passes: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentError(f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}")
    if dtype not in _DTYPES:
        raise ArgumentError(f"dtype must be None, torch.float64 or torch.float32; got {dtype!r}")
    if not isinstance(passes, int) or passes < 1:
        raise ArgumentError(f"passes must be a positive int; got {passes!r}")


class _Measurement:
    """The steps of one measurement."""

    def __init__(self, held: list[Held], passes: Passes, limit: int, seed: int) -> None:
        self._held, self._passes, self._limit = held, passes, limit
        self._generator = np.random.default_rng(seed)
        dtypes = {passes.own(place).dtype for place, one in enumerate(held) if not one.why}
        reals = {one.to_real() if one.is_complex else one for one in dtypes} or {torch.float32}
        self._rounding = max(torch.finfo(one).eps for one in reals)

    @property
    def _exact(self) -> float:
        """Half of the digits, for what is 0 to all of them (ours): 3e-4 in single precision."""
        return float(min(self._rounding**0.5, 0.1))

    @property
    def _close(self) -> float:
        """For gradients of a pass with other rounding errors, which move activations over the kink of a ReLU (ours)."""
        return 0.2 if self._rounding < 1e-5 else 0.5

    @property
    def _noise(self) -> float:
        """What may be rounding (ours)."""
        return float(min(max(100 * self._rounding, self._rounding**0.75), self._exact))

    def result(self, confirm: bool, optimizer: torch.optim.Optimizer | None) -> ScaleInvariance:
        """Screen, confirm, judge."""
        screened = self._passes.run(Relative())
        own = [self._passes.own(place) for place in range(len(self._held))]
        found = products(self._held, own, screened.gradients)
        scaled, moved = self._hypotheses(found)
        if not confirm:
            evidence = Evidence(self._held, found, None, [*scaled, *moved])
            return ScaleInvariance(findings(evidence), float(screened.loss), self._passes.count, False)
        base = self._passes.run(AsWritten(screened.seen))
        self._require_repeatable(screened, base)
        tester = Tester(
            self._held, self._passes, screened, base, self._generator, self._limit, self._exact, self._noise
        )
        kept, trials = self._confirmed(tester, scaled, moved)
        sites = sites_of(base, trials, min(max(1e-7, 2000 * self._rounding), 0.05)) if trials else []
        known = {member for one in (*kept, *moved) for member in one.members}
        hidden = unseen(tester, found, known)
        evidence = Evidence(
            self._held,
            found,
            products(self._held, own, base.gradients),
            (),
            [*kept, *hidden],
            tester.refuted,
            trials[-1] if trials else None,
            [predict(sites, place, one) for place, one in enumerate(kept)] + [UNKNOWN] * len(hidden),
            equivariant(tester, kept, sites, self._exact),
            updates(optimizer, self._held, base.gradients) if optimizer is not None else {},
        )
        return ScaleInvariance(findings(evidence), float(base.loss), self._passes.count, True)

    def _hypotheses(self, found: Sequence[Products]) -> tuple[list[Hypothesis], list[Hypothesis]]:
        """What may be scaled, and what may be shifted."""
        still = list(vanishing(self._held, found, self._exact, self._noise))
        scaled = [*scalings(found, self._exact, self._noise), *(one for one in still if not one.shift)]
        scaled = together(self._held, found, scaled, self._exact, self._noise)
        known = {member for one in (*scaled, *still) if len(one.members) == 1 for member in one.members}
        moved = [one for one in still if one.shift]
        return scaled, [*moved, *balanced(self._held, found, known, self._noise)]

    def _confirmed(
        self, tester: Tester, scaled: list[Hypothesis], moved: list[Hypothesis]
    ) -> tuple[list[Hypothesis], list[Trial]]:
        """What holds, and two trials of all of it together, the second of them measured."""
        kept, exact = tester.surviving(scaled, tester.powers, min(16 * self._exact, 0.1))
        trial = tester.attempt([*kept, *moved], tester.factors, self._close)
        if moved and trial is None:
            moved, _ = tester.surviving(moved, tester.factors, self._close)
            trial = tester.attempt([*kept, *moved], tester.factors, self._close)
        kept = [*kept, *moved]
        # Where rounding moves activations over kinks, powers of two do not.
        trial = trial or tester.attempt(kept, tester.powers, self._close)
        if kept and trial is None:
            kept, _ = tester.surviving(kept, tester.factors, self._close)
            trial = tester.attempt(kept, tester.powers, self._close)
        if kept and trial is None:
            tester.give_up(kept, "not confirmed: it holds by itself, but not together with what else seemed to")
            return [], []
        if trial is None:
            return [], []
        if exact is None or not {id(one) for one in kept if not one.shift} <= {id(one) for one in exact.hypotheses}:
            exact = tester.trial(kept, tester.factors)
        return kept, [exact.beside(kept), trial]

    def _require_repeatable(self, first: Pass, second: Pass) -> None:
        before, after = float(first.loss), float(second.loss)
        if abs(before - after) > 16 * self._exact * max(abs(before), abs(after)):
            raise NotMeasuredError(
                f"the loss is another in every pass ({before:.6g}, {after:.6g}): it draws random numbers not "
                "from the global streams, or keeps a state"
            )
