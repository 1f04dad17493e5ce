"""N05: a training batch that leaves one value a channel, of which there is no variance."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["SingleValueBatch"]


@dataclass(frozen=True)
class SingleValueBatch(Rule):
    """Deterministic: sizes of batches follow from the loader's samplers, values a channel from shapes.

    Attributes:
        least: values a channel that batch normalization needs; of one, the variance is zero and its unbiased
            estimate is 0 / 0. PyTorch raises an error there, layers of one's own often do not.
    """

    code = "N05"
    name = "single-value-batch"
    title = "a training batch leaves a single value a channel at a batch norm"
    harm = (
        "In training mode PyTorch stops with 'Expected more than 1 value per channel when training', typically at the "
        "end of the first epoch. Layers of one's own that do not check write NaN into the running variance, or put out "
        "their shift whatever the input is."
    )
    shows = "samples of the loader's smallest batch times positions at the layer is 1"
    remedy = (
        "loader = DataLoader(data, batch_size, shuffle=True, drop_last=True)  # the training loader only\n"
        "# a norm on maps of one position (image pooling) needs batches of two or more, or layer normalization"
    )
    references = (
        "https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.DataLoader",
        "Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167",
    )
    needs = ("loader",)
    untrained = True
    sick = (
        "model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))\n"
        "loader = torch.utils.data.DataLoader(torch.randn(33, 4), 16)  # the last batch has one sample"
    )
    healthy = (
        "model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))\n"
        "loader = torch.utils.data.DataLoader(torch.randn(33, 4), 16, drop_last=True)"
    )

    least: int = 2

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once for the model: the loader is to be changed, and then all layers are well."""
        found = [fact for fact in evidence.all("least_values") if self._concerns(evidence, fact)]
        if not found:
            return
        first = found[0]
        size = evidence.value("least_values_size", first.layer)
        others = f" (and at {len(found) - 1} more layers)" if len(found) > 1 else ""
        yield Opinion(
            Severity.ERROR,
            f"a batch of {size:.0f} sample{'s' if size != 1 else ''} leaves {first.value:.0f} value a channel at "
            f"{first.layer}{others}; {self._where(evidence, size)}",
            first.layer,
            effect=Quantity("fewest values a channel", first.value),
            numbers=(Quantity("size of that batch", size, "samples"), Quantity("layers concerned", len(found))),
        )

    def _concerns(self, evidence: Evidence, fact: Fact) -> bool:
        training = evidence.value("training", fact.layer) == 1 or evidence.context.intent == "train"
        shared = evidence.value("synchronized", fact.layer) == 1 and evidence.value("world_size", default=1) > 1
        return training and fact.value < self.least and not shared

    def _where(self, evidence: Evidence, size: float) -> str:
        sizes = evidence.all("epoch_batch_size")
        if not sizes:
            return "it is among the batches that were looked at"
        many = next((fact.count for fact in sizes if fact.value == size), 0)
        return f"an epoch of this loader has {many} of that size among {sum(fact.count for fact in sizes)}"
