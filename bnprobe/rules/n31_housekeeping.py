"""N31: small things, in one line."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["Housekeeping"]


@dataclass(frozen=True)
class Housekeeping(Rule):
    """Never more than information.

    Attributes:
        share: of a layer's channels from which it is told.
    """

    code = "N31"
    name = "housekeeping"
    title = "biases that batch norm takes out again, decay on gains, gains or variances near zero"
    harm = (
        "Hardly any: a bias before batch norm costs memory and nothing else; decay on gain and shift is a "
        "choice; where "
        "the variance is near epsilon, epsilon matters, and frameworks differ in it; a gain near zero "
        "switches a channel "
        "off, which may be meant."
    )
    shows = "layers by count"
    remedy = (
        "nn.Conv2d(a, b, 3, bias=False)  # before batch norm\n"
        "optimizer = torch.optim.AdamW([{'params': weights}, {'params': gains_and_biases, 'weight_decay': 0.0}])"
    )
    references = ("He et al. 2019, Bag of Tricks for Image Classification, section 3.1, arXiv:1812.01187",)
    needs = ("housekeeping",)
    sick = "model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=True), nn.BatchNorm2d(16))"
    healthy = "model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16))"

    share: float = 0.1  # ours: less is the odd channel of a healthy network

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """One line for the whole model."""
        counts = (
            ("with a bias before them that they take out again", self._count(evidence, "bias_before_norm", 1.0)),
            ("whose gain or shift decays", self._count(evidence, "affine_decay", 1e-300)),
            ("with running variances below 10 epsilon", self._count(evidence, "tiny_variance_share", self.share)),
            ("with gains below 0.01", self._count(evidence, "small_gain_share", self.share)),
        )
        said = [f"{count} {what}" for what, count in counts if count]
        if said:
            yield Opinion(
                Severity.INFO,
                f"of {len(evidence.norms)} norm layers: {', '.join(said)}",
                effect=Quantity("layers concerned", max(count for _, count in counts)),
            )

    def _count(self, evidence: Evidence, statistic: str, least: float) -> int:
        return sum(fact.value >= least for fact in evidence.all(statistic))
