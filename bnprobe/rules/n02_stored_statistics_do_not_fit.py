"""N02: running statistics that belong to other weights or other data, or were never filled."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.impact import distance, excess, share

__all__ = ["StoredStatisticsDoNotFit"]


@dataclass(frozen=True)
class StoredStatisticsDoNotFit(Rule):
    """Never by distance alone: a network that was trained with frozen statistics is far from its batches and well.

    Attributes:
        channels: least share of channels of some layer whose statistics are far off.
        much, some: relative excess of loss from which it is an error, a warning.
        outputs: without labels, distance of outputs (in their standard deviations) from which it is a warning.
    """

    code = "N02"
    name = "stored-statistics-do-not-fit"
    title = "running statistics do not fit the weights, or the data"
    harm = (
        "In evaluation mode each channel is shifted and scaled by statistics that are not its own. Training does not "
        "show it, for it uses those of the batch; evaluation can fall to chance. Typical of averaged weights, target "
        "networks and adapters whose buffers were not copied, of pruning, and of buffers that were not saved."
    )
    shows = (
        "loss with running statistics above the loss with statistics pooled over the same batches, and running means "
        "or variances far from the pooled ones in a tenth of the channels or more"
    )
    remedy = "bnprobe.remedies.recalibrate(model, loader)  # and copy or save buffers along with parameters"
    references = (
        "Wu & Johnson 2021, Rethinking 'Batch' in BatchNorm, section 3, arXiv:2105.07576",
        "Izmailov et al. 2018, Averaging Weights Leads to Wider Optima and Better Generalization, arXiv:1803.05407",
    )
    needs = ("triangle", "stale")
    follows_from = ("N11", "N19")
    sick = "ema = copy.deepcopy(model)  # then only zip(ema.parameters(), model.parameters()) are averaged"
    healthy = "ema.load_state_dict(average_of_state_dicts)  # buffers too"

    channels: float = 0.1  # of the catalogue: fewer are dead or rare ones
    much: float = 0.2
    some: float = 0.05
    outputs: float = 0.3

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once for the model, for losses are the model's; the layers that are farthest are named."""
        shares = [fact for fact in evidence.all("stale_share") if fact.value >= self.channels]
        if not shares:
            return
        worse, apart = excess(evidence, "stored", "pooled"), distance(evidence, "stored")
        if worse is not None:
            yield from self._by_loss(evidence, worse, shares)
        elif apart is not None and apart.value > self.outputs and not apart.low <= self.outputs:
            yield self._opinion(
                evidence, Severity.WARNING, shares, None,
                Quantity("distance of outputs", apart.value, "standard deviations", apart.low, apart.high),
                f"outputs with running statistics are {apart.value:.2g} standard deviations away from those with "
                "statistics of these batches",
            )  # fmt: skip

    def _by_loss(self, evidence: Evidence, worse: Fact, shares: list[Fact]) -> Iterable[Opinion]:
        value = worse.value if np.isfinite(worse.value) else float("inf")
        if not value >= self.some:
            return
        severity = Severity.ERROR if value >= self.much else Severity.WARNING
        stored, pooled = evidence.value("loss_stored"), evidence.value("loss_pooled")
        yield self._opinion(
            evidence, severity, shares, worse.p_value, share(worse, "more loss than with pooled statistics"),
            f"the loss is {stored:.3g} with the running statistics and {pooled:.3g} with statistics pooled over the "
            "same batches",
        )  # fmt: skip

    def _opinion(
        self, evidence: Evidence, severity: Severity, shares: list[Fact], p_value: float | None, impact: Quantity,
        said: str,
    ) -> Opinion:  # fmt: skip
        worst = max(shares, key=lambda fact: fact.value)
        return Opinion(
            severity,
            f"{said}; they are far off in {len(shares)} of {len(evidence.all('stale_share'))} layers, most in "
            f"{worst.layer} ({worst.value:.0%} of its channels)",
            effect=Quantity("channels far off in the worst layer", 100 * worst.value, "%"),
            p_value=p_value,
            impact=impact,
            numbers=tuple(
                Quantity(f"median gap of {fact.layer}", fact.value, "standard deviations")
                for fact in evidence.all("mean_gap")[:3]
            ),
            causes=tuple(_causes(evidence, shares)),
        )


def _causes(evidence: Evidence, shares: list[Fact]) -> Iterable[str]:
    """Ranked by how sure they are."""
    layers = [fact.layer for fact in shares]
    if all(evidence.value("default_statistics", name) == 1 for name in layers):
        yield "all of these layers hold means of 0 and variances of 1: never updated, reset, or not in the checkpoint"
    still = [name for name in layers if evidence.value("momentum", name) == 0]
    if still:
        yield f"momentum is 0 in {len(still)} of them, so that statistics never move"
    few = [name for name in layers if evidence.value("momentum", name) * evidence.value("updates_seen", name) < 3]
    if few:
        yield f"{len(few)} of them have seen too few batches for their momentum to fill the averages"
    if len(layers) < len(evidence.all("stale_share")):
        yield "only some layers are off: a part of the model was replaced, pruned or trained in another mode"
    yield "weights were averaged, copied or loaded without the buffers"
    yield "these batches come from other data, or another preprocessing, than the statistics"
