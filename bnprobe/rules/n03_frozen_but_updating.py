"""N03: parameters frozen, statistics not."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["FrozenButUpdating"]


@dataclass(frozen=True)
class FrozenButUpdating(Rule):
    """That they move is a plain fact; how far it takes the model is simulated.

    Attributes:
        loss: relative rise of the loss with running statistics from which it is an error.
        outputs: drift of outputs (standard deviations) from which it is a warning. Ours: that they move at all is what
            was to be prevented, and where they have moved already there is little left; below half a per cent nothing
            happens.
    """

    code = "N03"
    name = "frozen-but-updating"
    title = "frozen batch norms whose running statistics move"
    harm = (
        "requires_grad=False stops gradients, not the running averages: buffers are no parameters. Each forward in "
        "training mode moves the frozen layers towards the new data, under weights that cannot follow."
    )
    shows = "gain and shift want no gradient, the layer is in training mode, and one forward changes its buffers"
    remedy = (
        "bnprobe.remedies.freeze(model)  # stays frozen through train(); or after every model.train():\n"
        "for m in model.modules():\n"
        "    if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.eval()"
    )
    references = ("PyTorch documentation, torch.nn.BatchNorm2d: running estimates are kept in training mode",)
    needs = ("freeze",)
    sick = "bn = nn.BatchNorm1d(4).requires_grad_(False)\nbn(x)  # moves bn.running_mean"
    healthy = "bn = nn.BatchNorm1d(4).requires_grad_(False).eval()\nbn(x)"

    loss: float = 0.05
    outputs: float = 0.005

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once for the model: layers drift together."""
        moves = evidence.all("frozen_move")
        if not moves:
            return
        drift, loss = evidence.fact("frozen_output_drift"), evidence.fact("frozen_loss_drift")
        effect = Quantity(
            "largest move of a running mean by one batch", max(one.value for one in moves), "standard deviations"
        )
        severity, told, impact = Severity.INFO, "", None
        if drift is not None:
            impact = Quantity(
                f"drift of outputs in {drift.count} batches", drift.value, "standard deviations", drift.low, drift.high
            )
            told = f"; {drift.count} batches take the model's outputs {drift.value:.2g} standard deviations away"
            severity = Severity.WARNING if drift.value >= self.outputs else Severity.INFO
        if loss is not None and severity == Severity.WARNING:
            told += f", its loss {'up' if loss.value > 0 else 'down'} by {abs(loss.value):.0%}"
            if loss.low > self.loss:
                severity = Severity.ERROR
                impact = Quantity("rise of the loss", 100 * loss.value, "%", 100 * loss.low, 100 * loss.high)
        if evidence.context.intent in ("batch-stats-at-test", "transductive"):
            severity = Severity.INFO
        first = moves[0].layer
        layers = first if len(moves) == 1 else f"{len(moves)} layers ({first}, ...)"
        yield Opinion(
            severity,
            f"{layers} {'is' if len(moves) == 1 else 'are'} frozen but in training mode, so that every forward "
            f"moves the running statistics{told}",
            first if len(moves) == 1 else "",
            effect=effect,
            impact=impact,
        )
