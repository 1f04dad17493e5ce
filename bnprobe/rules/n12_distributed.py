"""N12: statistics over several processes: not synchronized where they should be, or different on every rank."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.training import impact_of_batches, layers_in_training, trains

__all__ = ["Distributed"]


@dataclass(frozen=True)
class Distributed(Rule):
    """Ranks that keep statistics of their own are no mistake while each has enough values, and all see the same data.

    Attributes:
        values: effective values of a rank's batch below which its own statistics are too noisy.
        shared: effective values below which it matters that synchronized layers synchronize nothing.
        channels: share of channels that must be far apart between ranks.
        much, some: relative excess of loss with a rank's statistics over that with all ranks', from which it is an
            error, a warning.
        sure: p-value below which that difference is no accident of the batches.
        outputs: without labels, distance of outputs, in their standard deviations.
        weights: relative difference of parameters from which ranks are different models, of which nothing is said.
        costs, moves: as of N04.
    """

    code = "N12"
    name = "distributed"
    title = "statistics of several processes or devices are not what their author thinks"
    harm = (
        "Without synchronization each device normalizes by its own few samples, and the model that is saved has the "
        "statistics of one rank's shard. SyncBatchNorm without a process group, or under DataParallel, is silently "
        "plain batch normalization."
    )
    shows = (
        "running statistics of ranks that differ by more than 0.25 standard deviations, and losses that differ with "
        "them; synchronized layers without a group, or few effective values a rank"
    )
    remedy = (
        "model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # before DDP, one process a device\n"
        "bnprobe.remedies.recalibrate(model, loader)  # statistics of all ranks together, before evaluating and saving"
    )
    references = (
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.SyncBatchNorm.html",
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html",
        "Peng et al. 2018, MegDet: A Large Mini-Batch Object Detector, arXiv:1711.07240",
    )
    needs = ("ranks",)
    untrained = True
    follows_from = ("N11",)
    sick = "model = nn.DataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model)).train()"
    healthy = "model = nn.parallel.DistributedDataParallel(model)  # plain batch norm, 32 pictures a rank"

    values: float = 16.0
    shared: float = 32.0
    channels: float = 0.1
    much: float = 0.2
    some: float = 0.05
    outputs: float = 0.3
    sure: float = 0.01
    weights: float = 1e-3
    costs: float = 0.05
    moves: float = 0.3

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """At most one opinion: what is wrong with the job as a whole comes first."""
        for found in (self._apart(evidence), self._unsynchronized(evidence), self._small(evidence)):
            if found is not None:
                yield found
                return

    def _unsynchronized(self, evidence: Evidence) -> Opinion | None:
        """SyncBatchNorm that synchronizes nothing."""
        synchronized = [fact.layer for fact in evidence.all("synchronized") if fact.value == 1]
        layers = [layer for layer in synchronized if trains(evidence, layer)]
        parallel = evidence.value("data_parallel") == 1
        if not layers or (evidence.value("process_group") == 1 and not parallel):
            return None
        worth = [fact for fact in layers_in_training(evidence, "n_eff_values") if fact.layer in layers]
        least = min(worth, key=lambda fact: fact.value, default=None)
        few = least is not None and least.value < self.shared
        why = "under DataParallel" if parallel else "there is no process group"
        numbers = () if least is None else (_worth(least),)
        return Opinion(
            Severity.WARNING if few else Severity.INFO,
            f"{len(layers)} SyncBatchNorm layers are in training mode, and {why}: each device normalizes by its own "
            "batch"
            + (f", worth {least.value:.1f} independent values a channel at {least.layer}" if least is not None else ""),
            effect=_worth(least) if least is not None else None,
            impact=impact_of_batches(evidence, self.costs, self.moves),
            numbers=numbers,
        )

    def _small(self, evidence: Evidence) -> Opinion | None:
        """Plain batch norm on devices that have few values each."""
        devices = max(1, (evidence.fact("data_parallel") or Fact("")).count)
        if evidence.value("distributed") != 1 and devices < 2:
            return None
        found = layers_in_training(evidence, "n_eff_values")
        found = [fact for fact in found if evidence.value("synchronized", fact.layer) != 1]
        least = min(found, key=lambda fact: fact.value, default=None)
        if least is None or not least.value / devices < self.values:
            return None
        impact = impact_of_batches(evidence, self.costs, self.moves)
        return Opinion(
            Severity.WARNING if impact is not None else Severity.INFO,
            f"batch norms are not synchronized, and a device's batch at {least.layer} is worth "
            f"{least.value / devices:.1f} independent values a channel",
            least.layer,
            effect=_worth(least, devices),
            impact=impact,
        )

    def _apart(self, evidence: Evidence) -> Opinion | None:
        """Ranks with equal weights and different statistics."""
        far = [fact for fact in evidence.all("rank_gap_share") if fact.value >= self.channels]
        if not far or evidence.value("rank_weights_differ", default=0.0) > self.weights:
            return None
        worst = max(far, key=lambda fact: fact.value)
        gap = evidence.value("rank_gap_mean", worst.layer)
        severity, impact, said = self._harm(evidence)
        return Opinion(
            severity,
            f"ranks hold different running statistics in {len(far)} of {len(evidence.all('rank_gap_share'))} layers: "
            f"at {worst.layer} means are {gap:.2g} standard deviations apart, in {worst.value:.0%} of the channels too "
            f"far{said}",
            worst.layer,
            effect=Quantity("channels too far apart", 100 * worst.value, "%"),
            impact=impact,
            numbers=tuple(
                Quantity(f"median gap of {fact.layer}", fact.value, "standard deviations")
                for fact in evidence.all("rank_gap_mean")[:3]
            ),
            causes=(
                "broadcast_buffers=False, and every rank reads other data",
                "statistics were re-estimated on each rank's shard and not averaged",
            ),
        )

    def _harm(self, evidence: Evidence) -> tuple[Severity, Quantity | None, str]:
        """Against the statistics of all ranks together: those of every single rank may be equally bad."""
        worse = evidence.fact("rank_excess")
        if worse is not None:
            loss = max(fact.value for fact in evidence.all("rank_loss"))
            impact = Quantity(
                "more loss with a rank's own statistics than with those of all ranks", 100 * worse.value, "%"
            )
            said = f"; the loss is {loss:.3g} with one rank's, {evidence.value('merged_rank_loss'):.3g} with all ranks'"
            if worse.value >= self.some and worse.p_value < self.sure:
                return (Severity.ERROR if worse.value >= self.much else Severity.WARNING), impact, said
            return Severity.INFO, impact, said
        apart = max((fact.value for fact in evidence.all("rank_distance")), default=0.0)
        impact = Quantity("outputs move by", apart, "standard deviations")
        said = f"; outputs are {apart:.2g} standard deviations away from those with all ranks' statistics"
        return (Severity.WARNING if apart > self.outputs else Severity.INFO), impact, said


def _worth(fact: Fact, devices: int = 1) -> Quantity:
    return Quantity("effective values a channel", fact.value / devices, "", fact.low / devices, fact.high / devices)
