"""N17: layers in another mode than the model around them, or than what is being done with it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["ModeLeftOver"]

_MEANT = ("batch-stats-at-test", "transductive")


@dataclass(frozen=True)
class ModeLeftOver(Rule):
    """Flags, and what eval() and one training step do to them; nothing about it is random.

    Norm layers alone in evaluation mode are how statistics are frozen on purpose: that is information. A whole part of
    the model in evaluation mode whose gains the step trains is what a validation leaves behind.
    """

    code = "N17"
    name = "mode-left-over"
    title = "batch norms are in another mode than the model, or than what is done with it"
    harm = (
        "A batch norm that stays in evaluation mode in training does not normalize: its statistics are those of "
        "weights long gone. One that stays in training mode when the model predicts makes predictions depend on the "
        "batch and lets every prediction move the statistics."
    )
    shows = (
        "training flags of parent and layer differ; eval() leaves a layer in training mode; num_batches_tracked stands "
        "still over a step that changes gain and shift"
    )
    remedy = (
        "model.train()  # at the beginning of every epoch, and after every evaluation; model.eval() before predicting\n"
        "# a container that overrides train() must end with: return super().train(mode)"
    )
    references = ("PyTorch documentation, torch.nn.Module.train",)
    needs = ("state", "dispatch")
    untrained = True
    sick = "model.eval(); validate(model)\nfor x, y in loader: step(model, x, y)  # still in evaluation mode"
    healthy = "model.eval(); validate(model); model.train()\nfor x, y in loader: step(model, x, y)"

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """One opinion for layers that predict in training mode, one for those that train in evaluation mode."""
        norms = [
            layer.name for layer in evidence.norms
            if layer.family == "batch_norm" and "frozen" not in layer.kind.lower()  # these have no modes
        ]  # fmt: skip
        unreached = [name for name in norms if evidence.value("eval_unreached", name) == 1]
        training = [name for name in norms if evidence.value("training", name) == 1]
        if unreached:
            yield _predicting(evidence, unreached, "stay in training mode after eval() on the model")
        elif training and not evidence.context.training and evidence.context.intent != "train":
            yield _predicting(evidence, training, "are in training mode while the model is in evaluation mode")
        still = [name for name in norms if name not in unreached and name not in training]
        if still:
            yield from _training(evidence, still)


def _predicting(evidence: Evidence, layers: Sequence[str], how: str) -> Opinion:
    swap = evidence.fact("swap_change")
    impact, told = None, ""
    if swap is not None:
        impact = Quantity(
            "change of an output by other batch mates", swap.value, "standard deviations", swap.low, swap.high
        )
        told = f"; outputs change by {swap.value:.2g} standard deviations with other batch mates"
    return Opinion(
        Severity.INFO if evidence.context.intent in _MEANT else Severity.WARNING,
        f"{_listed(layers)} {how}{told}",
        layers[0],
        effect=Quantity("batch norms in training mode", len(layers)),
        impact=impact,
        causes=(
            "a container overrides train() or children() and does not pass the mode on",
            "the layer was put in after eval() was called",
        ),
    )


def _training(evidence: Evidence, layers: Sequence[str]) -> Iterable[Opinion]:
    """Layers in evaluation mode: does a step train them, and is more than they in this mode?"""
    if evidence.value("step_given") != 1:
        return
    trained = [
        name for name in layers
        if evidence.value("affine_moved", name) == 1
        and evidence.value("eval_calls", name, 0.0) == evidence.value("calls_per_step", name) > 0
    ]  # fmt: skip
    if not trained:
        return
    around = [name for name in trained if not evidence.context.training or evidence.value("eval_above", name) == 1]
    left = around and evidence.context.intent != "frozen"
    named = around if left else trained
    yield Opinion(
        Severity.WARNING if left else Severity.INFO,
        f"{_listed(named)} trained by the step in evaluation mode"
        f"{', like the part of the model around' if left else ''}: gain and shift change, statistics stand still",
        named[0],
        effect=Quantity("batch norms trained in evaluation mode", len(named)),
        causes=("an evaluation called eval() and nothing called train() after it",) if left else ("frozen on purpose",),
    )


def _listed(layers: Sequence[str]) -> str:
    return f"{len(layers)} batch norms ({layers[0]}{', ...' if len(layers) > 1 else ''})"
