"""N19: inputs that were preprocessed otherwise than those of the training; normalization is innocent."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.impact import HIGH, LIKELY, distance, is_high, share

__all__ = ["InputPreprocessing"]


@dataclass(frozen=True)
class InputPreprocessing(Rule):
    """Only where undoing it makes everything fit: all layers' statistics, and the loss.

    Attributes:
        explained: least share of the first layer's gaps that gains and offsets of the input's channels explain.
        gap: least root mean square of these gaps.
        left: largest share of channels, of all layers, that may be far off when it is undone, of those that were.
        outputs: without labels, distance of outputs (in their standard deviations) that makes it matter.
    """

    code = "N19"
    name = "input-preprocessing"
    title = "inputs are preprocessed otherwise than in training (normalization innocent)"
    harm = (
        "Another mean, deviation, range (0 to 255 for 0 to 1) or order of colours than in training reaches the first "
        "batch norm as other statistics. In training mode batch norm would take it out again, so that running "
        "statistics are blamed; it is the input that is wrong."
    )
    shows = (
        "a gain and an offset for each input channel explain the gaps of all channels of the first batch "
        "norm; with these "
        "undone all layers fit and the loss is low"
    )
    remedy = "x = (x / 255 - mean) / std  # as in training: range, mean, deviation, order of colours, once"
    references = ("PyTorch documentation, torchvision.transforms.v2.Normalize",)
    needs = ("preprocessing", "stale")
    tests = ("preprocessing_share",)
    of_running_statistics = True
    sick = "loader = [(255 * x, y) for x, y in loader]  # trained on 0 to 1"
    healthy = "loader = [(x, y) for x, y in loader]  # as in training"

    explained: float = 0.95  # of the catalogue
    gap: float = 0.25  # as for stale statistics
    left: float = 0.25  # ours: on toys 0.1 to 0.15 of channels are far off on held-out data, and all as given
    outputs: float = 0.3

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once for the model."""
        fact = next(iter(evidence.all("preprocessing_share")), None)
        if fact is None or evidence.value("default_statistics", fact.layer) == 1:
            return  # statistics of zero and one are those of no data
        if self._affine(evidence, fact):
            yield from self._mismatch(evidence, fact)
        elif evidence.value("gap_flipped") <= self.left * evidence.value("gap_given") and is_high(
            evidence, "stored", "flipped"
        ):
            worse = evidence.fact("excess_stored_over_flipped")
            assert worse is not None
            yield Opinion(
                Severity.WARNING,
                f"normalization is innocent: with the three colours in reverse order the loss is "
                f"{evidence.value('loss_flipped'):.3g} instead of {evidence.value('loss_stored'):.3g}, "
                "and statistics fit",
                fact.layer,
                Quantity("channels far off as given", 100 * evidence.value("gap_given"), "%"),
                worse.p_value,
                share(worse, "more loss than with colours reversed"),
                remedy="x = x.flip(1)  # RGB for BGR, as in training",
                causes=("RGB and BGR were exchanged",),
            )

    def _affine(self, evidence: Evidence, fact: Fact) -> bool:
        return (
            fact.value >= self.explained
            and fact.p_value < LIKELY
            and evidence.value("preprocessing_gap", fact.layer) >= self.gap
            and evidence.value("gap_undone") <= self.left * evidence.value("gap_given")
        )

    def _mismatch(self, evidence: Evidence, fact: Fact) -> Iterable[Opinion]:
        worse, apart = evidence.fact("excess_stored_over_undone"), distance(evidence, "stored")
        impact = None
        severity = Severity.INFO
        p_value = fact.p_value
        if worse is not None:
            impact = share(worse, "more loss than with it undone")
            if is_high(evidence, "stored", "undone", HIGH):
                severity, p_value = Severity.WARNING, worse.p_value  # permutations cannot get as low
            elif worse.value <= 0:
                return  # the weights have adapted to these inputs: statistics of others on purpose
        elif apart is not None:
            impact = Quantity("distance of outputs", apart.value, "standard deviations", apart.low, apart.high)
            severity = Severity.WARNING if apart.value > self.outputs and not apart.low <= self.outputs else severity
        gain, offset = (
            evidence.channels("preprocessing_gain", fact.layer),
            evidence.channels("preprocessing_offset", fact.layer),
        )
        yield Opinion(
            severity,
            f"normalization is innocent: a gain of {_list(gain)} and an offset of {_list(offset)} (to the "
            "input channels) "
            f"explain {fact.value:.1%} of the gaps of the first batch norm, and undone all layers fit",
            fact.layer,
            Quantity("share of the gaps that they explain", 100 * fact.value, "%"),
            p_value,
            impact,
            numbers=(
                Quantity("channels far off as given", 100 * evidence.value("gap_given"), "%"),
                Quantity("channels far off with it undone", 100 * evidence.value("gap_undone"), "%"),
            ),
            causes=("another mean or deviation", "0 to 255 for 0 to 1", "normalized twice, or not at all"),
        )


def _list(values: NDArray[np.float64] | None) -> str:
    array = np.array([]) if values is None else values
    return ", ".join(f"{one:.3g}" for one in array[:4]) + (", ..." if array.size > 4 else "")
