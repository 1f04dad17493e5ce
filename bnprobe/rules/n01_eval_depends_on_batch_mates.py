"""N01: predictions that depend on the other samples of the batch."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["EvalDependsOnBatchMates"]

_UNIT = "standard deviations of outputs"
_MEANT = ("batch-stats-at-test", "transductive")


@dataclass(frozen=True)
class EvalDependsOnBatchMates(Rule):
    """By exchanging batch mates, whatever the cause: it needs no layer that is known to normalize.

    Attributes:
        much, some: median change of outputs from which it is an error, a warning; of the catalogue: networks that
            use statistics of the batch at test are above 0.05, networks in evaluation mode at 1e-6.
        unsure: the same where no copy in double precision could be made: kernels of other batch sizes differ by 1e-3
            on GPUs, in half precision by more.
        noise: how many times more than where nothing is exchanged.
        others: share of the change that stays when batch statistics are held still, from which something else than
            normalization couples samples.
    """

    code = "N01"
    name = "eval-depends-on-batch-mates"
    title = "what is predicted for a sample depends on the samples that come with it"
    harm = (
        "The same sample is judged differently alone and in company, in another order, with another batch size. "
        "Measured accuracy is that of the test loader's batches, not of the model; a deployed model sees others."
    )
    shows = "outputs of the same samples change when their batch mates are exchanged, more than repetition changes them"
    remedy = (
        "model.eval()  # before predicting; batch norms in lists belong in nn.ModuleList\n"
        "for m in model.modules():  # Monte Carlo dropout: only dropout goes back to training mode\n"
        "    if isinstance(m, nn.Dropout): m.train()"
    )
    references = (
        "Ioffe & Szegedy 2015, Batch Normalization, algorithm 2, arXiv:1502.03167",
        "Wu & Johnson 2021, Rethinking 'Batch' in BatchNorm, section 2, arXiv:2105.07576",
    )
    needs = ("swap",)
    untrained = True
    sick = "model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))\nmodel.train()(x[:1])"
    healthy = "model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))\nmodel.eval()(x[:1])"

    much: float = 0.05
    some: float = 0.005
    unsure: float = 0.02
    noise: float = 10
    others: float = 0.5

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Of the model."""
        found = evidence.fact("swap_change")
        if found is None:
            return
        alone = evidence.value("swap_alone", default=0.0)
        worst = max(found.value, alone)
        exact = evidence.value("swap_exact") == 1
        least = max(self.some if exact else self.unsure, self.noise * evidence.value("swap_noise", default=0.0))
        if not worst >= least:
            yield from self._as_handed_over(evidence)
            return
        change = Quantity("change of an output by other batch mates", found.value, _UNIT, found.low, found.high)
        other = evidence.value("swap_without_norms", default=0.0)
        numbers = [Quantity("the same without an exchange", evidence.value("swap_noise", default=0.0), _UNIT)]
        if alone:
            numbers.append(Quantity("change of samples that come alone", alone, _UNIT))
        severity = Severity.ERROR if worst > self.much else Severity.WARNING
        said = (
            f"outputs of the same samples change by {worst:.2g} standard deviations with other batch mates"
            f"{_state(evidence)}"
        )
        if found.value >= self.some and other >= self.others * found.value:
            yield Opinion(
                Severity.INFO,
                f"{said}, and still by {other:.2g} when batch statistics are held still: something else than "
                "normalization couples samples",
                effect=change,
                numbers=tuple(numbers),
                remedy="look for operations over the batch axis: attention, sorting, means, hand-written statistics",
            )
            return
        if evidence.context.intent in _MEANT:
            severity, said = Severity.INFO, f"{said}, as intended"
        yield Opinion(severity, said, effect=change, impact=change, numbers=tuple(numbers), causes=_causes(evidence))

    def _as_handed_over(self, evidence: Evidence) -> Iterable[Opinion]:
        found = evidence.fact("swap_change_handed")
        if found is not None and found.value > self.much:
            change = Quantity("change of an output by other batch mates", found.value, _UNIT, found.low, found.high)
            yield Opinion(
                Severity.INFO,
                f"as it was handed over (training mode) outputs change by {found.value:.2g} standard deviations with "
                "other batch mates, after eval() they do not: call eval() before predicting",
                effect=change,
            )


def _state(evidence: Evidence) -> str:
    return (
        ", even after eval()" if evidence.value("swap_after_eval") == 1 else ", in the mode in which it was handed over"
    )


def _causes(evidence: Evidence) -> tuple[str, ...]:
    norms = [layer.name for layer in evidence.norms if layer.family == "batch_norm"]
    training = [name for name in norms if evidence.value("training", name) == 1]
    if evidence.value("swap_after_eval") == 1:
        training = [name for name in norms if evidence.value("eval_unreached", name) == 1]
    found = []
    if training:
        more = f" and {len(training) - 1} more" if len(training) > 1 else ""
        found.append(f"{training[0]}{more} in training mode")
    bare = [name for name in norms if evidence.value("has_buffers", name) == 0]
    if bare:
        found.append(f"{bare[0]} has no running statistics")
    if not found:
        found.append("normalization that is no layer of the model, or a forward that switches modes itself")
    return tuple(found)
