"""N04: batch statistics of so few independent values that they are mostly noise."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.impact import excess
from bnprobe.rules.training import impact_of_batches, layers_in_training, meant_to_use_batches

__all__ = ["TooFewEffectiveValues"]


@dataclass(frozen=True)
class TooFewEffectiveValues(Rule):
    """By effective values, not by batch size: two large maps can be plenty, a hundred windows of one recording are one.

    Attributes:
        few, fewer, fewest: effective values a channel below which it is worth knowing, a warning, an error. Of n
            independent values the mean is off by sigma / sqrt(n): 18, 25 and 35 % of a standard deviation.
        costs: relative difference of losses, with statistics of the batch and with pooled ones, that makes it matter.
        moves: without labels, how far outputs move, in their standard deviations.
    """

    code = "N04"
    name = "too-few-effective-values"
    title = "batch statistics rest on too few independent values"
    harm = (
        "Mean and variance of a few values are noise that training cannot average away: the layer normalizes each "
        "batch differently, running statistics describe no batch, and evaluation runs a network that was never trained."
    )
    shows = (
        "effective values a channel below 16: the number of independent values whose mean would vary between batches "
        "as much as batch means do; and a loss with statistics of the batch that differs from that with pooled ones"
    )
    remedy = (
        "model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # under DistributedDataParallel\n"
        "bnprobe.remedies.to_group_norm(model)  # or a norm that looks at one sample; or larger batches\n"
        "bnprobe.remedies.freeze(model)  # for fine-tuning: keep the statistics of pretraining"
    )
    references = (
        "Wu & He 2018, Group Normalization, figure 1, arXiv:1803.08494",
        "Wu & Johnson 2021, Rethinking 'Batch' in BatchNorm, section 3, arXiv:2105.07576",
    )
    needs = ("composition",)
    follows_from = ("N06", "N07", "N12")
    sick = (
        "model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))\n"
        "loader = torch.utils.data.DataLoader(data, batch_size=4)  # four values a channel"
    )
    healthy = (
        "model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())\n"
        "loader = torch.utils.data.DataLoader(images, batch_size=4)  # 4 x 222 x 222 values a channel"
    )

    few: float = 32.0
    fewer: float = 16.0
    fewest: float = 8.0
    costs: float = 0.05
    moves: float = 0.3

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once for the model, of its worst layer: larger batches help all."""
        found = self._worth(evidence)
        small = [fact for fact in found if fact.value < self.few]
        if not small:
            return
        worst = min(small, key=lambda fact: fact.value)
        impact = impact_of_batches(evidence, self.costs, self.moves)
        values, size = evidence.value("values_per_batch", worst.layer), evidence.value("batch_size")
        yield Opinion(
            self._weighed(evidence, self._severity(worst), impact),
            f"batches at {worst.layer} are worth {worst.value:.1f} independent values a channel (95 % interval "
            f"{worst.low:.1f} to {worst.high:.1f}) of the {values:.0f} that they have; {len(small)} of {len(found)} "
            f"layers have fewer than {self.few:.0f}",
            worst.layer,
            effect=Quantity("effective values a channel", worst.value, "", worst.low, worst.high),
            impact=impact,
            numbers=(
                Quantity("values a channel in a batch", values),
                Quantity("samples in the first batch", size),
                Quantity("batches looked at", worst.count),
            ),
            causes=tuple(self._causes(evidence, worst, values)),
        )

    def _worth(self, evidence: Evidence) -> list[Fact]:
        """Of each layer; of one that is called several times in a forward, its poorest call."""
        found = {fact.layer: fact for fact in layers_in_training(evidence, "n_eff_values")}
        for fact in layers_in_training(evidence, "call_n_eff_values"):
            if fact.layer not in found or fact.value < found[fact.layer].value:
                found[fact.layer] = fact
        return list(found.values())

    def _weighed(self, evidence: Evidence, severity: Severity, impact: Quantity | None) -> Severity:
        """Whole with an impact; a step less where losses cannot tell; as information where they are the same."""
        if meant_to_use_batches(evidence):
            return Severity.INFO
        if impact is not None:
            return severity
        between = excess(evidence, "batch", "pooled")
        undecided = between is not None and not -self.costs < between.low <= between.high < self.costs
        return severity.demoted() if undecided else Severity.INFO

    def _severity(self, fact: Fact) -> Severity:
        """By the value; but the interval must exclude that it is twice as good as it may be."""
        if fact.value < self.fewest and fact.high < 2 * self.fewest:
            return Severity.ERROR
        return Severity.WARNING if fact.value < self.fewer and fact.high < 2 * self.fewer else Severity.INFO

    def _causes(self, evidence: Evidence, worst: Fact, values: float) -> Iterable[str]:
        ratio, limit = (evidence.value(name, worst.layer) for name in ("composition_ratio", "composition_ratio_limit"))
        if ratio > limit:
            yield f"batches are grouped: their means vary {ratio:.1f} times as much as those of random batches"
        if values < self.few:
            yield f"batches are small: {values:.0f} values a channel"
        share = evidence.value("between_sample_share", worst.layer)
        if values >= self.few and share > 0.1:
            yield f"values of one sample are alike: {share:.0%} of the variance lies between samples"
