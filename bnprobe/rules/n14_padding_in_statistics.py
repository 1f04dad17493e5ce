"""N14: padded positions that are counted as data by a norm layer."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.impact import LIKELY

__all__ = ["PaddingInStatistics"]


@dataclass(frozen=True)
class PaddingInStatistics(Rule):
    """By what padding does to means and variances, and whether outputs follow how much of it there is.

    Attributes:
        shift: of means, in standard deviations of valid positions.
        stretch: of variances, as a logarithm.
        moved, much: change of outputs (in their standard deviations) that makes it a warning, an error.
    """

    code = "N14"
    name = "padding-in-statistics"
    title = "padding is counted in the statistics of a norm layer"
    harm = (
        "With a share q of valid positions the mean becomes q times that of the data and the variance "
        "q s^2 + q (1 - q) m^2. So what a sample becomes depends on how long its batch mates are, in training; and "
        "statistics are those of no data at all. Group and instance norm do it to each sample by itself."
    )
    shows = "means or variances over all positions unlike those over valid ones, and outputs that change with padding"
    remedy = (
        "x[valid] = bn(x[valid])  # valid: [N, T] of bool, x: [N, T, F]\n"
        "norm = nn.LayerNorm(F)  # frame by frame; or put samples of like length into one batch"
    )
    references = ("PyTorch documentation, torch.nn.BatchNorm1d: statistics over N and L",)
    needs = ("mask",)
    untrained = True
    sick = "model = nn.BatchNorm1d(8)  # of [N, 8, T], padded with zeros, features about 2"
    healthy = "model = nn.LayerNorm(8)  # of [N, T, 8], padded"

    shift: float = 0.25  # of the catalogue
    stretch: float = 0.4  # as for stale statistics
    moved: float = 0.005  # as N01
    much: float = 0.05  # of the catalogue

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Each layer that is far off; of batch norm only what trains."""
        for fact in evidence.all("padding_shift"):
            stretch = evidence.value("padding_log_variance", fact.layer)
            if not (fact.value > self.shift or stretch > self.stretch):
                continue
            if evidence.layer(fact.layer).family == "batch_norm":
                yield self._batch_norm(evidence, fact, stretch)
            else:
                yield self._opinion(evidence, fact, stretch, "padding_extension", None)

    def _batch_norm(self, evidence: Evidence, fact: Fact, stretch: float) -> Opinion:
        training = evidence.value("training", fact.layer) == 1 or evidence.context.intent == "train"
        if not training:
            return self._opinion(evidence, fact, stretch, "", None)
        slope = evidence.fact("padding_slope", fact.layer)
        varies = slope is not None and slope.p_value < LIKELY
        return self._opinion(evidence, fact, stretch, "padding_swap", slope if varies else None)

    def _opinion(self, evidence: Evidence, fact: Fact, stretch: float, by: str, slope: Fact | None) -> Opinion:
        """Measured shifts are exact; whether they matter is what the outputs say."""
        change = evidence.value(by) if by else float("nan")
        severity = Severity.INFO
        if change > self.moved:
            severity = Severity.ERROR if change > self.much and fact.value > self.shift else Severity.WARNING
        impact = (
            Quantity("change of outputs with more padding", change, "standard deviations") if change == change else None
        )
        numbers = [
            Quantity("padding", 100 * evidence.value("padding_share"), "% of positions"),
            Quantity("logarithm of the variances' ratio", stretch),
        ]
        if slope is not None:
            numbers.append(Quantity("variance of batches' means explained by their padding", 100 * slope.value, "%"))
        return Opinion(
            severity,
            f"{evidence.value('padding_share'):.0%} of the positions are padding: the mean over all is "
            f"{fact.value:.2g} "
            f"standard deviations off that over valid ones, the logarithm of the variance {stretch:.2g}",
            fact.layer,
            Quantity("shift of the mean by padding", fact.value, "standard deviations"),
            impact=impact,
            numbers=tuple(numbers),
        )
