"""N23: running statistics in half precision, which small updates do not move."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.impact import distance, excess, share

__all__ = ["LowPrecisionBuffers"]


@dataclass(frozen=True)
class LowPrecisionBuffers(Rule):
    """In single precision no channel stands still, so any that do are the dtype's; what they cost decides.

    Attributes:
        stagnant: share of channels that a batch does not move from which it is told; of the catalogue.
        some, much: relative excess of the loss with running over that with pooled statistics: a warning, an error.
        outputs: without labels, distance of outputs in standard deviations: a warning.
        chance: p-value below which an excess is no accident.
    """

    code = "N23"
    name = "low-precision-buffers"
    title = "running statistics in half precision stand still"
    harm = (
        "An exponential average adds momentum times a difference. Where that is less than half a unit in the last "
        "place of a bfloat16 or float16 buffer, nothing is added, however long training lasts: the average stops short."
    )
    shows = "running means that are bit for bit the same after a batch whose mean is elsewhere"
    remedy = (
        "for m in model.modules():\n"
        "    if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.float()\n"
        "bnprobe.remedies.recalibrate(model, loader)  # and autocast instead of model.bfloat16()"
    )
    references = ("Micikevicius et al. 2018, Mixed Precision Training, section 3, arXiv:1710.03740",)
    needs = ("precision",)
    sick = "bn = nn.BatchNorm1d(4, momentum=0.01).bfloat16()"
    healthy = "bn = nn.BatchNorm1d(4, momentum=0.01)  # float32; activations may be half"

    stagnant: float = 0.1
    some: float = 0.05
    much: float = 0.2
    outputs: float = 0.3
    chance: float = 0.01

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once for the model, for the loss is the model's; layers in evaluation mode are not updated anyway."""
        train = evidence.context.intent == "train"
        stuck = [
            fact for fact in evidence.all("stagnant_share")
            if fact.value > self.stagnant and (train or evidence.value("training", fact.layer) == 1)
        ]  # fmt: skip
        if not stuck:
            return
        worst = max(stuck, key=lambda fact: fact.value)
        worse, apart = excess(evidence, "stored", "pooled"), distance(evidence, "stored")
        severity, impact, p_value = Severity.INFO, None, None
        if worse is not None:
            impact = share(worse, "more loss than with pooled statistics")
            if worse.value >= self.some and worse.p_value < self.chance:
                severity, p_value = (Severity.ERROR if worse.value >= self.much else Severity.WARNING), worse.p_value
        elif apart is not None:
            impact = Quantity("distance of outputs", apart.value, "standard deviations", apart.low, apart.high)
            severity = Severity.WARNING if apart.low > self.outputs else Severity.INFO
        yield Opinion(
            severity,
            f"{len(stuck)} layers keep running statistics in half precision that batches do not move; in {worst.layer} "
            f"{worst.value:.0%} of the channels stand still",
            worst.layer,
            effect=Quantity("channels that stand still", 100 * worst.value, "%"),
            p_value=p_value,
            impact=impact,
        )
