"""N16: a norm layer whose output is the same for every input."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["DegenerateGroup"]


@dataclass(frozen=True)
class DegenerateGroup(Rule):
    """Deterministic: what a statistic over one value does is known without looking.

    Attributes:
        same: spread of the output in units of gamma below which it is the same for all inputs.
        unlike: spread of the input above which it did differ.
    """

    code = "N16"
    name = "degenerate-group"
    title = "a norm layer takes its statistics over a single value, or erases its input"
    harm = (
        "A value minus its own mean is zero: a group of one element makes the output beta, whatever the input, and "
        "nothing behind the layer can learn from what lies before it. Two elements become plus and minus gamma: only "
        "their order is left, and the gradient is nearly zero. It happens to group norm with as many groups as "
        "channels, and to instance norm, on inputs without spatial extent."
    )
    shows = "one (or two) values a group; or outputs that do not vary with inputs that do"
    remedy = (
        "norm = nn.GroupNorm(max(1, channels // 16), channels)  # 16 values a group or more\n"
        "norm = nn.LayerNorm(channels)  # or this, on [N, C]"
    )
    references = (
        "Wu & He 2018, Group Normalization, section 3, arXiv:1803.08494",
        "PyTorch documentation, torch.nn.GroupNorm",
    )
    needs = ("groups",)
    untrained = True
    sick = "model = nn.Sequential(nn.Linear(16, 32), nn.GroupNorm(32, 32), nn.ReLU(), nn.Linear(32, 10))"
    healthy = "model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(32, 32))  # on maps of many pixels"

    same: float = 1e-3  # of the catalogue
    unlike: float = 0.0

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """One opinion a layer."""
        for fact in evidence.all("group_elements"):
            layer, elements = fact.layer, fact.value
            effect = Quantity("values a mean and variance are taken over", elements)
            output, inputs = evidence.value("output_spread", layer), evidence.value("input_spread", layer)
            numbers = tuple(
                Quantity(name, value, unit)
                for name, value, unit in (
                    ("spread of the input", inputs, "standard deviation"),
                    ("spread of the output", output, "of gamma"),
                )
                if value == value
            )
            if elements <= 1:
                said = "statistics are taken over a single value, so that the output does not depend on the input"
                if evidence.layer(layer).family == "rms_norm":
                    said = "statistics are taken over a single value, so that only its sign is left"
                yield Opinion(Severity.ERROR, said, layer, effect, numbers=numbers)
            elif elements == 2 and evidence.layer(layer).family != "rms_norm":
                said = (
                    "statistics are taken over two values, which become plus and minus gamma: only their order is left"
                )
                yield Opinion(Severity.WARNING, said, layer, effect, numbers=numbers)
            elif output < self.same and inputs > self.unlike:
                yield Opinion(
                    Severity.ERROR,
                    f"outputs vary by {output:.1g} of gamma while inputs vary by {inputs:.2g}: the layer erases its "
                    "input (its variance may be far below epsilon)",
                    layer,
                    Quantity("spread of the output", output, "of gamma"),
                    numbers=numbers[:1],
                )
