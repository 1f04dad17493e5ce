"""N27: an exported model that does something else than the model."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["DeploymentParity"]

_UNIT = "standard deviations of outputs"


@dataclass(frozen=True)
class DeploymentParity(Rule):
    """Gaps are absolute, in standard deviations of outputs: an output that ought to be zero is never divided by.

    Attributes:
        much, some: largest gap from which it is an error, a warning; of the catalogue.
        noise: how many times more than the model differs from itself in double precision.
        roundings: how many roundings of the exported dtype a gap may have, where it is a half one. Ours.
        quantized: root mean square gap from which integer arithmetic is a warning. Ours: eight bits give 0.01 to 0.1.
        mates: change of the exported outputs by other batch mates from which it is an error, a warning.
        spread: largest over median gain of a layer from which folding is told before quantizing by the tensor.
    """

    code = "N27"
    name = "deployment-parity"
    title = "the exported model does not do what the model does"
    harm = (
        "Normalization is what exports change most: it is folded into weights, frozen or not, traced in the mode in "
        "which it happened to be. A deployed model with other statistics, another epsilon or batch statistics is "
        "another model."
    )
    shows = (
        "outputs of the two on the same batches differ by more than rounding; or exported outputs depend on batch mates"
    )
    remedy = (
        "model.eval()  # before torch.jit.trace, torch.export.export, torch.onnx.export\n"
        "folded = bnprobe.remedies.fold(model)  # with running_var + eps, not the variance of a batch"
    )
    references = (
        "Jacob et al. 2018, Quantization and Training of Neural Networks, section 3.2, arXiv:1712.05877",
        "Krishnamoorthi 2018, Quantizing deep convolutional networks, arXiv:1806.08342",
    )
    needs = ("parity",)
    untrained = True
    sick = "exported = torch.jit.trace(model.train(), x)  # then model.eval()"
    healthy = "exported = torch.jit.trace(model.eval(), x)"

    much: float = 1e-2
    some: float = 1e-3
    noise: float = 10
    roundings: float = 16
    quantized: float = 0.3
    mates: tuple[float, float] = (0.05, 0.005)
    spread: float = 100

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """At most one for the model; and, as information, one at the layer with the widest gains."""
        mates = evidence.fact("swap_change_exported")
        coupled = mates is not None and mates.value > max(
            self.mates[1], self.noise * evidence.value("swap_noise_exported", default=0.0)
        )
        own = evidence.value("swap_change", default=0.0) > self.mates[1]
        gap = evidence.fact("parity_gap")
        if mates is not None and coupled and not own:
            yield self._coupled(mates, gap)
        elif gap is not None:
            yield from self._apart(evidence, gap)
        spreads = [fact for fact in evidence.all("fold_gain_spread") if fact.value > self.spread]
        if spreads:
            worst = max(spreads, key=lambda fact: fact.value)
            yield Opinion(
                Severity.INFO,
                f"folding multiplies channels of {worst.layer} by gains up to {worst.value:.3g} times "
                "their median: with one integer scale a tensor the others lose their precision",
                worst.layer,
                effect=Quantity("largest over median fold gain", worst.value),
                remedy="quantize weights by the channel (per_channel_affine)",
            )

    def _coupled(self, mates: Fact, gap: Fact | None) -> Opinion:
        return Opinion(
            Severity.ERROR if mates.value > self.mates[0] else Severity.WARNING,
            f"exported outputs of the same samples change by {mates.value:.2g} standard deviations with other batch "
            "mates; the model's do not",
            effect=Quantity(
                "change of an exported output by other batch mates", mates.value, _UNIT, mates.low, mates.high
            ),
            numbers=() if gap is None else (Quantity("largest gap", gap.value, _UNIT),),
            causes=("it was exported in training mode", "its batch norms have no running statistics"),
        )

    def _apart(self, evidence: Evidence, gap: Fact) -> Iterable[Opinion]:
        rms = evidence.value("parity_rms")
        epsilon = evidence.value("parity_epsilon", default=0.0)
        half = self.roundings * epsilon if epsilon > 1e-4 else 0.0
        least = max(self.some, half, self.noise * evidence.value("parity_noise", default=0.0))
        if evidence.value("parity_quantized") == 1:
            severity = Severity.WARNING if rms > self.quantized else None
        elif gap.value > least:
            severity = Severity.ERROR if gap.value > max(self.much, 10 * half, least) else Severity.WARNING
        else:
            severity = None
        if severity is None:
            return
        other = evidence.fact("parity_disagreement")
        impact = None
        if other is not None:
            impact = Quantity("samples with another class", 100 * other.value, "%")
        yield Opinion(
            severity,
            f"exported outputs differ from the model's by up to {gap.value:.2g} standard deviations ({rms:.2g} in root "
            f"mean square); rounding explains {evidence.value('parity_noise', default=0.0):.1g}",
            effect=Quantity("largest gap of an output", gap.value, _UNIT),
            impact=impact,
            causes=(
                "the model was in another mode when it was exported or compared",
                "folded with other statistics or another epsilon",
                "preprocessing or postprocessing is part of one and not of the other",
            ),
        )
