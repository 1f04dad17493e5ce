"""N29: batches that are tasks or streams, of a model that is meant to normalize by them."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.training import layers_in_training, meant_to_use_batches

__all__ = ["BatchIsATask"]


@dataclass(frozen=True)
class BatchIsATask(Rule):
    """Information only: nothing is wrong with it, but results depend on it and should say so."""

    code = "N29"
    name = "batch-is-a-task"
    title = "each batch is a task or stream of its own, and predictions depend on it"
    harm = (
        "Results of transductive evaluation cannot be compared with those of samples predicted one by one: the other "
        "samples of the task are part of the input. An agent that acts on one state at a time has no such batch."
    )
    shows = "batches that are grouped, in a model that is meant to use their statistics when it predicts"
    remedy = (
        "# report both: transductive (the task as one batch) and inductive (statistics of the support set, or pooled)"
    )
    references = ("Bronskill et al. 2020, TaskNorm, section 3, arXiv:2003.03284",)
    needs = ("composition",)
    sick = "bnprobe.diagnose(model.train(), tasks, intent='transductive')"
    healthy = "bnprobe.diagnose(model.eval(), loader, intent='serve')"

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once, of the first layer."""
        if not meant_to_use_batches(evidence):
            return
        for ratio in layers_in_training(evidence, "composition_ratio")[:1]:
            if not ratio.value > evidence.value("composition_ratio_limit", ratio.layer):
                return
            change = evidence.fact("swap_change")
            moved = "" if change is None else f", and mates move outputs by {change.value:.2g} standard deviations"
            yield Opinion(
                Severity.INFO,
                f"batch means at {ratio.layer} vary {ratio.value:.1f} times as much as those of random batches: each "
                f"batch is something of its own{moved}",
                ratio.layer,
                effect=Quantity("ratio of variances of batch means, to those of random batches", ratio.value),
                p_value=ratio.p_value,
                impact=None if change is None else Quantity("outputs move by", change.value, "standard deviations"),
            )
