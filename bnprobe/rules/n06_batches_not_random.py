"""N06: batches that hold what belongs together: a class, a recording, a patient, a shard."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.training import impact_of_batches, layers_in_training, meant_to_use_batches

__all__ = ["BatchesNotRandom"]


@dataclass(frozen=True)
class BatchesNotRandom(Rule):
    """Significance alone says nothing: samplers of identities group on purpose, and do no harm.

    Attributes:
        few, fewest: effective samples a batch below which it is a warning, an error.
        least_batch: samples from which on a batch can be grouped.
        values: effective values a channel from which on the layer's statistics are sound whatever the samples are.
        costs, moves: as of N04; grouping that shows only at the deepest layer must do something to the loss, for there
            every good classifier's features are grouped by class.
        batches: with fewer the finding is a step less severe: the next ones may be different.
    """

    code = "N06"
    name = "batches-not-random"
    title = "batches are not random samples of the data"
    harm = (
        "Batch norm subtracts what the samples of a batch have in common. Where a batch is one class or one recording "
        "that is what the network should have learned; it gets it back from no running statistics at evaluation."
    )
    shows = (
        "means of batches that vary many times as much as those of samples permuted over batches, so that a batch of "
        "n is worth only a few samples; labels of a batch more alike than chance makes them"
    )
    remedy = (
        "loader = DataLoader(data, batch_size, shuffle=True)\n"
        "# a stream: a shuffle buffer much longer than what lies together, shards in random order and several at a time"
    )
    references = (
        "Wu & Johnson 2021, Rethinking 'Batch' in BatchNorm, section 5, arXiv:2105.07576",
        "Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses, chapter 3",
    )
    needs = ("composition",)
    tests = ("composition_ratio",)
    follows_from = ("N07",)
    sick = "loader = torch.utils.data.DataLoader(sorted_by_class, batch_size=32, shuffle=False)"
    healthy = "loader = torch.utils.data.DataLoader(sorted_by_class, batch_size=32, shuffle=True)"

    few: float = 8.0
    fewest: float = 4.0
    least_batch: int = 8
    values: float = 32.0
    costs: float = 0.05
    moves: float = 0.3
    batches: int = 16

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Of the first and of the deepest layer, the one that is grouped more severely."""
        if meant_to_use_batches(evidence):
            return
        found = [self._opinion(evidence, fact) for fact in layers_in_training(evidence, "composition_ratio")]
        opinions = [one for one in found if one is not None]
        if opinions:
            yield max(opinions, key=lambda one: one.severity)

    def _opinion(self, evidence: Evidence, ratio: Fact) -> Opinion | None:
        layer = ratio.layer
        worth, size = evidence.value("n_eff_samples", layer), evidence.value("samples_per_batch", layer)
        limit = evidence.value("composition_ratio_limit", layer)
        if not ratio.value > limit:
            return None
        impact = impact_of_batches(evidence, self.costs, self.moves)
        first = next((fact.layer for fact in evidence.all("composition_ratio")), layer) == layer
        severity = self._severity(worth, size)
        matters = impact is not None or (first and evidence.value("n_eff_values", layer) < self.values)
        if not matters:
            severity = Severity.INFO
        if ratio.count < self.batches:
            severity = severity.demoted()
        numbers = (
            Quantity("ratio of variances of batch means, to those of random batches", ratio.value),
            Quantity("ratio that chance reaches in 1 of 100", limit),
            Quantity("effective values a channel", evidence.value("n_eff_values", layer)),
            *self._purity(evidence),
        )
        few = f"; with {ratio.count} batches only ratios above {limit:.1f} can be told from chance"
        few = few if ratio.count < self.batches else ""
        return Opinion(
            severity,
            f"a batch of {size:.0f} samples is worth {worth:.1f} at {layer}: batch means vary {ratio.value:.1f} times "
            f"as much as those of random batches{few}",
            layer,
            effect=Quantity("effective samples a batch", worth, f"of {size:.0f}"),
            p_value=ratio.p_value,
            impact=impact,
            numbers=numbers,
            causes=tuple(self._causes(evidence)),
        )

    def _severity(self, worth: float, size: float) -> Severity:
        if size < self.least_batch or worth >= self.few:
            return Severity.INFO
        return Severity.ERROR if worth < self.fewest else Severity.WARNING

    def _purity(self, evidence: Evidence) -> Iterable[Quantity]:
        pure = evidence.fact("label_purity")
        if pure is not None:
            yield Quantity("pairs of a batch with the same label", 100 * pure.value, "%")
            yield Quantity("of pairs of random batches", 100 * evidence.value("label_purity_random"), "%")

    def _causes(self, evidence: Evidence) -> Iterable[str]:
        pure = evidence.fact("label_purity")
        if pure is not None and pure.p_value < 0.01 and pure.value > evidence.value("label_purity_random") + 0.1:
            yield f"batches are grouped by class: two samples of a batch share their label in {pure.value:.0%} of pairs"
        yield "data are read in the order in which they lie: by recording, patient, day or shard"
        yield "a shuffle buffer is shorter than what lies together"
