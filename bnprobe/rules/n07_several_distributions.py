"""N07: one batch norm for several distributions: levels, domains, real and fake, time steps."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.impact import HIGH, distance, excess, share
from bnprobe.rules.training import hidden_by_batches, layers_in_training, meant_to_use_batches

__all__ = ["SeveralDistributions"]


@dataclass(frozen=True)
class SeveralDistributions(Rule):
    """In training each call is normalized by its own statistics, at evaluation all are by one mixture.

    Attributes:
        apart: KL divergence, in nats a channel, of a call from all calls together, from which one set of statistics
            cannot serve both: 0.1 is a mean off by 0.45 standard deviations, or a variance by a factor of 1.9.
        roles: the same where the model as a whole is called several times, at its first layer. Such inputs nearly
            always differ a little; a loss that hangs on that little is a leak (N08), whose cure is another.
        noticed: from which it is worth knowing.
        costs: relative excess of loss with pooled statistics over that with each call's own.
        moves: without labels, how far outputs move, in their standard deviations.
        alike: how much more alike batches a period apart must be than neighbours, for batches to take turns; 1 is all.
        pure: excess of equal labels in a batch above which batches that take turns are batches of classes (N06).
    """

    code = "N07"
    name = "several-distributions-through-one-layer"
    title = "one batch norm serves several distributions, each with its own batch statistics"
    harm = (
        "Each call in training is centred and scaled by itself. Running statistics are a mixture that fits none of "
        "them, so that at evaluation every one is normalized in a way that the network has never seen."
    )
    shows = (
        "calls of one layer in one pass (or batches in turn) whose means and variances differ by more than permuting "
        "them makes, with a KL divergence from their mixture above 0.1 nats a channel, and a loss that is higher with "
        "the mixture"
    )
    remedy = (
        "self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in levels)  # statistics for each level or domain\n"
        "model(torch.cat([source, target]))  # or mix all distributions in every forward; or group normalization"
    )
    references = (
        "Li et al. 2017, Revisiting Batch Normalization For Practical Domain Adaptation, arXiv:1603.04779",
        "Wu & Johnson 2021, Rethinking 'Batch' in BatchNorm, section 5.2, arXiv:2105.07576",
        "Xie et al. 2020, Adversarial Examples Improve Image Recognition, arXiv:1911.09665",
    )
    needs = ("calls",)
    tests = ("call_contrast_mean", "batch_periodicity")
    sick = (
        "def forward(self, x):\n"
        "    levels = [self.conv1(x), 10 * self.conv2(x)]\n"
        "    return [self.bn(level) for level in levels]  # one norm for two scales"
    )
    healthy = (
        "def forward(self, x):\n"
        "    levels = [self.conv1(x), 10 * self.conv2(x)]\n"
        "    return [bn(level) for bn, level in zip(self.bns, levels)]"
    )

    apart: float = 0.1
    roles: float = 0.5
    noticed: float = 0.05
    costs: float = 0.05
    moves: float = 0.3
    alike: float = 0.5
    pure: float = 0.1

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """The layer whose calls are farthest apart; else batches that take turns."""
        by_call = [one for one in (self._calls(evidence, fact) for fact in self._called(evidence)) if one]
        series = layers_in_training(evidence, "batch_periodicity")
        by_turn = [one for one in (self._turns(evidence, fact) for fact in series) if one]
        for found in (by_call, by_turn):
            if found:
                yield max(found, key=lambda one: (one.severity, one.effect.value if one.effect else 0.0))
                return

    def _called(self, evidence: Evidence) -> list[Fact]:
        """Of all layers that are called equally often, the first: what differs there has not passed a shared layer.

        Deeper ones show what the network makes of a difference, and a network that lives on it makes much of little.
        """
        found: dict[float, Fact] = {}
        for fact in layers_in_training(evidence, "calls_per_pass"):
            if fact.value >= 2:
                found.setdefault(fact.value, fact)
        return list(found.values())

    def _calls(self, evidence: Evidence, calls: Fact) -> Opinion | None:
        layer = calls.layer
        mean, spread = evidence.fact("call_contrast_mean", layer), evidence.fact("call_contrast_spread", layer)
        far = [fact.value for fact in evidence.all("call_divergence", layer)]
        if mean is None or spread is None or not far or max(far) < self.noticed:
            return None
        worst = far.index(max(far))
        roles = evidence.value("model_calls") >= 2
        return Opinion(
            self._severity(evidence, max(far), self.roles if roles else self.apart),
            f"{layer} is called {calls.value:.0f} times in a pass on inputs that differ: call {worst + 1} is "
            f"{max(far):.2g} nats a channel away from all calls together, {mean.value:.0%} of the variance lies "
            f"between calls, and their log variances span {spread.value:.2g}",
            layer,
            effect=Quantity("divergence of the farthest call from the mixture", max(far), "nats a channel"),
            p_value=min(1.0, 2 * min(mean.p_value, spread.p_value)),  # the better of two tests
            impact=self._impact(evidence),
            numbers=(
                Quantity("calls in a pass", calls.value),
                Quantity("variance between calls", 100 * mean.value, "%"),
                Quantity("span of log variances", spread.value, "nats"),
                Quantity("passes looked at", calls.count),
            ),
        )

    def _turns(self, evidence: Evidence, fact: Fact) -> Opinion | None:
        far = evidence.value("phase_divergence", fact.layer)
        pure = evidence.fact("label_purity")
        classes = pure is not None and pure.value > evidence.value("label_purity_random") + self.pure
        if fact.value < self.alike or not far >= self.noticed or (classes and pure is not None and pure.p_value < 0.01):
            return None
        period = evidence.value("batch_period", fact.layer)
        return Opinion(
            self._severity(evidence, far, self.apart),
            f"batches take turns with period {period:.0f}: at {fact.layer} those that far apart are alike, and one "
            f"kind is {far:.2g} nats a channel away from all together",
            fact.layer,
            effect=Quantity("divergence of the farthest kind of batch from the mixture", far, "nats a channel"),
            p_value=fact.p_value,
            impact=self._impact(evidence),
            numbers=(
                Quantity("period", period, "batches"),
                Quantity("likeness of batches a period apart, less that of neighbours", fact.value),
                Quantity("batches looked at", fact.count),
            ),
            remedy="loader = mix(source, target)  # samples of every domain in each batch; or norms for each",
            causes=("batches come from several data sets in turn", "several tasks share one network"),
        )

    def _severity(self, evidence: Evidence, far: float, apart: float) -> Severity:
        impact = self._impact(evidence)
        if far < apart or impact is None or meant_to_use_batches(evidence):
            return Severity.INFO
        return Severity.ERROR if hidden_by_batches(evidence, HIGH) is not None else Severity.WARNING

    def _impact(self, evidence: Evidence) -> Quantity | None:
        worse = hidden_by_batches(evidence, self.costs)
        if worse is not None:
            return share(worse, "more loss with the mixture than with each call's own statistics")
        apart = distance(evidence, "batch")
        if excess(evidence, "pooled", "batch") is None and apart is not None and apart.low > self.moves:
            return Quantity("outputs move by", apart.value, "standard deviations", apart.low, apart.high)
        return None
