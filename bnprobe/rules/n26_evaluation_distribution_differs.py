"""N26: running statistics fit the training data and not the evaluation's: a shift, not a bug."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Rule, Severity
from bnprobe.rules.misfit import misfit

__all__ = ["EvaluationDistributionDiffers"]


@dataclass(frozen=True)
class EvaluationDistributionDiffers(Rule):
    """Only where the training batches are fine: else it is N02's.

    Attributes:
        channels: least share of channels whose statistics are far off (or half of one layer's).
        much: relative excess of validation loss from which it is a warning.
        outputs: without labels, distance of outputs (in their standard deviations) from which it is a warning.
    """

    code = "N26"
    name = "evaluation-distribution-differs"
    title = "validation batches have other statistics than those that the model was trained with"
    harm = (
        "Normalization with the training's statistics moves and stretches the validation's features. The running "
        "statistics are right for what they were made of; recalibrating them on the new data may win some of it back."
    )
    shows = "validation loss with running statistics above that with statistics pooled over the validation batches"
    remedy = "bnprobe.remedies.recalibrate(model, val_loader)  # adapts to the new data; keep the old buffers"
    references = (
        "Schneider et al. 2020, Improving robustness against common corruptions by covariate shift adaptation, "
        "arXiv:2006.16971",
        "Li et al. 2016, Revisiting Batch Normalization For Practical Domain Adaptation, arXiv:1603.04779",
    )
    needs = ("validation",)
    tests = ("validation_excess_stored_over_pooled",)
    of_running_statistics = True
    follows_from = ("N02", "N11", "N19", "N25")
    sick = "val_loader = [(0.4 * x + 1.5, y) for x, y in loader]"
    healthy = "val_loader = another_part_of_the_same_data"

    channels: float = 0.1
    much: float = 0.2
    outputs: float = 0.3

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once for the model."""
        found = misfit(evidence, "validation_", self.channels)
        if found is None:
            return
        if found.excess_of(self.much):
            said = (
                f"the validation loss is {found.losses[0]:.3g} with the running statistics and {found.losses[1]:.3g} "
                "with statistics of the validation batches"
            )
        elif found.outputs_beyond(self.outputs) and found.distance is not None:
            said = (
                f"outputs on validation batches move by {found.distance.value:.2g} standard deviations when the "
                "statistics are theirs"
            )
        else:
            return
        yield Opinion(
            Severity.WARNING,
            f"{said}: another distribution, or another preprocessing, than that of the training",
            effect=found.effect,
            p_value=found.p_value,
            impact=found.impact,
        )
