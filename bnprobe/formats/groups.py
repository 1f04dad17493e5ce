"""Findings of one rule in many layers are one thing to read."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnprobe.rules import NotRun, Quantity, Severity

if TYPE_CHECKING:
    from bnprobe.diagnosis import Diagnosis, Finding

__all__ = [
    "ADVICE", "Group", "amount", "chance", "circumstances", "count", "grouped", "impact", "kept", "place", "quantity",
    "reasons", "shown", "verdict",
]  # fmt: skip

ADVICE = (
    "Look elsewhere: at preprocessing and its constants, dropout, augmentation, labels, learning rate, over-fitting, "
    "and whether evaluation data differ from training data."
)
_LARGE = 1e7  # from here on a number's digits are no longer read
_WHOLE = "whole model"


@dataclass(frozen=True)
class Group:
    """What one rule found, and (or) what follows from one other.

    Attributes:
        worst: the one to show in full.
        others: further layers, the worst first.
    """

    worst: "Finding"
    others: tuple["Finding", ...] = ()


def grouped(findings: Iterable["Finding"]) -> list[Group]:
    """Findings by rule, the worst group and the worst layer first; else in the order in which they came."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.code, one.follows_from), []).append(one)
    ordered = [sorted(group, key=_badness) for group in groups.values()]
    return [
        Group(first, tuple(others))
        for first, *others in sorted(ordered, key=lambda group: (-group[0].severity.rank, bool(group[0].follows_from)))
    ]


def _badness(finding: "Finding") -> tuple[int, float]:
    """More of an impact is worse, by its definition; of effects only their rule knows."""
    impact = finding.impact.value if finding.impact is not None else float("nan")
    return -finding.severity.rank, -impact if impact == impact else float("inf")


def reasons(not_run: Sequence[NotRun]) -> dict[str, list[NotRun]]:
    """Rules that did not judge, by the reason; what stops most comes first."""
    groups: dict[str, list[NotRun]] = {}
    for one in not_run:
        groups.setdefault(one.why, []).append(one)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def shown(text: str) -> str:
    """Text of others (names of layers, messages) without characters that would steer a terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def place(finding: "Finding") -> str:
    """Where it is, in words."""
    return shown(finding.layer) or _WHOLE


def chance(finding: "Finding") -> str:
    """Its p-value in words."""
    if finding.p_value is None:
        if finding.effect is not None and finding.effect.low is not None:
            return "not tested: the effect's interval says how sure it is"
        return "none: this is exact"
    return f"p = {finding.p_value:.2g}, Benjamini-Hochberg over all layers and rules"


def impact(finding: "Finding") -> str:
    """What it does to loss or output; empty for what is only to be known and has none."""
    if finding.impact is not None:
        return quantity(finding.impact)
    return "" if finding.severity == Severity.INFO else "not measured"


def circumstances(diagnosis: "Diagnosis") -> list[str]:
    """What was looked at, in a few words each."""
    evidence, context = diagnosis.evidence, diagnosis.evidence.context
    said = []
    if evidence.layers or context.batches:
        norms = len(evidence.norms)
        said.append(f"{norms or 'no'} normalization layer{'s' * (norms != 1)}")
    if context.batches:
        said.append(f"{context.batches:,} batch{'es' * (context.batches > 1)} with {context.samples:,} samples")
        said.append(f"handed over in {'training' if context.training else 'evaluation'} mode")
    if context.intent:
        said.append(f"intent {context.intent}")
    if diagnosis.asked or diagnosis.not_run:
        every = len(diagnosis.asked) + len(diagnosis.not_run)
        said.append(f"{len(diagnosis.asked)} of {every} rules could judge")
    if context.seconds:
        said.append(f"took {sum(context.seconds.values()):.3g} s")
    return said


def verdict(diagnosis: "Diagnosis") -> str:
    """The sentence of the certificate; empty where a warning or worse was found."""
    if not diagnosis.ok or any(one.severity > Severity.INFO for one in diagnosis.accepted):
        return ""
    if why := diagnosis.evidence.context.texts.get("why_no_forward"):
        return (
            f"The model cannot be run on these batches ({shown(why)}), so hardly anything could be measured. Where "
            "model(x) is not how it is called, pass forward=."
        )
    if diagnosis.evidence.context.untrained:
        return "Nothing was found; but the model looks untrained, so there is no certificate: ask again when it is."
    if diagnosis.certificate is None:
        return (
            "Nothing was found; but no measurement was taken that could have cleared normalization, so there is no "
            "certificate."
        )
    return f"Normalization is not your problem, as far as {count(len(diagnosis.asked), 'rule')} can tell."


def kept(diagnosis: "Diagnosis") -> str:
    """How it knows that nothing was changed."""
    proof = diagnosis.proof
    if not proof:
        return "No model was run: this was judged from records."
    changed = [name for name, same in proof.items() if not same]
    if changed:
        return (
            f"CHANGED: hashes taken before and after differ ({'; '.join(changed)}). This must not happen: please "
            "report it, and do not go on with this model."
        )
    return f"Nothing was changed: hashes taken before and after are the same ({'; '.join(proof)})."


def count(number: int, noun: str) -> str:
    """``1 rule``, ``2 rules``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def quantity(one: Quantity, *, named: bool = True) -> str:
    """A number with its name, unit and interval."""
    name = f"{shown(one.name)}: " if named and one.name else ""
    unit = f" {shown(one.unit)}" if one.unit else ""
    interval = ""
    if one.low is not None and one.high is not None:
        interval = f" (95 % interval {amount(one.low)} to {amount(one.high)})"
    return f"{name}{amount(one.value)}{unit}{interval}"


def amount(value: float) -> str:
    """Three digits; whole numbers as they are."""
    if math.isnan(value):
        return "unknown"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return f"{value:,.0f}" if value == round(value) and abs(value) < _LARGE else f"{value:.3g}"
