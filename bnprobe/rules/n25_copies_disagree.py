"""N25: of two copies of a model, one has running statistics that do not fit its own weights."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Rule, Severity
from bnprobe.rules.misfit import misfit

__all__ = ["CopiesDisagree"]


@dataclass(frozen=True)
class CopiesDisagree(Rule):
    """As N02, for the copy that was given as ``reference``, and for the model beside it.

    Attributes:
        channels: least share of channels whose statistics are far off (or half of one layer's).
        much, some: relative excess of loss from which it is an error, a warning.
        outputs: without labels, distance of outputs (in their standard deviations) from which it is a warning.
    """

    code = "N25"
    name = "copies-disagree"
    title = "a copy of the model (average, target network, client) has running statistics of other weights"
    harm = (
        "Averaging or copying parameters alone leaves a copy with the buffers of its first day. It is only ever used "
        "in evaluation mode, where they count, so that nothing but its bad results shows it."
    )
    shows = "the copy's loss with its running statistics above that with statistics pooled under its own weights"
    remedy = (
        "# in place of zip(copy.parameters(), model.parameters()):\n"
        "for mine, its in zip(copy.buffers(), model.buffers()): mine.copy_(its)\n"
        "# or bnprobe.remedies.recalibrate(copy, loader)"
    )
    references = (
        "Tarvainen & Valpola 2017, Mean teachers are better role models, arXiv:1703.01780",
        "Cai et al. 2021, Exponential Moving Average Normalization for Self-supervised and Semi-supervised Learning, "
        "arXiv:2101.08482",
    )
    needs = ("copies",)
    tests = ("reference_excess_stored_over_pooled",)
    of_running_statistics = True
    follows_from = ("N11", "N19")
    sick = "target = copy.deepcopy(online); polyak(target.parameters(), online.parameters())"
    healthy = "target = torch.optim.swa_utils.AveragedModel(online, use_buffers=True)"

    channels: float = 0.1
    much: float = 0.2
    some: float = 0.05
    outputs: float = 0.3

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """One opinion a copy."""
        for whose, prefix in (("the reference", "reference_"), ("this model", "")):
            yield from self._copy(evidence, whose, prefix)

    def _copy(self, evidence: Evidence, whose: str, prefix: str) -> Iterable[Opinion]:
        found = misfit(evidence, prefix, self.channels)
        if found is None:
            return
        if found.excess_of(self.some):
            severity = Severity.ERROR if found.excess_of(self.much) else Severity.WARNING
            harm = f"its loss is {found.losses[0]:.3g} with them and {found.losses[1]:.3g} with pooled ones"
        elif found.outputs_beyond(self.outputs) and found.distance is not None:
            severity = Severity.WARNING
            harm = f"its outputs are {found.distance.value:.2g} standard deviations away from those with pooled ones"
        else:
            return
        yield Opinion(
            severity,
            f"{whose}'s running statistics do not fit its own weights: far off in {len(found.layers)} of {found.of} "
            f"layers; {harm}",
            effect=found.effect,
            p_value=found.p_value,
            impact=found.impact,
            causes=tuple(self._causes(evidence)),
        )

    def _causes(self, evidence: Evidence) -> Iterable[str]:
        if evidence.value("buffers_shared") == 1 and evidence.value("weights_shared") < 1:
            yield "both copies hold the same buffers though their weights differ"
        else:
            yield "parameters were averaged or copied, buffers were not"
