"""From opinions to findings: chance is held against all that was tested, and what follows from something is told so."""

from collections.abc import Iterable, Sequence
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
        q_value: its p-value after Benjamini and Hochberg over layers and rules; None where it has none.
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


def judge(rules: Sequence[Rule], evidence: Evidence) -> tuple[list[Judged], list[NotRun]]:
    """All rules over one evidence.

    Args:
        rules: whom to ask.
        evidence: what was measured.

    Returns:
        What stands, worst first; and who could not judge.
    """
    reasons = [(rule, _why_not(rule, evidence)) for rule in rules]
    able = [rule for rule, why in reasons if not why]
    meant = evidence.context.intent in ("batch-stats-at-test", "transductive")
    opinions = [(rule, opinion) for rule in able for opinion in rule.judge(evidence)]
    opinions = [(rule, _idle(rule, opinion) if meant else opinion) for rule, opinion in opinions]
    standing = _explained(list(_significant(able, opinions, evidence)))
    not_run = [NotRun(rule.code, rule.name, why) for rule, why in reasons if why]
    return sorted(standing, key=lambda one: (-one.opinion.severity.rank, one.rule.code)), not_run


def _why_not(rule: Rule, evidence: Evidence) -> str:
    context = evidence.context
    missing = [f"{name}: {context.missing[name]}" for name in rule.needs if name in context.missing]
    if missing:
        return "; ".join(missing)
    if context.untrained and not rule.untrained:
        return "the model looks untrained: nothing of its statistics can be judged yet"
    return ""


def _idle(rule: Rule, opinion: Opinion) -> Opinion:
    """Running statistics that are never used may be what they are."""
    return replace(opinion, severity=Severity.INFO) if rule.of_running_statistics else opinion


def _significant(
    rules: Sequence[Rule], opinions: Sequence[tuple[Rule, Opinion]], evidence: Evidence
) -> Iterable[Judged]:
    """Benjamini and Hochberg (1995) over the layers of each rule, and over the rules (Benjamini and Bogomolov 2014).

    A test that was made counts even where its rule says nothing: its p-value is then taken to be 1.
    """
    tested = {rule.code: sum(len(_p_values(evidence, name)) for name in rule.tests) for rule in rules}
    within: dict[str, list[float]] = {}
    for rule, opinion in opinions:
        if opinion.p_value is not None:
            within.setdefault(rule.code, []).append(opinion.p_value)
    adjusted = {code: _adjusted(values, tested.get(code, 0)) for code, values in within.items()}
    asked = sum(count > 0 or code in adjusted for code, count in tested.items())
    of_rules = _adjusted([min(values) for values in adjusted.values()], asked)
    least = dict(zip(adjusted, of_rules, strict=True))
    turns = {code: iter(values) for code, values in adjusted.items()}
    for rule, opinion in opinions:
        if opinion.p_value is None:
            yield Judged(rule, opinion)
            continue
        q_value = max(next(turns[rule.code]), least[rule.code])
        if q_value <= FALSE_DISCOVERY_RATE:
            yield Judged(rule, opinion, q_value)


def _adjusted(values: Sequence[float], tests: int) -> list[float]:
    """Adjusted p-values of some of so many tests."""
    if not values:
        return []
    known = np.clip(np.nan_to_num(np.array(values, dtype=np.float64), nan=1.0), 0, 1)  # not known is no evidence
    family = np.concatenate([known, np.ones(max(tests - len(values), 0))])
    return [float(one) for one in false_discovery_control(family)[: len(values)]]


def _p_values(evidence: Evidence, statistic: str) -> list[float]:
    return [fact.p_value for fact in evidence.all(statistic) if not np.isnan(fact.p_value)]


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
