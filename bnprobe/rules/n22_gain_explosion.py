"""N22: channels, or samples, that a norm layer amplifies far beyond what it was made for."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.impact import HIGH, LIKELY, distance, excess, share

__all__ = ["GainExplosion"]


@dataclass(frozen=True)
class GainExplosion(Rule):
    """A channel whose stored variance is tiny, and whose variance here is not.

    Attributes:
        ratio, large: variance of the output in units of gamma squared from which it is a warning, an error.
        outlier: how many times the layer's median a channel's gain is; else all its statistics are off, which is N02's.
        costs: relative excess of loss with running statistics that makes it matter.
        outputs: without labels, distance of outputs (in their standard deviations).
        dead: share of channels of a layer that are constant here from which it is told.
        spread: largest over median gain of samples from which it is told.
        harder: loss of amplified samples over that of others from which it is a warning.
    """

    code = "N22"
    name = "gain-explosion"
    title = "a norm layer amplifies channels or samples of hardly any variance"
    harm = (
        "Batch norm divides by a stored standard deviation. A channel that was constant in training has "
        "nearly none, and "
        "what little comes later is multiplied by hundreds and saturates everything behind it. Group and instance norm "
        "do the same to single samples that are nearly constant: empty tiles come out as loud as full ones."
    )
    shows = (
        "|gamma| / sqrt(running variance + eps) far above that of the layer's other channels, together with outputs of "
        "ten times the variance that gamma stands for"
    )
    remedy = (
        "bnprobe.remedies.recalibrate(model, loader)  # on data that vary as those in service do\n"
        "bn.eps = 1e-3  # a floor under the variance; or leave inputs out that never vary"
    )
    references = ("Ioffe & Szegedy 2015, Batch Normalization, algorithm 1: epsilon, arXiv:1502.03167",)
    needs = ("gain",)
    tests = ("amplified_loss",)
    follows_from = ("N11",)
    sick = "bn = nn.BatchNorm1d(16); bn.running_var[:4] = 1e-8; bn.eval()(torch.randn(32, 16))"
    healthy = "bn = nn.BatchNorm1d(16); nn.init.zeros_(bn.weight)  # the last gain of a residual branch"

    ratio: float = 10.0  # of the catalogue
    large: float = 100.0  # of the catalogue
    outlier: float = 10.0  # ours: N02's set-ups move whole layers
    costs: float = 0.05  # as N02's warning
    outputs: float = 0.3  # of the catalogue
    dead: float = 0.1  # ours: fewer dead channels are in every network with ReLU
    spread: float = 30.0  # ours: an input of a thirtieth of the usual contrast
    harder: float = 1.5  # ours

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """One opinion a layer."""
        stored = evidence.all("variance_ratio")
        for fact in stored:
            exploding = self._exploding(evidence, fact)
            if exploding.any():
                yield self._explosion(evidence, fact, exploding)
            elif evidence.value("dead_share", fact.layer) >= self.dead:
                yield self._dead(evidence, fact.layer)
        for fact in evidence.all("sample_gain_spread"):
            if fact.value >= self.spread and fact.layer not in {one.layer for one in stored}:
                yield self._samples(evidence, fact)

    def _exploding(self, evidence: Evidence, fact: Fact) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        ratios, gains = evidence.channels("variance_ratio", fact.layer), evidence.channels("gain", fact.layer)
        if ratios is None or gains is None or not fact.low > self.ratio:
            return np.zeros(1, dtype=bool)
        alive = gains[gains > 0]
        middle = np.median(alive) if alive.size else np.nan
        found: np.ndarray[tuple[int], np.dtype[np.bool_]] = (ratios > self.ratio) & (gains > self.outlier * middle)
        return found

    def _explosion(
        self, evidence: Evidence, fact: Fact, which: "np.ndarray[tuple[int], np.dtype[np.bool_]]"
    ) -> Opinion:
        gains, ratios = evidence.channels("gain", fact.layer), evidence.channels("variance_ratio", fact.layer)
        assert gains is not None
        assert ratios is not None
        harmful, grave, p_value, impact = self._impact(evidence)
        severity = Severity.INFO
        if harmful:
            severity = Severity.ERROR if ratios[which].max() > self.large and grave else Severity.WARNING
        return Opinion(
            severity,
            f"{which.sum()} of {which.size} channels are multiplied by up to {gains[which].max():.3g} "
            "(median of the layer "
            f"{np.median(gains):.2g}) and leave with {ratios[which].max():.3g} times the variance of gamma",
            fact.layer,
            Quantity("variance of the output", fact.value, "of gamma squared", fact.low, fact.high),
            p_value=p_value,
            impact=impact,
            numbers=(Quantity("largest gain", float(gains[which].max())),),
            causes=(
                "these channels were (nearly) constant in training and are not now",
                "the statistics belong to other weights or data",
                "epsilon is zero or far below the variance",
            ),
        )

    def _impact(self, evidence: Evidence) -> tuple[bool, bool, float | None, Quantity | None]:
        """Whether it matters, whether much, how sure that is."""
        worse, apart = excess(evidence, "stored", "pooled"), distance(evidence, "stored")
        if worse is not None:
            certain = worse.p_value < LIKELY or not np.isfinite(worse.value)
            p_value = worse.p_value if np.isfinite(worse.p_value) else None
            harmful = certain and not worse.value < self.costs
            return harmful, harmful and not worse.value < HIGH, p_value if harmful else None, share(
                worse, "more loss than with pooled statistics"
            )  # fmt: skip
        if apart is not None:
            impact = Quantity("distance of outputs", apart.value, "standard deviations", apart.low, apart.high)
            harmful = apart.value > self.outputs and not apart.low <= self.outputs
            return harmful, harmful, None, impact
        return False, False, None, None

    def _dead(self, evidence: Evidence, layer: str) -> Opinion:
        dead = evidence.value("dead_share", layer)
        return Opinion(
            Severity.INFO,
            f"{dead:.0%} of the channels are constant on these batches although they were not in training; they still "
            "add beta - gamma * mean / sd to what comes next",
            layer,
            Quantity("constant channels", 100 * dead, "%"),
        )

    def _samples(self, evidence: Evidence, fact: Fact) -> Opinion:
        loss, other = evidence.fact("amplified_loss", fact.layer), evidence.value("ordinary_loss", fact.layer)
        severity, p_value, impact = Severity.INFO, None, None
        if loss is not None and loss.value > self.harder * other and loss.p_value < LIKELY:
            severity, p_value = Severity.WARNING, loss.p_value
            impact = Quantity("loss of amplified samples over that of others", loss.value / max(other, 1e-12))
        return Opinion(
            severity,
            f"the most amplified sample is multiplied by {fact.value:.3g} times what the middle one is: "
            "inputs of hardly "
            "any contrast come out as strong as all others",
            fact.layer,
            Quantity("largest over median gain", fact.value),
            p_value=p_value,
            impact=impact,
            remedy="norm.eps = 1e-3  # a floor under the variance of single samples; or leave empty inputs out",
        )
