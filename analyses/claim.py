"""What a paper claims, fixed before anything runs, and what came out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from analyses.inference import ALPHA, Decision, Direction, Interval, Outcome, Sample, judge_together
from bnprobe.errors import ArgumentError

__all__ = ["Choice", "Claim", "Evidence", "Finding", "Gate", "Quantity", "Verdict", "decide"]

Unit = Literal["pp", "log ratio", "cosine"]


@dataclass(frozen=True)
class Quantity:
    """One number a seed that a claim is judged by.

    Attributes:
        name: short, unique within an analysis.
        meaning: how it is computed, in one sentence.
        unit: ``pp`` (percentage points), ``cosine``, or ``log ratio``: the natural logarithm of a ratio, shown as it.
        direction: where the claim puts it: ``above`` or ``below`` the smallest effect.
        smallest_effect: the effect from which on it counts, in ``unit``.
        refuted_from: on whose other side the claim is refuted; None: of ``smallest_effect``. Between is undecided.
    """

    name: str
    meaning: str
    unit: Unit
    direction: Direction
    smallest_effect: float
    refuted_from: float | None = None

    def show(self, value: float) -> str:
        """A value of this quantity for people."""
        if not math.isfinite(value):
            return "none"
        return f"\u00d7{math.exp(value):.2f}" if self.unit == "log ratio" else f"{value:+.2f} {self.unit}"

    def show_interval(self, interval: Interval) -> str:
        """An interval of this quantity for people, with its confidence."""
        return f"{self.show(interval.low)} to {self.show(interval.high)} ({100 * interval.confidence:.3g} %)"


@dataclass(frozen=True)
class Claim:
    """A claim of the literature and the rule that decides on it.

    Attributes:
        code: ``C1a``, unique among all analyses.
        paper: authors and year.
        place: section and figure or table.
        statement: the claim, in our words.
        figure: the number or picture that the paper gives for it.
        scale: what the paper ran.
        quantities: what it is judged by: ``reproduced`` needs all of them.
        seeds: how many seeds a decision needs.
        gates: conditions under which the measurement says anything; each is ``name: what must hold``.
        refuted_by: the result that would speak against it.
    """

    code: str
    paper: str
    place: str
    statement: str
    figure: str
    scale: str
    quantities: tuple[Quantity, ...]
    seeds: int
    gates: Mapping[str, str]
    refuted_by: str


@dataclass(frozen=True)
class Choice:
    """Something that the paper does not fix, or that is done differently here."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class Gate:
    """A condition of a claim, looked at."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Finding:
    """One quantity and the decision on it."""

    quantity: Quantity
    decision: Decision

    @property
    def measured(self) -> str:
        """Value and interval for people."""
        value = self.quantity.show(self.decision.value)
        interval = self.decision.interval
        return value if interval is None else f"{value}, {self.quantity.show_interval(interval)}"

    @property
    def counts_from(self) -> str:
        """The smallest effect that counts, for people."""
        quantity = self.quantity
        counts = f"{quantity.direction} {quantity.show(quantity.smallest_effect)}"
        if quantity.refuted_from is None:
            return counts
        other = "below" if quantity.direction == "above" else "above"
        return f"{counts}; refuted {other} {quantity.show(quantity.refuted_from)}"


@dataclass(frozen=True)
class Evidence:
    """What an analysis measured for one claim.

    Attributes:
        claim: the claim.
        values: for each of its quantities by name, one value a seed.
        gates: every gate of the claim, looked at.
    """

    claim: Claim
    values: Mapping[str, Sequence[float]]
    gates: tuple[Gate, ...]

    def __post_init__(self) -> None:
        for what, wanted, got in (
            ("quantities", [q.name for q in self.claim.quantities], list(self.values)),
            ("gates", list(self.claim.gates), [gate.name for gate in self.gates]),
        ):
            if sorted(wanted) != sorted(got):
                raise ArgumentError(f"{self.claim.code} needs the {what} {wanted}; got {got}")


@dataclass(frozen=True)
class Verdict:
    """What an analysis says about a claim.

    Attributes:
        claim: the claim.
        outcome: ``reproduced``, ``not reproduced`` or ``undecided``.
        findings: each quantity with value, interval and decision.
        gates: each gate, looked at.
        scale: what was run here.
        seeds: how many seeds.
        reason: why it is this outcome, in one sentence.
    """

    claim: Claim
    outcome: Outcome
    findings: tuple[Finding, ...]
    gates: tuple[Gate, ...]
    scale: str
    seeds: int
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; what was not measured is null."""
        return {
            "claim": self.claim.code,
            "paper": self.claim.paper,
            "place": self.claim.place,
            "statement": self.claim.statement,
            "outcome": self.outcome,
            "reason": self.reason,
            "paper_figure": self.claim.figure,
            "paper_scale": self.claim.scale,
            "scale": self.scale,
            "seeds": self.seeds,
            "seeds_needed": self.claim.seeds,
            "refuted_by": self.claim.refuted_by,
            "gates": [{"name": g.name, "passed": g.passed, "detail": g.detail} for g in self.gates],
            "quantities": [_finding_json(finding) for finding in self.findings],
        }


def decide(evidence: Sequence[Evidence], scale: str, alpha: float = ALPHA) -> list[Verdict]:
    """The verdicts of one report.

    All quantities of all claims share the error rate ``alpha`` (Holm). A claim is reproduced where all its quantities
    are, not reproduced where one is not, and undecided otherwise, or where a gate failed or seeds are missing.

    Args:
        evidence: what was measured, a claim each.
        scale: what was run here, for the reader.
        alpha: chance of any false decision.
    """
    pairs = [(case, quantity) for case in evidence for quantity in case.claim.quantities]
    samples = [Sample(tuple(case.values[q.name]), q.smallest_effect, q.direction, q.refuted_from) for case, q in pairs]
    decisions = judge_together(samples, alpha)
    verdicts = []
    for case in evidence:
        findings = tuple(
            Finding(quantity, decision)
            for (owner, quantity), decision in zip(pairs, decisions, strict=True)
            if owner is case
        )
        outcome, reason = _outcome(case, findings)
        seeds = min((finding.decision.seeds for finding in findings), default=0)
        verdicts.append(Verdict(case.claim, outcome, findings, case.gates, scale, seeds, reason))
    return verdicts


def _outcome(case: Evidence, findings: Sequence[Finding]) -> tuple[Outcome, str]:
    failed = [f"{gate.name} ({gate.detail})" for gate in case.gates if not gate.passed]
    if failed:
        return "undecided", f"gate failed: {'; '.join(failed)}"
    for finding in findings:
        if finding.decision.interval is None:
            return "undecided", f"{finding.quantity.name}: {finding.decision.reason}"
    seeds = min(finding.decision.seeds for finding in findings)
    if seeds < case.claim.seeds:
        return "undecided", f"{seeds} seeds; the claim asks for {case.claim.seeds}"
    outcomes: list[Outcome] = [finding.decision.outcome for finding in findings]
    outcome: Outcome = (
        "not reproduced"
        if "not reproduced" in outcomes
        else "reproduced"
        if set(outcomes) == {"reproduced"}
        else "undecided"
    )
    told = [f for f in findings if f.decision.outcome == outcome]
    return outcome, "; ".join(f"{f.quantity.name}: {f.decision.reason}" for f in told)


def _finding_json(finding: Finding) -> dict[str, Any]:
    decision = finding.decision
    return {
        "name": finding.quantity.name,
        "meaning": finding.quantity.meaning,
        "unit": finding.quantity.unit,
        "direction": finding.quantity.direction,
        "smallest_effect": finding.quantity.smallest_effect,
        "refuted_from": finding.quantity.refuted_from,
        "value": _number(decision.value),
        "interval": _interval_json(decision.interval),
        "bootstrap": _interval_json(decision.bootstrap),
        "p_value": _number(decision.p_value),
        "outcome": decision.outcome,
        "reason": decision.reason,
        "shown": finding.measured,
    }


def _interval_json(interval: Interval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    return {
        "low": interval.low,
        "high": interval.high,
        "confidence": interval.confidence,
        "method": interval.method,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
