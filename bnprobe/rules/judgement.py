"""From opinions to findings: chance is held against all that was tested, and what follows from something is told so."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import false_discovery_control

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Rule, Severity

__all__ = ["FALSE_DISCOVERY_RATE", "Judged", "NotRun", "judge"]

FALSE_DISCOVERY_RATE = 0.01  # ours: a report has few findings, and one of a hundred of them by chance is rare enough


@dataclass(frozen=True)
class Judged:
    """An opinion that stands.

    Attributes:
        rule: whose.
        opinion: with its severity after all is weighed.
        q_value: its p-value after Benjamini and Hochberg over everything that was tested; None where it has none.
        follows_from: code of the rule whose finding explains it; empty where none does.
    """

    rule: Rule
    opinion: Opinion
    q_value: float | None = None
    follows_from: str = ""


@dataclass(frozen=True)
class NotRun:
    """A rule that could not judge, and what it would have needed."""

    code: str
    name: str
    why: str


def judge(
    rules: Sequence[Rule], evidence: Evidence, tested: Collection[float] = ()
) -> tuple[list[Judged], list[NotRun]]:
    """All rules over one evidence.

    Args:
        rules: whom to ask.
        evidence: what was measured.
        tested: p-values of further tests that were made and belong to the same family.

    Returns:
        What stands, worst first; and who could not judge.
    """
    opinions: list[tuple[Rule, Opinion]] = []
    not_run = []
    for rule in rules:
        why = _why_not(rule, evidence)
        if why:
            not_run.append(NotRun(rule.code, rule.name, why))
            continue
        opinions += [(rule, opinion) for opinion in rule.judge(evidence)]
    standing = _explained(list(_significant(opinions, tested)))
    return sorted(standing, key=lambda one: (-one.opinion.severity, one.rule.code)), not_run


def _why_not(rule: Rule, evidence: Evidence) -> str:
    context = evidence.context
    missing = [f"{name}: {context.missing[name]}" for name in rule.needs if name in context.missing]
    if missing:
        return "; ".join(missing)
    if context.untrained and not rule.untrained:
        return "the model looks untrained: nothing of its statistics can be judged yet"
    return ""


def _significant(opinions: Sequence[tuple[Rule, Opinion]], tested: Collection[float]) -> Iterable[Judged]:
    """Benjamini and Hochberg (1995) over all layers and rules at once."""
    values = [opinion.p_value for _, opinion in opinions if opinion.p_value is not None]
    known = np.nan_to_num(np.array([*values, *tested]), nan=1.0)  # what is not known is no evidence
    adjusted = iter(false_discovery_control(np.clip(known, 0, 1)) if values else ())
    for rule, opinion in opinions:
        if opinion.p_value is None:
            yield Judged(rule, opinion)
            continue
        q_value = float(next(adjusted))
        if q_value <= FALSE_DISCOVERY_RATE:
            yield Judged(rule, opinion, q_value)


def _explained(judged: Sequence[Judged]) -> list[Judged]:
    """What another finding explains is only information."""
    serious = {one.rule.code for one in judged if one.opinion.severity >= Severity.WARNING}
    result = []
    for one in judged:
        cause = next((code for code in one.rule.follows_from if code in serious), "")
        if cause and one.opinion.severity > Severity.INFO:
            opinion = replace(one.opinion, severity=Severity.INFO)
            result.append(replace(one, opinion=opinion, follows_from=cause))
        else:
            result.append(one)
    return result
