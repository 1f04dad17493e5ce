"""N20: batch norm that is frozen at mean 0 and variance 1: a deep network without normalization."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["FrozenAtInit"]


@dataclass(frozen=True)
class FrozenAtInit(Rule):
    """Only where the signal shows it: shallow networks do well without.

    Attributes:
        layers: least share of layers that do nothing.
        weakest, strongest: activations relative to those of the first layer, outside which it is a warning.
    """

    code = "N20"
    name = "frozen-at-init"
    title = "frozen batch norm holds its first values, so nothing is normalized"
    harm = (
        "A frozen layer is a fixed affine map, and with mean 0, variance 1, gamma 1 and beta 0 it is none at all. "
        "Behind random weights activations then shrink or grow from layer to layer, as before batch norm was invented. "
        "Frozen layers are for pretrained weights and their statistics."
    )
    shows = "frozen layers at 0 and 1, and activations that grow or shrink more than tenfold from first to last"
    remedy = (
        "model.load_state_dict(pretrained)  # with its statistics, then freeze; else train with nn.BatchNorm2d,\n"
        "norm = nn.GroupNorm(32, channels)  # or with a norm that needs no statistics"
    )
    references = (
        "Ioffe & Szegedy 2015, Batch Normalization, section 3.3, arXiv:1502.03167",
        "He et al. 2015, Delving Deep into Rectifiers, section 2.2, arXiv:1502.01852",
    )
    needs = ("depth",)
    untrained = True
    sick = "model = torchvision.models.resnet50(norm_layer=torchvision.ops.FrozenBatchNorm2d)  # trained from scratch"
    healthy = "model = torchvision.models.resnet50(weights='DEFAULT', norm_layer=torchvision.ops.FrozenBatchNorm2d)"

    layers: float = 0.9  # of the catalogue
    weakest: float = 0.1  # of the catalogue
    strongest: float = 10.0  # of the catalogue

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once for the model."""
        known = [fact.layer for fact in evidence.all("activation_rms")]
        idle = [one for one in known if evidence.value("identity", one) == 1 and evidence.value("frozen", one) == 1]
        if not known or len(idle) < self.layers * len(known):
            return
        strengths = [evidence.value("activation_rms", layer) for layer in known]
        least, most = min(strengths) / strengths[0], max(strengths) / strengths[0]
        inside = self.weakest <= least and most <= self.strongest
        far = least if least * most < 1 else most
        yield Opinion(
            Severity.INFO if inside else Severity.WARNING,
            f"{len(idle)} of {len(known)} batch norm layers are frozen at mean 0 and variance 1 and do "
            "nothing; activations "
            f"are between {least:.2g} and {most:.2g} times those behind the first of them",
            effect=Quantity("activations, farthest from those of the first layer", far, "times"),
            numbers=(Quantity("root mean square behind the last layer", strengths[-1]),),
        )
