"""N09: running statistics that are updated several times in one step of the optimizer."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.impact import excess, share

__all__ = ["ExtraUpdatesPerStep"]


@dataclass(frozen=True)
class ExtraUpdatesPerStep(Rule):
    """How often is a plain fact; what it costs depends on how well one batch estimates the statistics.

    k updates by the same batch act like one with momentum 1 - (1 - m)^k, and a running mean then trembles with
    variance m' / (2 - m') over the effective number of values. Updates by different micro-batches of one accumulated
    step do not add to that; there it is the number of values in a micro-batch that counts.

    Attributes:
        tremble: of a running mean, in standard deviations, from which updates repeated by the same data, or by other
            weights, are a warning: that of two updates a step at PyTorch's momentum and 64 effective values a batch.
        few: effective number of values of a micro-batch below which accumulation is one; of the rule on too few values.
        momentum: of all updates of a step together, up to which nothing is extra: PyTorch's 0.1, and some room.
    """

    code = "N09"
    name = "extra-updates-per-step"
    title = "running statistics are updated several times a step"
    harm = (
        "Activation checkpointing runs layers again in backward, second passes (sharpness-aware steps, gradient "
        "penalties, metrics) run them with other weights or data: each time the averages move. They forget faster than "
        "their momentum says, tremble more, and partly hold statistics of weights that were never kept."
    )
    shows = "num_batches_tracked grows by two or more in one step"
    remedy = (
        "for m in model.modules():  # as many updates as there are: k\n"
        "    if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.momentum = 1 - (1 - m.momentum) ** (1 / k)"
    )
    references = (
        "Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174",
        "Foret et al. 2021, Sharpness-Aware Minimization, arXiv:2010.01412",
        "PyTorch documentation, torch.utils.checkpoint",
    )
    needs = ("step",)
    untrained = True
    sick = (
        "block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))\n"
        "y = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)"
    )
    healthy = (
        "block = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))\n"
        "y = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)"
    )

    tremble: float = 0.04
    few: float = 16
    momentum: float = 0.12

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once for the model, at the layer with the fewest values."""
        repeated = [fact for fact in evidence.all("updates_per_step") if fact.value >= 2]
        if not repeated:
            return
        worst = min(repeated, key=lambda fact: _values(evidence, fact.layer))
        values, k = _values(evidence, worst.layer), worst.value
        recomputed = evidence.value("recomputed_calls", worst.layer, 0.0) > 0
        again = recomputed or evidence.value("weights_during_step", default=1.0) > 1
        again = again or evidence.value("repeated_calls", worst.layer, 0.0) > 0
        worse = excess(evidence, "stored", "pooled")
        momentum = min(max(evidence.value("momentum", worst.layer, 0.1), 0.0), 1.0)  # others are N10's
        effective = 1 - (1 - momentum) ** k
        hurts = _tremble(effective, values) >= self.tremble if again else values < self.few
        severity = Severity.WARNING if hurts and effective > self.momentum else Severity.INFO
        acting = effective if again else momentum
        said = f"{len(repeated)} layers update their statistics {k:.3g} times a step"
        if len(repeated) == 1:
            said = f"{worst.layer} updates its statistics {k:.3g} times a step"
        numbers = [Quantity("momentum of a step", effective)]
        if values < float("inf"):
            numbers += [
                Quantity("effective number of values of a batch", values),
                Quantity("tremble of a running mean", _tremble(acting, values), "standard deviations"),
            ]
        yield Opinion(
            severity,
            f"{said}, which act like momentum {effective:.2g} instead of {momentum:.2g}",
            worst.layer,
            effect=Quantity("updates a step", k),
            impact=None if worse is None else share(worse, "more loss than with pooled statistics"),
            numbers=tuple(numbers),
            remedy=self.remedy.replace("k\n", f"{k:.0f}\n").replace("/ k", f"/ {k:.0f}"),
            causes=tuple(_causes(evidence, worst)),
        )


def _tremble(momentum: float, values: float) -> float:
    """Standard deviation of a running mean about the mean, in those of the layer's input."""
    return sqrt(momentum / (2 - momentum) / max(values, 1e-9))


def _values(evidence: Evidence, layer: str) -> float:
    """Infinite where it was not measured."""
    return evidence.value("n_eff_values", layer, float("inf"))


def _causes(evidence: Evidence, worst: Fact) -> Iterable[str]:
    if evidence.value("recomputed_calls", worst.layer, 0.0) > 0:
        yield "the layer runs again inside of backward: activation checkpointing"
    if evidence.value("weights_during_step", default=1.0) > 1:
        yield "forwards of one step have different weights: a second pass of the optimizer"
    if evidence.value("repeated_calls", worst.layer, 0.0) > 0:
        yield "the same input passes more than once"
    yield "gradients of several micro-batches are accumulated, or the layer is called several times"
