"""What a diagnosis says: findings, what was not run, and the certificate where nothing is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bnprobe.errors import ArgumentError
from bnprobe.evidence import Evidence, Fact
from bnprobe.rules import Judged, NotRun, Quantity, Severity, judge, rules
from bnprobe.store import Run

__all__ = ["Diagnosis", "Finding", "certificate", "diagnosis_of"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, about one layer or the whole model.

    Attributes:
        code: of the rule, ``N06``.
        name: of the rule.
        severity: ``info``, ``warning`` or ``error``.
        layer: its name; empty for the whole model.
        summary: one sentence with the numbers.
        effect: how large it is, with its interval; None where it is a plain fact.
        p_value: after Benjamini and Hochberg over all layers and rules; None where nothing is random about it.
        impact: what it does to loss or output; None where that is not known.
        evidence: the other numbers.
        remedy: what to do.
        causes: what may be behind it, likeliest first.
        reference: where to read about it.
        follows_from: code of a finding that explains this one.
    """

    code: str
    name: str
    severity: Severity
    layer: str
    summary: str
    effect: Quantity | None
    p_value: float | None
    impact: Quantity | None
    evidence: tuple[Quantity, ...]
    remedy: str
    causes: tuple[str, ...]
    reference: tuple[str, ...]
    follows_from: str = ""

    @classmethod
    def of(cls, judged: Judged) -> "Finding":
        """From what was judged."""
        rule, opinion = judged.rule, judged.opinion
        return cls(
            rule.code, rule.name, opinion.severity, opinion.layer, opinion.summary, opinion.effect, judged.q_value,
            opinion.impact, opinion.numbers, opinion.remedy or rule.remedy, opinion.causes, rule.references,
            judged.follows_from,
        )  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """The doctor's report.

    Attributes:
        findings: worst first.
        not_run: the rules that could not judge, and what they would have needed.
        certificate: the numbers behind "normalization is not your problem"; None where a finding is a warning or worse.
        run: the evidence, as a run; everything here can be judged again from it.
        proof: by what was hashed (weights, buffers, ...), whether it is bit for bit what it was.
    """

    findings: tuple[Finding, ...]
    not_run: tuple[NotRun, ...]
    certificate: Sequence[Quantity] | None
    run: Run
    proof: Mapping[str, bool]

    @property
    def ok(self) -> bool:
        """Whether nothing is a warning or worse."""
        return all(one.severity < Severity.WARNING for one in self.findings)


def diagnosis_of(
    evidence: Evidence,
    run: Run,
    proof: Mapping[str, bool],
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
) -> Diagnosis:
    """Judge evidence.

    Args:
        evidence: what was measured.
        run: where it lies.
        proof: what was hashed before and after.
        select: codes of the rules to ask; None asks all.
        ignore: codes of rules not to ask.

    Raises:
        ArgumentError: there is no such rule.
    """
    known = rules()
    for code in (*(select or ()), *ignore):
        if code not in known:
            raise ArgumentError(f"there is no rule {code!r}; there are {', '.join(known)}")
    chosen = [rule for code, rule in known.items() if (select is None or code in select) and code not in ignore]
    judged, not_run = judge(chosen, evidence)
    findings = tuple(map(Finding.of, judged))
    healthy = all(one.severity < Severity.WARNING for one in findings)
    return Diagnosis(findings, tuple(not_run), certificate(evidence) if healthy else None, run, proof)


def certificate(evidence: Evidence) -> tuple[Quantity, ...] | None:
    """The numbers that say that normalization is innocent; None where nothing that could have said otherwise ran."""
    wanted = (
        ("loss_stored", "loss with running statistics", ""),
        ("loss_batch", "loss with batch statistics", ""),
        ("loss_pooled", "loss with pooled statistics", ""),
        ("swap_change", "largest change of an output by other batch mates", "standard deviations"),
    )
    found = [(evidence.fact(statistic), name, unit) for statistic, name, unit in wanted]
    numbers = [Quantity(name, one.value, unit, *_ends(one)) for one, name, unit in found if one is not None]
    counts = evidence.all("n_eff_values")
    if counts:
        least = min(counts, key=lambda one: one.value)
        numbers.append(Quantity("least effective number of values", least.value, f"at {least.layer}", *_ends(least)))
    return tuple(numbers) or None


def _ends(fact: Fact) -> tuple[float | None, float | None]:
    return (None, None) if fact.low != fact.low else (fact.low, fact.high)
