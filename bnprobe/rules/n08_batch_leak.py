"""N08: a network that reads something out of batch statistics that no single sample holds."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.impact import HIGH, share
from bnprobe.rules.training import hidden_by_batches, layers_in_training, meant_to_use_batches

__all__ = ["BatchLeak"]


@dataclass(frozen=True)
class BatchLeak(Rule):
    """Statistics of many values are the same with or without a few samples, unless they are the message.

    Attributes:
        much: relative excess of loss with pooled statistics over that with the batch's own.
        enough: effective values in each call from which on noise of batch statistics explains no such excess.
    """

    code = "N08"
    name = "batch-leak"
    title = "the training loss is low only with each batch's own statistics"
    harm = (
        "Statistics of a batch (or of one of several calls) tell which batch or role it is. A network that solves its "
        "task by that has learned nothing about samples: training looks perfect, evaluation is chance."
    )
    shows = (
        "a loss with pooled statistics more than 20 % above that with the batch's own, although each call has enough "
        "effective values that their noise cannot be the reason"
    )
    remedy = (
        "if torch.rand(()) < 0.5: first, second = second, first  # draw roles at random\n"
        "scores = model(torch.cat([first, second])).chunk(2)  # one forward for all roles\n"
        "# contrastive learning: encode keys in shuffled order, or use group or layer normalization"
    )
    references = (
        "He et al. 2020, Momentum Contrast, section 3.3, arXiv:1911.05722",
        "Wu & Johnson 2021, Rethinking 'Batch' in BatchNorm, section 6, arXiv:2105.07576",
    )
    needs = ("triangle", "composition")
    tests = ("excess_pooled_over_batch",)
    follows_from = ("N06", "N07")
    sick = (
        "loss = F.softplus(model(worse) - model(better)).mean()  # each role is a batch of its own, "
        "and roles differ in variance"
    )
    healthy = "worse, better = model(torch.cat([worse, better])).chunk(2)"

    much: float = HIGH
    enough: float = 32.0

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once for the model: a loss is the model's."""
        found = layers_in_training(evidence, "n_eff_values")
        worse = hidden_by_batches(evidence, self.much)
        if not found or worse is None:
            return
        poorest = min((self._poorest(evidence, fact) for fact in found), key=lambda fact: fact.value)
        if poorest.value < self.enough:
            return  # N04 and N06 know why
        calls = [fact.layer for fact in layers_in_training(evidence, "calls_per_pass") if fact.value >= 2]
        yield Opinion(
            Severity.INFO if meant_to_use_batches(evidence) else Severity.ERROR,
            f"the loss is {worse.value:.0%} higher with pooled statistics than with each batch's own, although every "
            f"call has {poorest.value:.0f} effective values a channel or more: the network reads its statistics",
            effect=share(worse, "more loss with pooled statistics than with the batch's own"),
            p_value=worse.p_value,
            impact=share(worse, "more loss with pooled statistics than with the batch's own"),
            numbers=(
                Quantity("fewest effective values a channel", poorest.value, f"at {poorest.layer}"),
                Quantity("layers called more than once in a pass", len(calls)),
            ),
            causes=tuple(self._causes(calls)),
        )

    def _poorest(self, evidence: Evidence, fact: Fact) -> Fact:
        calls = evidence.all("call_n_eff_values", fact.layer)
        return min(calls, key=lambda one: one.value) if calls else fact

    def _causes(self, calls: list[str]) -> Iterable[str]:
        if calls:
            yield f"roles go through {calls[0]} in calls of their own, and their statistics tell which is which"
        yield "samples that belong together (views, queries and keys) share a batch that others do not"
