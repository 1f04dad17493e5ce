"""N28: dropout before batch norm: the stored variance is that with dropout, inputs in service are without."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.impact import LIKELY, distance, excess, share

__all__ = ["DropoutBeforeNorm"]


@dataclass(frozen=True)
class DropoutBeforeNorm(Rule):
    """By the variance, and by what the loss says to statistics taken without dropout.

    Attributes:
        ratio: variance with dropout over that without from which it is told.
        costs: relative excess of loss with running statistics over those pooled without dropout that makes it matter.
        outputs: without labels, distance of outputs (in their standard deviations).
    """

    code = "N28"
    name = "dropout-before-norm"
    title = "dropout before batch norm shifts the variance between training and evaluation"
    harm = (
        "Dropout adds variance to what it lets through. Batch norm stores that variance in training, and in "
        "evaluation, "
        "without dropout, divides by it all the same: every channel behind comes out too small."
    )
    shows = "variance of a batch norm's input 1.2 times as large with dropout as without, and more loss than with "
    shows += "statistics taken without dropout"
    remedy = (
        "model = nn.Sequential(*norms_and_layers, nn.Dropout(0.5), nn.Linear(512, 10))  # behind the last norm\n"
        "bnprobe.remedies.recalibrate(model, loader)  # or statistics without dropout"
    )
    references = (
        "Li et al. 2019, Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift, "
        "arXiv:1801.05134",
    )
    needs = ("dropout",)
    tests = ("dropout_ratio",)
    sick = "model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(64), nn.Linear(64, 10))"
    healthy = (
        "model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))"
    )

    ratio: float = 1.2  # of the catalogue
    costs: float = 0.05  # as N02's warning
    outputs: float = 0.3

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """The layer where it is largest; one cure serves all."""
        found = [
            fact
            for fact in evidence.all("dropout_ratio")
            if fact.value > self.ratio and not fact.low <= 1 and evidence.value("stored_with_dropout", fact.layer) < 0
        ]
        if not found:
            return
        worst = max(found, key=lambda fact: fact.value)
        severity, p_value, impact = self._impact(evidence, worst)
        yield Opinion(
            severity,
            f"the variance of its input is {worst.value:.3g} times as large with dropout as without, and "
            "the stored one is "
            f"nearer to that with dropout; so in {len(found)} of {len(evidence.all('dropout_ratio'))} layers",
            worst.layer,
            Quantity("variance with dropout over that without", worst.value, "", worst.low, worst.high),
            p_value=p_value,
            impact=impact,
        )

    def _impact(self, evidence: Evidence, fact: Fact) -> tuple[Severity, float | None, Quantity | None]:
        worse, apart = excess(evidence, "stored", "pooled"), distance(evidence, "stored")
        if worse is not None:
            harmful = worse.value >= self.costs and worse.p_value < LIKELY
            p_value = max(fact.p_value, worse.p_value) if harmful else None
            impact = share(worse, "more loss than with statistics taken without dropout")
            return (Severity.WARNING if harmful else Severity.INFO), p_value, impact
        if apart is not None:
            harmful = apart.value > self.outputs and not apart.low <= self.outputs
            impact = Quantity("distance of outputs", apart.value, "standard deviations", apart.low, apart.high)
            return (Severity.WARNING if harmful else Severity.INFO), fact.p_value if harmful else None, impact
        return Severity.INFO, None, None
