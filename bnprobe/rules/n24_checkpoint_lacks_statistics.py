"""N24: a checkpoint without running statistics."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["CheckpointLacksStatistics"]


@dataclass(frozen=True)
class CheckpointLacksStatistics(Rule):
    """Names, and whether values are those of a layer that has never run; nothing about it is random.

    Attributes:
        whole: share of the model's parameters from which a checkpoint is one of the whole model. Ours: a new head may
            be missing, the rest is there.
    """

    code = "N24"
    name = "checkpoint-lacks-statistics"
    title = "the checkpoint has no running statistics of layers whose weights it has"
    harm = (
        "Loaded with strict=False it gives a model with trained weights and statistics of 0 and 1, or of whatever the "
        "model had before: training goes on well, evaluation is wrong."
    )
    shows = "running_mean, running_var of a layer are not among the keys, or are 0 and 1 while others counted batches"
    remedy = (
        "torch.save(model.state_dict(), path)  # not dict(model.named_parameters())\n"
        "missing, unexpected = model.load_state_dict(checkpoint, strict=False)\n"
        "assert not [key for key in missing if 'running_' in key]"
    )
    references = ("PyTorch documentation, torch.nn.Module.state_dict: parameters and persistent buffers",)
    needs = ("checkpoint",)
    untrained = True
    sick = "checkpoint = dict(model.named_parameters())"
    healthy = "checkpoint = model.state_dict()"

    whole: float = 0.5

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """One opinion for layers without, one for layers with untouched statistics."""
        whole = evidence.value("checkpoint_share", default=0.0) >= self.whole
        without = [fact.layer for fact in evidence.all("checkpoint_lacks") if fact.value > 0]
        # A layer of which nothing is there is a part that the checkpoint was not made of; unless it has no weights.
        bad = [
            name for name in without
            if evidence.value("checkpoint_affine", name) == 1
            or (whole and evidence.fact("affine_frozen", name) is None)
        ]  # fmt: skip
        total = len(evidence.all("checkpoint_lacks"))
        if bad:
            yield Opinion(
                Severity.ERROR,
                f"the checkpoint has the weights of {_listed(bad)} but no running statistics ({len(bad)} of {total} "
                "layers)",
                bad[0],
                effect=Quantity("layers without running statistics", len(bad), f"of {total}"),
                causes=("only parameters were saved", "keys with running_ were filtered out"),
            )
        moving = [name for name in without if name not in bad and evidence.value("training", name) == 1]
        if moving and not whole:
            yield Opinion(
                Severity.WARNING,
                f"the checkpoint has nothing of {_listed(moving)}, whose statistics move in training mode: loaded into "
                "the original model it meets other statistics than it was trained with",
                moving[0],
                effect=Quantity("layers in training mode that are not saved", len(moving), f"of {total}"),
                remedy="save the buffers of batch norms with the adapter, or norm.eval() while it trains",
            )  # fmt: skip
        yield from self._untouched(evidence)

    def _untouched(self, evidence: Evidence) -> Iterable[Opinion]:
        counted = [fact for fact in evidence.all("checkpoint_updates") if fact.value > 0]
        called = {layer.name for layer in evidence.norms if layer.observed}
        default = [
            fact.layer for fact in evidence.all("checkpoint_default")
            if fact.value == 1 and fact.layer in called and counted
        ]  # fmt: skip
        if default:
            total = len(evidence.all("checkpoint_default"))
            yield Opinion(
                Severity.ERROR,
                f"in the checkpoint {_listed(default)} has means of 0 and variances of 1, while {len(counted)} of "
                f"{total} layers have counted batches",
                default[0],
                effect=Quantity("layers with statistics of 0 and 1", len(default), f"of {total}"),
                causes=("statistics were reset and not filled again", "momentum is 0"),
            )


def _listed(layers: list[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} more"
