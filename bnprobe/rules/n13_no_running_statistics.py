"""N13: batch norms without running statistics, or with ones that are switched off."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.impact import excess, share

__all__ = ["NoRunningStatistics"]

_MEANT = ("batch-stats-at-test", "transductive")


@dataclass(frozen=True)
class NoRunningStatistics(Rule):
    """A flag, weighed by what the swap test or the losses show.

    Attributes:
        change: change of an output by other batch mates (standard deviations) from which it is more than information.
        loss: relative excess of the loss with the old buffers over pooled statistics, likewise.
        chance: p-value below which that excess is no accident.
    """

    code = "N13"
    name = "no-running-statistics"
    title = "batch norm without running statistics, or with track_running_stats switched off"
    harm = (
        "Without buffers a layer normalizes by the batch in evaluation mode, too: predictions depend on batch size and "
        "mates. Where the flag is switched off on a layer that has buffers, training uses the batch and leaves the "
        "buffers as they are, and evaluation uses these old buffers."
    )
    shows = "track_running_stats is False; running_mean is None, or holds what it held when the flag was switched"
    remedy = (
        "norm = nn.BatchNorm2d(channels, track_running_stats=True); bnprobe.remedies.recalibrate(model, loader)\n"
        "# to freeze statistics, do not touch the flag: norm.eval(), or bnprobe.remedies.freeze(model)"
    )
    references = ("PyTorch documentation, torch.nn.BatchNorm2d: track_running_stats",)
    needs = ("state",)
    untrained = True
    sick = "model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False)).eval()"
    healthy = "model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).eval()"

    change: float = 0.05
    loss: float = 0.05
    chance: float = 0.01

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """One opinion for layers without buffers, one for those with idle ones, at the first of each."""
        norms = [layer.name for layer in evidence.norms if layer.family == "batch_norm"]
        off = [name for name in norms if evidence.value("tracks", name) == 0]
        bare = [name for name in off if evidence.value("has_buffers", name) == 0]
        idle = [name for name in off if evidence.value("has_buffers", name) == 1]
        if bare:
            yield self._bare(evidence, bare)
        if idle:
            yield self._idle(evidence, idle)

    def _bare(self, evidence: Evidence, layers: list[str]) -> Opinion:
        swap = evidence.fact("swap_change")
        severity, told, impact = Severity.INFO, "", None
        if swap is not None:
            impact = Quantity(
                "change of an output by other batch mates", swap.value, "standard deviations", swap.low, swap.high
            )
            told = f"; outputs change by {swap.value:.2g} standard deviations with other batch mates"
            if swap.value > self.change and evidence.context.intent not in _MEANT:
                severity = Severity.WARNING if evidence.value("swap_after_eval") == 1 else Severity.ERROR
        return Opinion(
            severity,
            f"{_listed(layers)} no running statistics and normalizes by the batch in evaluation mode as well{told}",
            layers[0],
            effect=Quantity("layers without running statistics", len(layers)),
            impact=impact,
        )

    def _idle(self, evidence: Evidence, layers: list[str]) -> Opinion:
        worse = excess(evidence, "stored", "pooled")
        severity = Severity.INFO
        if worse is not None and worse.value >= self.loss and worse.p_value < self.chance:
            severity = Severity.WARNING
        return Opinion(
            Severity.INFO if evidence.context.intent in _MEANT else severity,
            f"{_listed(layers)} track_running_stats switched off but old buffers: training normalizes by the batch, "
            "evaluation by these buffers, which nothing updates",
            layers[0],
            effect=Quantity("layers with idle running statistics", len(layers)),
            impact=None if worse is None else share(worse, "more loss than with pooled statistics"),
        )


def _listed(layers: list[str]) -> str:
    return f"{layers[0]} has" if len(layers) == 1 else f"each of {len(layers)} layers ({layers[0]}, ...) has"
