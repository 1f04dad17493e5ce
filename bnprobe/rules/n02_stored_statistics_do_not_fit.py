"""N02: running statistics that belong to other weights or other data, or were never filled."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.misfit import Misfit, misfit

__all__ = ["StoredStatisticsDoNotFit"]


@dataclass(frozen=True)
class StoredStatisticsDoNotFit(Rule):
    """Never by distance alone: a network that was trained with frozen statistics is far from its batches and well.

    Attributes:
        channels: least share of channels whose statistics are far off (or half of one layer's).
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
    tests = ("excess_stored_over_pooled",)
    of_running_statistics = True
    follows_from = ("N04", "N11", "N19", "N28")
    sick = "ema = copy.deepcopy(model)  # then only zip(ema.parameters(), model.parameters()) are averaged"
    healthy = "ema.load_state_dict(average_of_state_dicts)  # buffers too"

    channels: float = 0.1  # of the catalogue: fewer are dead or rare ones
    much: float = 0.2
    some: float = 0.05
    outputs: float = 0.3

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once for the model, for losses are the model's; the layer that is farthest off is named."""
        found = misfit(evidence, "", self.channels)
        if found is None:
            return
        if found.excess_of(self.some):
            severity = Severity.ERROR if found.excess_of(self.much) else Severity.WARNING
            said = (
                f"the loss is {found.losses[0]:.3g} with the running statistics and {found.losses[1]:.3g} with "
                "statistics pooled over the same batches"
            )
        elif found.outputs_beyond(self.outputs) and found.distance is not None:
            severity = Severity.WARNING
            said = (
                f"outputs with running statistics are {found.distance.value:.2g} standard deviations away from those "
                "with statistics of these batches"
            )
        else:
            return
        yield Opinion(
            severity,
            f"{said}; they are far off in {len(found.layers)} of {found.of} layers, most in {found.worst.layer} "
            f"({found.worst.value:.0%} of its channels)",
            effect=found.effect,
            p_value=found.p_value,
            impact=found.impact,
            numbers=tuple(
                Quantity(f"median gap of {fact.layer}", fact.value, "standard deviations")
                for fact in evidence.all("mean_gap")[:3]
            ),
            causes=tuple(_causes(evidence, found)),
        )


def _causes(evidence: Evidence, found: Misfit) -> Iterable[str]:
    """Ranked by how sure they are."""
    layers = found.layers
    if all(evidence.value("default_statistics", name) == 1 for name in layers):
        yield "all of these layers hold means of 0 and variances of 1: never updated, reset, or not in the checkpoint"
    still = [name for name in layers if evidence.value("momentum", name) == 0]
    if still:
        yield f"momentum is 0 in {len(still)} of them, so that statistics never move"
    few = [name for name in layers if evidence.value("momentum", name) * evidence.value("updates_seen", name) < 3]
    if few:
        yield f"{len(few)} of them have seen too few batches for their momentum to fill the averages"
    if len(layers) < found.of:
        yield "only some layers are off: a part of the model was replaced, pruned or trained in another mode"
    yield "weights were averaged, copied or loaded without the buffers"
    yield "these batches come from other data, or another preprocessing, than the statistics"
