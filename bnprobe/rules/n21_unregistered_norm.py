"""N21: normalization that is no part of the model."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["UnregisteredNorm"]

_MEANT = ("batch-stats-at-test", "transductive")


@dataclass(frozen=True)
class UnregisteredNorm(Rule):
    """What ran, against what is registered; a functional call counts only where samples are coupled by it.

    Functional batch norms of weights (weight standardization) and hidden teachers in evaluation mode are sound.

    Attributes:
        much, some: change of outputs by other batch mates from which it is an error, a warning; of the rule on these.
    """

    code = "N21"
    name = "unregistered-norm"
    title = "normalization that runs in the forward and is no layer of the model"
    harm = (
        "A layer that is made in forward, or kept in a plain list, is reached by nothing: eval() does not switch it, "
        "the optimizer does not train its gain, state_dict does not save it, to(device) does not move it."
    )
    shows = "calls of normalizing functions whose module is not among model.modules()"
    remedy = "self.norms = nn.ModuleList([nn.BatchNorm1d(width) for width in widths])  # in __init__"
    references = (
        "PyTorch documentation, torch.nn.ModuleList",
        "Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167",
    )
    needs = ("dispatch",)
    untrained = True
    sick = "def forward(self, x): return nn.BatchNorm1d(x.shape[1])(self.linear(x))"
    healthy = "def __init__(self): super().__init__(); self.norm = nn.BatchNorm1d(8)"

    much: float = 0.05
    some: float = 0.005

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """At the registered module in whose forward it runs."""
        swap = evidence.value("swap_change", default=0.0)
        judged = set()
        for fact in _counts(evidence, "unregistered_norms"):
            judged.add(fact.layer)
            yield self._stranger(evidence, fact.layer, int(fact.value), swap)
        for fact in _counts(evidence, "functional_by_batch"):
            if fact.layer not in judged and swap >= self.some:
                yield self._functional(evidence, fact.layer, int(fact.value), swap)

    def _stranger(self, evidence: Evidence, layer: str, count: int, swap: float) -> Opinion:
        created = evidence.value("created_norms", layer, 0.0) > 0
        by_batch = evidence.value("unregistered_by_batch", layer, 0.0) > 0
        untrained = evidence.value("unregistered_trainable", layer, 0.0) > 0
        severity = Severity.WARNING if created or by_batch or untrained else Severity.INFO
        if by_batch and swap > self.much:
            severity = Severity.ERROR
        if evidence.context.intent in _MEANT and by_batch and not untrained:
            severity = Severity.INFO
        told = ["that every forward makes anew" if created else "that the model holds but does not register"]
        if by_batch:
            told.append(
                f"use statistics of the batch after eval() (outputs change by {swap:.2g} standard deviations with "
                "other batch mates)"
            )
        if untrained:
            told.append("have weights that model.parameters() does not list")
        return Opinion(
            severity,
            f"{count} norm layers {'; they '.join(told)}",
            layer,
            effect=Quantity("unregistered norm layers", count),
            impact=Quantity("change of an output by other batch mates", swap, "standard deviations")
            if by_batch
            else None,
            causes=("built in forward" if created else "kept in a list, dict or tuple instead of a ModuleList",),
        )

    def _functional(self, evidence: Evidence, layer: str, count: int, swap: float) -> Opinion:
        severity = Severity.ERROR if swap > self.much else Severity.WARNING
        return Opinion(
            Severity.INFO if evidence.context.intent in _MEANT else severity,
            f"{count} functional batch norms normalize by the batch in evaluation mode; outputs change by {swap:.2g} "
            "standard deviations with other batch mates",
            layer,
            effect=Quantity("functional batch norms by the batch", count),
            impact=Quantity("change of an output by other batch mates", swap, "standard deviations"),
            remedy="F.batch_norm(x, self.running_mean, self.running_var, training=self.training)",
            causes=("training=True is written into the call, or it has no running statistics",),
        )


def _counts(evidence: Evidence, statistic: str) -> list[Fact]:
    return [fact for fact in evidence.all(statistic) if 1 <= fact.value < float("inf")]
