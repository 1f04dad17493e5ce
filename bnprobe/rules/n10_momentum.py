"""N10: a momentum of batch norm that never updates, that is no average, or that has not had the time."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.impact import distance, excess, share

__all__ = ["Momentum"]


@dataclass(frozen=True)
class Momentum(Rule):
    """By the value, what it does to the running mean, and what that does to the loss.

    Attributes:
        large: momentum from which its jitter is looked at.
        jitter: variance of the running mean, in variances of a channel, above which it is too much by itself.
        costly: the same where running statistics cost loss.
        filled: momentum times updates below which the averages still hold their start.
        costs: relative excess of loss with running statistics below which it does no harm.
    """

    code = "N10"
    name = "momentum"
    title = "the momentum of running statistics is wrong"
    harm = (
        "PyTorch's momentum is the weight of the new batch: TensorFlow's 0.99 is 0.01 here. With 0.99 running "
        "statistics are those of the last batch and evaluation jumps from step to step; with 0 they never "
        "move, however "
        "often num_batches_tracked counts; outside 0 ... 1 they diverge."
    )
    shows = (
        "momentum 0 in training; momentum of 0.5 or more where a batch's mean varies, m / (2 - m) of whose variance "
        "the running mean keeps; or momentum times updates below 3"
    )
    remedy = (
        "for m in model.modules():\n    if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.momentum = 0.1\n"
        "bnprobe.remedies.recalibrate(model, loader)  # PyTorch's momentum is 1 - TensorFlow's"
    )
    references = (
        "PyTorch documentation, torch.nn.BatchNorm2d: note on momentum",
        "Ioffe & Szegedy 2015, Batch Normalization, section 3.1, arXiv:1502.03167",
    )
    needs = ("state",)
    untrained = True
    sick = "bn = nn.BatchNorm2d(16, momentum=0.99)  # copied from TensorFlow; batches of 8"
    healthy = "bn = nn.BatchNorm2d(16, momentum=0.01)  # with thousands of updates"

    large: float = 0.5  # of the catalogue
    jitter: float = 0.1  # of the catalogue: a third of a standard deviation off, at any time
    costly: float = 0.02  # ours: a toy with 0.03 had 9 % more loss; the loader's batches may be larger than training's
    filled: float = 3.0  # of the catalogue: exp(-3) is 5 %
    costs: float = 0.05  # as N02's warning

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """One opinion a layer: what is worst of it."""
        for fact in evidence.all("momentum"):
            if fact.value != fact.value:
                continue  # the layer has none
            if evidence.value("has_buffers", fact.layer) == 1 and evidence.value("tracks", fact.layer, 1) == 1:
                yield from self._judge(evidence, fact.layer, fact.value)

    def _judge(self, evidence: Evidence, layer: str, momentum: float) -> Iterable[Opinion]:
        training = evidence.value("training", layer) == 1 or evidence.context.intent == "train"
        updates = evidence.value("updates_seen", layer)
        effect = Quantity("momentum", momentum)
        if not 0 <= momentum <= 1:
            yield Opinion(Severity.ERROR, f"momentum is {momentum:g}; an average has 0 ... 1", layer, effect)
        elif momentum == 0:
            yield from self._still(evidence, layer, effect, training, updates)
        elif momentum >= self.large and evidence.value("momentum_jitter", layer) > self.costly:
            yield from self._jumping(evidence, layer, effect, training)
        elif updates > 0 and momentum * updates < self.filled:
            yield Opinion(
                Severity.INFO,
                f"{updates:.0f} updates with momentum {momentum:g} leave {(1 - momentum) ** updates:.0%} of the "
                "running statistics at their start",
                layer,
                Quantity("momentum times updates", momentum * updates),
            )

    def _still(
        self, evidence: Evidence, layer: str, effect: Quantity, training: bool, updates: float
    ) -> Iterable[Opinion]:
        """Momentum 0: on purpose where the statistics were filled before and fit."""
        counted = updates > 0 and evidence.value("default_statistics", layer) == 1
        if not training and not counted:
            return
        harmless, impact = self._impact(evidence)
        said = "momentum is 0: running statistics never move"
        if counted:
            said += f"; they are still 0 and 1 after {updates:.0f} updates"
        yield Opinion(Severity.INFO if harmless else Severity.ERROR, said, layer, effect, impact=impact)

    def _jumping(self, evidence: Evidence, layer: str, effect: Quantity, training: bool) -> Iterable[Opinion]:
        jitter = evidence.value("momentum_jitter", layer)
        harmless, impact = self._impact(evidence)
        unknown = impact is None and not (training and jitter > self.jitter)
        severity = Severity.INFO if harmless or unknown else Severity.WARNING
        worse = excess(evidence, "stored", "pooled")
        yield Opinion(
            severity,
            f"momentum {effect.value:g} makes the running mean jump by {jitter**0.5:.2g} standard "
            "deviations of a channel "
            "from batch to batch",
            layer,
            Quantity("jitter of the running mean", jitter, "variances of a channel"),
            p_value=None if worse is None or severity == Severity.INFO else worse.p_value,
            impact=impact,
            numbers=(effect,),
        )

    def _impact(self, evidence: Evidence) -> tuple[bool, Quantity | None]:
        """Whether running statistics were seen to do no harm; and what they cost."""
        worse, apart = excess(evidence, "stored", "pooled"), distance(evidence, "stored")
        if worse is not None:
            return not worse.value >= self.costs, share(worse, "more loss than with pooled statistics")
        if apart is not None:
            impact = Quantity("distance of outputs", apart.value, "standard deviations", apart.low, apart.high)
            return apart.value < 0.3, impact
        return False, None
