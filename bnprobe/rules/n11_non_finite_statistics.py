"""N11: running statistics that are no numbers, or no variances."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["NonFiniteStatistics"]


@dataclass(frozen=True)
class NonFiniteStatistics(Rule):
    """Deterministic: one such channel is enough."""

    code = "N11"
    name = "non-finite-statistics"
    title = "running statistics hold NaN or infinity, or a variance that is not positive"
    harm = (
        "One overflowing batch in training mode writes infinity into the running mean and NaN into the running "
        "variance, for good: later batches do not heal an exponential average. Training goes on, evaluation is garbage."
    )
    shows = "channels of running_mean or running_var that are not finite, or of running_var below zero"
    remedy = (
        "for m in model.modules():\n    if hasattr(m, 'reset_running_stats'): m.reset_running_stats()\n"
        "bnprobe.remedies.recalibrate(model, loader)  # and skip forwards on batches that are not finite"
    )
    references = ("Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740",)
    needs = ("state",)
    untrained = True
    sick = "bn = nn.BatchNorm1d(4); bn(torch.full((8, 4), float('inf')))"
    healthy = "bn = nn.BatchNorm1d(4); bn(torch.randn(8, 4))"

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """The first such layer is where it came from: the others may have caught it."""
        for fact in evidence.all("nonfinite_statistics"):
            if fact.value > 0:
                share = Quantity("channels without a usable mean or variance", fact.value, f"of {fact.count}")
                yield Opinion(
                    Severity.ERROR,
                    f"{fact.value:.0f} of {fact.count} channels have running statistics that are not finite, or a "
                    "variance below zero",
                    fact.layer,
                    effect=share,
                )
