"""N12: statistics over several processes: not synchronized where they should be, or different on every rank."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.impact import LIKELY, excess, share
from bnprobe.rules.training import impact_of_batches, layers_in_training, trains

__all__ = ["Distributed"]


@dataclass(frozen=True)
class Distributed(Rule):
    """Ranks that keep statistics of their own are no mistake while each has enough values, and all see the same data.

    Attributes:
        values: effective values of a rank's batch below which its own statistics are too noisy.
        shared: effective values below which it matters that synchronized layers synchronize nothing.
        channels: share of channels that must be far apart between ranks.
        much, some: relative difference of losses between the ranks' statistics from which it is an error, a warning.
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
        "model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # before DistributedDataParallel, one process a device\n"
        "for b in model.buffers(): torch.distributed.all_reduce(b.div_(world_size)) if b.is_floating_point() else None"
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
        layers = [fact.layer for fact in evidence.all("synchronized") if fact.value == 1 and trains(evidence, fact.layer)]  # fmt: skip
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
            f"{len(layers)} SyncBatchNorm layers are in training mode, and {why}: each device normalizes by its own batch"
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
        found = [fact for fact in layers_in_training(evidence, "n_eff_values") if evidence.value("synchronized", fact.layer) != 1]  # fmt: skip
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
            f"ranks hold different running statistics in {len(far)} of {len(evidence.all('rank_gap_share'))} layers: at "
            f"{worst.layer} means are {gap:.2g} standard deviations apart, in {worst.value:.0%} of the channels too far"
            f"{said}",
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
        losses = [fact.value for fact in evidence.all("rank_loss")]
        if losses:
            worse = (max(losses) - min(losses)) / max(min(losses), 0.05)
            impact = Quantity("more loss with one rank's statistics than with another's", 100 * worse, "%")
            pooled = excess(evidence, "stored", "pooled")
            if pooled is not None and pooled.value > worse and pooled.p_value < LIKELY:  # all may be equally bad
                worse, impact = pooled.value, share(pooled, "more loss than with statistics of all ranks' data")
            said = f"; the loss is {min(losses):.3g} with one rank's and {max(losses):.3g} with another's"
            if worse >= self.some:
                return (Severity.ERROR if worse >= self.much else Severity.WARNING), impact, said
            return Severity.INFO, impact, said
        apart = max((fact.value for fact in evidence.all("rank_distance")), default=0.0)
        impact = Quantity("outputs move by", apart, "standard deviations")
        said = f"; outputs are {apart:.2g} standard deviations apart"
        return (Severity.WARNING if apart > self.outputs else Severity.INFO), impact, said


def _worth(fact: Fact, devices: int = 1) -> Quantity:
    return Quantity("effective values a channel", fact.value / devices, "", fact.low / devices, fact.high / devices)
