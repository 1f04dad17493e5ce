"""N15: a norm layer that was given its axes in the wrong order, or too many of them."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["WrongAxis"]


@dataclass(frozen=True)
class WrongAxis(Rule):
    """By what the layer leaves behind, for shapes do not tell.

    Attributes:
        ratio: how much more uneven the other axis is behind the layer than the declared one was before it.
        uneven: least spread of the other axis behind it.
        smoother: by how much neighbours along the other axis may resemble each other more than along the declared one
            before it is taken for an axis of positions, over which nothing should be normalized.
    """

    code = "N15"
    name = "wrong-axis"
    title = "a norm layer normalizes over another axis than that of the features"
    harm = (
        "BatchNorm1d takes the second axis for its features. Given sequences [N, T, F] it accepts T in their place "
        "without a word where the sizes agree: then every moment is normalized and no feature is. A layer norm over "
        "sequence and features lets each position's output depend on all others, and keeps features unequal. Both "
        "train, and are worse."
    )
    shows = (
        "variances along the declared axis that were nearly equal before the norm already, while those along another "
        "axis differ by factors behind it"
    )
    remedy = (
        "x = bn(x.transpose(1, 2)).transpose(1, 2)  # bn = nn.BatchNorm1d(F), x is [N, T, F]\n"
        "ln = nn.LayerNorm(F)  # the features only, not [T, F]"
    )
    references = (
        "PyTorch documentation, torch.nn.BatchNorm1d: input of shape (N, C) or (N, C, L)",
        "Ba et al. 2016, Layer Normalization, section 3, arXiv:1607.06450",
    )
    needs = ("axis",)
    tests = ("axis_spread_behind",)
    untrained = True
    sick = "model = nn.BatchNorm1d(24)  # sequences [N, 24, 8]: 24 moments, 8 features of unequal units"
    healthy = "model = nn.LayerNorm(8)  # on [L, N, 8]: only the last axis is normalized, whatever lies before it"

    ratio: float = 10.0  # of the catalogue
    uneven: float = 1.0  # of the catalogue: e-fold
    smoother: float = 0.2  # ours: pictures have 0.4 and more, features in any order 0.0

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Each layer once; a wrong number of features first, for that is certain."""
        mismatched = {fact.layer for fact in evidence.all("axis_mismatch") if fact.value == 1}
        for layer in mismatched:
            yield Opinion(
                Severity.ERROR,
                "another axis than the second has as many entries as the layer declares features, the second has not",
                layer,
            )
        for fact in evidence.all("axis_spread_behind"):
            if fact.layer in mismatched:
                continue
            if evidence.fact("axes_normalized", fact.layer) is not None:
                yield from self._several_axes(evidence, fact)
            else:
                yield from self._one_axis(evidence, fact)

    def _one_axis(self, evidence: Evidence, fact: Fact) -> Iterable[Opinion]:
        layer = fact.layer
        before = evidence.value("axis_spread_before", layer)
        declared = evidence.value("axis_smoothness_declared", layer)
        other = evidence.value("axis_smoothness_other", layer)
        if not (fact.value > self.uneven and fact.value > self.ratio * before and other <= declared + self.smoother):
            return
        # A declared axis along which neighbours resemble each other is one of time or place.
        ordered = declared > other + self.smoother
        yield Opinion(
            Severity.ERROR if ordered else Severity.WARNING,
            f"variances along the normalized axis had a spread of {before:.2g} (standard deviation of their logarithm) "
            f"before the layer, those along axis {evidence.value('axis_other', layer):.0f} still have one of "
            f"{fact.value:.2g} behind it" + ("; the normalized axis is one of time or place" if ordered else ""),
            layer,
            effect=Quantity("spread of variances along the other axis", fact.value, "(log)"),
            p_value=fact.p_value,
            numbers=(
                Quantity("spread of variances along the normalized axis before", before, "(log)"),
                Quantity("neighbours' excess correlation along the normalized axis", declared),
                Quantity("neighbours' excess correlation along the other axis", other),
            ),
        )

    def _several_axes(self, evidence: Evidence, fact: Fact) -> Iterable[Opinion]:
        """Of feature maps ``[C, H, W]`` it is a design that works; of sequences it mixes positions."""
        axes = evidence.value("axes_normalized", fact.layer)
        if axes != 2 or evidence.value("input_axes", fact.layer) != 3:
            return
        if not fact.value > self.uneven:
            return
        yield Opinion(
            Severity.WARNING,
            "a layer norm over sequence and features together: each position's output depends on all others, and "
            f"variances along axis {evidence.value('axis_other', fact.layer):.0f} have a spread of {fact.value:.2g} "
            "(standard deviation of their logarithm) behind it",
            fact.layer,
            effect=Quantity("spread of variances along an axis that was normalized over", fact.value, "(log)"),
            p_value=fact.p_value,
            remedy="ln = nn.LayerNorm(F)  # the features only, not [T, F]",
        )
