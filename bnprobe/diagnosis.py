"""What a diagnosis says: findings, what was not run, and the certificate where nothing is wrong."""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bnprobe.errors import ArgumentError
from bnprobe.evidence import Evidence, Fact
from bnprobe.rules import Judged, NotRun, Quantity, Rule, Severity, judge, rules
from bnprobe.store import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Diagnosis", "Finding", "certificate", "chosen_rules", "diagnosis_of"]

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, about one layer or the whole model.

    Attributes:
        code: of the rule, ``N06``.
        name: of the rule.
        severity: ``info``, ``warning`` or ``error``: a word, ordered by how bad it is.
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

    @property
    def fingerprint(self) -> str:
        """What stays the same from run to run, ``N06 layer1.bn``: by it a baseline file accepts a finding."""
        return f"{self.code} {self.layer}".rstrip()

    @classmethod
    def of(cls, judged: Judged) -> "Finding":
        """From what was judged."""
        rule, opinion = judged.rule, judged.opinion
        return cls(
            rule.code, rule.name, opinion.severity, opinion.layer, opinion.summary, opinion.effect, judged.q_value,
            opinion.impact, opinion.numbers, opinion.remedy or rule.remedy, opinion.causes, rule.references,
            judged.follows_from,
        )  # fmt: skip


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """The doctor's report: ``print`` shows it, a notebook displays it, ``to_...`` gives it to other programs.

    Attributes:
        findings: worst first.
        not_run: the rules that could not judge, and what they would have needed.
        certificate: the numbers behind "normalization is not your problem"; None where a finding is a warning or worse.
        run: the evidence, as a run; everything here can be judged again from it.
        proof: by what was hashed (weights, buffers, ...), whether it is bit for bit what it was; empty where no model
            was there to be changed.
        evidence: what was measured, and under which circumstances.
        asked: codes of the rules that judged.
        accepted: findings that a baseline accepts: they count for nothing.
    """

    findings: tuple[Finding, ...]
    not_run: tuple[NotRun, ...]
    certificate: Sequence[Quantity] | None
    run: Run
    proof: Mapping[str, bool]
    evidence: Evidence = field(default_factory=Evidence, compare=False)
    asked: tuple[str, ...] = ()
    accepted: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is a warning or worse; ``certificate`` says whether enough was measured to be sure."""
        return all(one.severity < Severity.WARNING for one in self.findings)

    @property
    def counted(self) -> str:
        """``1 error, 2 warnings, 1 info``; ``no finding``."""
        counts = Counter(one.severity for one in self.findings)
        words = [f"{counts[kind]} {kind!s}{'s' * (counts[kind] > 1)}" for kind in sorted(counts, reverse=True)]
        return ", ".join(words) or "no finding"

    def accept(self, fingerprints: Collection[str]) -> "Diagnosis":
        """The same, with the findings of these fingerprints among ``accepted`` instead; their names stay to be read."""
        wanted = set(fingerprints)
        kept = tuple(one for one in self.findings if one.fingerprint not in wanted)
        taken = tuple(one for one in self.findings if one.fingerprint in wanted)
        return replace(self, findings=kept, accepted=(*self.accepted, *taken))

    def __str__(self) -> str:
        from bnprobe.formats.text import as_text

        return as_text(self)

    def __repr__(self) -> str:
        return f"Diagnosis({self.counted}; {len(self.not_run)} rules not run; evidence in {str(self.run.path)!r})"

    def _repr_html_(self) -> str:
        from bnprobe.formats.notebook import as_fragment

        return as_fragment(self)

    def to_frame(self) -> "pd.DataFrame":
        """A row a finding, accepted ones last: code, severity, layer, the numbers, remedy, causes, references."""
        from bnprobe.formats.table import as_frame

        return as_frame(self)

    def to_json(self, path: _Path | None = None) -> str | None:
        """Everything but the evidence itself as JSON; infinities are strings, NaN is null.

        Args:
            path: file to write.

        Returns:
            The text; None where it was written to a file.
        """
        from bnprobe.formats.objects import as_json

        return _given(as_json(self), path)

    def to_html(self, path: _Path | None = None) -> str | None:
        """A self-contained page with pictures of the evidence.

        Args:
            path: file to write.

        Returns:
            The text; None where it was written to a file.
        """
        from bnprobe.report.of_diagnosis import page

        return _given(page(self).html(), path)

    def to_sarif(self, path: _Path | None = None, *, source: str | None = None, line: int = 1) -> str | None:
        """SARIF 2.1.0, which code hosts and editors show: a result a finding, at the layer as its logical location.

        Args:
            path: file to write.
            source: the file that makes the model, relative to the repository: some code hosts show only results that
                are somewhere in a file.
            line: of that file.

        Returns:
            The text; None where it was written to a file.
        """
        from bnprobe.formats.sarif import as_sarif

        return _given(as_sarif(self, source, line), path)


def _given(text: str, path: _Path | None) -> str | None:
    if path is None:
        return text
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    return None


def diagnosis_of(
    evidence: Evidence,
    run: Run,
    proof: Mapping[str, bool],
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    unable: Mapping[str, str] | None = None,
) -> Diagnosis:
    """Judge evidence.

    Args:
        evidence: what was measured.
        run: where it lies.
        proof: what was hashed before and after.
        select: codes of the rules to ask; None asks all.
        ignore: codes of rules not to ask.
        unable: by code, why a rule cannot judge this evidence, whatever measurements it needs.

    Raises:
        ArgumentError: there is no such rule.
    """
    chosen = chosen_rules(select, ignore)
    unable = unable or {}
    judged, not_run = judge([rule for rule in chosen if rule.code not in unable], evidence)
    not_run += [NotRun(rule.code, rule.name, unable[rule.code]) for rule in chosen if rule.code in unable]
    not_run.sort(key=lambda one: one.code)
    findings = tuple(map(Finding.of, judged))
    healthy = all(one.severity < Severity.WARNING for one in findings)
    silent = {one.code for one in not_run}
    asked = tuple(rule.code for rule in chosen if rule.code not in silent)
    shown = certificate(evidence) if healthy else None
    return Diagnosis(findings, tuple(not_run), shown, run, proof, evidence, asked)


def chosen_rules(select: Sequence[str] | None = None, ignore: Sequence[str] = ()) -> list[Rule]:
    """The rules to ask.

    Raises:
        ArgumentError: there is no such rule.
    """
    known = rules()
    for code in (*(select or ()), *ignore):
        if code not in known:
            raise ArgumentError(f"there is no rule {code!r}; there are {', '.join(known)}")
    return [rule for code, rule in known.items() if (select is None or code in select) and code not in ignore]


def certificate(evidence: Evidence) -> tuple[Quantity, ...] | None:
    """The numbers that say that normalization is innocent; None where nothing that could have said otherwise ran.

    Nor is there one of an untrained model, whose statistics will be others.
    """
    if evidence.context.untrained:
        return None
    wanted = (
        ("loss_stored", "loss with running statistics", ""),
        ("loss_batch", "loss with batch statistics", ""),
        ("loss_pooled", "loss with pooled statistics", ""),
        ("swap_change", "largest change of an output by other batch mates", "standard deviations"),
    )
    found = [(evidence.fact(statistic), name, unit) for statistic, name, unit in wanted]
    numbers = [Quantity(name, one.value, unit, *_ends(one)) for one, name, unit in found if one is not None]
    if not numbers:
        return None
    farthest = _of_layers(evidence, "mean_gap")
    if farthest:
        most = max(farthest, key=lambda one: one.value)
        name = f"largest distance of running and pooled mean, at {most.layer}"
        numbers.append(Quantity(name, most.value, "standard deviations", *_ends(most)))
    counts = _of_layers(evidence, "n_eff_values")
    if counts:
        least = min(counts, key=lambda one: one.value)
        numbers.append(
            Quantity(f"least effective number of values a batch, at {least.layer}", least.value, "", *_ends(least))
        )
    return tuple(numbers)


def _of_layers(evidence: Evidence, statistic: str) -> list[Fact]:
    return [one for one in evidence.all(statistic) if one.layer and one.value == one.value]


def _ends(fact: Fact) -> tuple[float | None, float | None]:
    return (None, None) if fact.low != fact.low else (fact.low, fact.high)
