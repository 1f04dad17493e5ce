"""N18: an evaluation, a prediction or a tool that moves running statistics."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["SideForwardPollution"]


@dataclass(frozen=True)
class SideForwardPollution(Rule):
    """That buffers differ after it is a plain fact; what it does to outputs and loss decides how bad it is.

    Attributes:
        outputs: drift of outputs (standard deviations) by one evaluation from which it is a warning. Ours: every
            further evaluation adds to it.
        loss: relative rise of the loss from which it is an error; of the rule on statistics that do not fit.
    """

    code = "N18"
    name = "side-forward-pollution"
    title = "the evaluation moves running statistics"
    harm = (
        "A forward in training mode moves the averages, also under no_grad and without an optimizer: validation data, "
        "attacked inputs or a tool's random tensors enter the statistics that the model is later judged and saved with."
    )
    shows = "running means and variances differ before and after the evaluation; num_batches_tracked has grown"
    remedy = (
        "modes = {m: m.training for m in model.modules()}\nmodel.eval()\n"
        "evaluate()\nfor m, mode in modes.items(): m.training = mode"
    )
    references = ("PyTorch documentation, torch.nn.Module.eval and torch.no_grad: one does not imply the other",)
    needs = ("evaluation",)
    sick = "model.train()\nwith torch.no_grad(): model(x)  # moves running_mean"
    healthy = "model.eval()\nwith torch.no_grad(): model(x)"

    outputs: float = 0.02
    loss: float = 0.2

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once for the model."""
        moved = [fact for fact in evidence.all("evaluate_move") if fact.value > 0]
        if not moved:
            return
        worst = max(moved, key=lambda fact: fact.value)
        drift, loss = evidence.value("evaluate_output_drift"), evidence.value("evaluate_loss_drift")
        severity, impact = Severity.INFO, None
        if drift == drift:
            impact = Quantity("drift of outputs", drift, "standard deviations")
            severity = Severity.WARNING if drift >= self.outputs else Severity.INFO
        if loss > self.loss:
            severity, impact = Severity.ERROR, Quantity("rise of the loss", 100 * loss, "%")
        if evidence.context.intent in ("batch-stats-at-test", "transductive"):
            severity = Severity.INFO
        updates = evidence.value("evaluate_updates", worst.layer, 0.0)
        told = f" by {updates:.0f} updates" if updates else ""
        harm = "" if drift != drift else f"; outputs in evaluation mode drift by {drift:.2g} standard deviations"
        yield Opinion(
            severity,
            f"one evaluation moves the running statistics of {len(moved)} layers{told}, those of {worst.layer} by "
            f"{worst.value:.2g} standard deviations{harm}",
            worst.layer,
            effect=Quantity("largest move of a running mean", worst.value, "standard deviations"),
            impact=impact,
            causes=("forwards in training mode: eval() was not called, or something called train() on the way",),
        )
