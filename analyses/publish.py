"""Verdicts, pictures and numbers of an analysis as files: ``verdicts.json``, ``figures/``, ``report.html``."""

import json
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bnprobe
from analyses.analysis import Analysis, Settings
from analyses.claim import Choice, Claim, Verdict
from bnprobe.report import Facts, Figure, Mark, Page, Section, Table
from bnprobe.report.page import Cell, Tone

__all__ = ["publish", "verdict_table"]

_TONES: Mapping[str, Tone] = {"reproduced": "good", "not reproduced": "bad", "undecided": "open"}
_FIGURE_DPI = 150


def publish(name: str, analysis: Analysis, settings: Settings, results: Any, verdicts: Sequence[Verdict]) -> Path:
    """Write everything into the results folder.

    Returns:
        Path of the report.
    """
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    versions = {package: version(package) for package in ("torch", "numpy")} | {"bnprobe": bnprobe.__version__}
    _write_json(
        settings.out / "verdicts.json",
        {
            "analysis": name,
            "data": settings.data,
            "scale": settings.scale,
            "made": made,
            "versions": versions,
            "choices": [{"what": c.what, "value": c.value, "why": c.why} for c in analysis.CHOICES],
            "verdicts": [verdict.as_json() for verdict in verdicts],
        },
    )
    figures = analysis.draw(results)
    _save_figures(figures, settings.out / "figures")
    facts = Facts(
        [
            ("Data and size", verdicts[0].scale),
            ("Run again with", _command(name, settings)),
            ("Made", made),
            ("Versions", ", ".join(f"{package} {number}" for package, number in versions.items())),
            ("Results folder", str(settings.out)),
        ]
    )
    page = Page(
        title=analysis.TITLE,
        lead=_lead(verdicts),
        sections=[
            Section("Verdicts", [_verdicts_as_table(verdicts), *map(_explained, verdicts)]),
            Section("Pictures", list(figures.values())),
            Section("Numbers", list(analysis.tables(results))),
            Section("Claims and gates", [_claims_as_table(analysis.CLAIMS), _gates_as_table(verdicts)]),
            Section("What is ours", [_choices_as_table(analysis.CHOICES)]),
            Section("What ran", [facts]),
        ],
    )
    return page.write(settings.out / "report.html")


def _command(name: str, settings: Settings) -> str:
    seeds = f" --seeds {settings.seeds}" if settings.seeds else ""
    return f"python -m analyses run {name} --data {settings.data} --scale {settings.scale}{seeds}"


def verdict_table(verdicts: Sequence[Verdict], width: int) -> str:
    """The verdicts as text: a line a quantity, and the reason and the paper's figure below each claim."""
    header = ("claim", "verdict", "quantity", "measured", "counts if", "seeds")
    groups = [
        [
            (
                verdict.claim.code if first else "",
                verdict.outcome if first else "",
                finding.quantity.name,
                finding.measured,
                finding.counts_from,
                str(finding.decision.seeds),
            )
            for first, finding in zip([True] + [False] * len(verdict.findings), verdict.findings, strict=False)
        ]
        for verdict in verdicts
    ]
    widths = [max(map(len, column)) for column in zip(header, *(row for group in groups for row in group), strict=True)]
    lines = [_aligned(header, widths), _aligned(["-" * w for w in widths], widths)]
    for verdict, group in zip(verdicts, groups, strict=True):
        lines += [_aligned(row, widths) for row in group]
        for title, text in (
            ("why", verdict.reason),
            ("claim", verdict.claim.statement),
            ("paper", f"{verdict.claim.figure} ({verdict.claim.scale})"),
            ("here", verdict.scale),
        ):
            lines += textwrap.wrap(
                f"{title + ':':<7}{text}", max(40, width), initial_indent=" " * 7, subsequent_indent=" " * 14
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _lead(verdicts: Sequence[Verdict]) -> str:
    told = "; ".join(f"{verdict.claim.code}: {verdict.outcome}" for verdict in verdicts)
    return f"{told}. The paper ran {verdicts[0].claim.scale}; here ran {verdicts[0].scale}."


def _verdicts_as_table(verdicts: Sequence[Verdict]) -> Table:
    rows: list[list[Cell]] = [
        [
            verdict.claim.code,
            Mark(verdict.outcome, _TONES[verdict.outcome]),
            finding.quantity.name,
            finding.measured,
            finding.counts_from,
            finding.decision.p_value if math.isfinite(finding.decision.p_value) else None,
            finding.decision.seeds,
            verdict.claim.figure,
        ]
        for verdict in verdicts
        for finding in verdict.findings
    ]
    header = ("Claim", "Verdict", "Quantity", "Measured (interval)", "Counts if", "p", "Seeds", "The paper's figure")
    caption = (
        "Mean over paired seeds with its interval. Confidence is such that all decisions together err with probability "
        "0.05 at most (Holm); p is two-sided, of the mean being the smallest effect that counts, or "
        "the one that refutes where that is another."
    )
    return Table(header, rows, caption)


def _explained(verdict: Verdict) -> str:
    statement = verdict.claim.statement.rstrip(".")
    return f"{verdict.claim.code}, \u201c{statement}\u201d, is {verdict.outcome}: {verdict.reason}."


def _gates_as_table(verdicts: Sequence[Verdict]) -> Table:
    rows: list[list[Cell]] = [
        [
            verdict.claim.code,
            gate.name,
            verdict.claim.gates[gate.name],
            Mark("passed", "good") if gate.passed else Mark("failed", "bad"),
            gate.detail,
        ]
        for verdict in verdicts
        for gate in verdict.gates
    ]
    caption = "Gates: conditions under which the measurement says anything. One that failed leaves the claim undecided."
    return Table(("Claim", "Gate", "What must hold", "Outcome", "Found"), rows, caption)


def _claims_as_table(claims: Sequence[Claim]) -> Table:
    rows = [
        [
            c.code,
            f"{c.paper}, {c.place}",
            c.statement,
            "; ".join(f"{q.name}: {q.meaning}" for q in c.quantities),
            c.refuted_by,
        ]
        for c in claims
    ]
    return Table(
        ("Claim", "Where", "Statement", "Judged by", "What would refute it"), rows, "Fixed before the trials ran."
    )


def _choices_as_table(choices: Sequence[Choice]) -> Table:
    rows = [[c.what, c.value, c.why] for c in choices]
    return Table(("What", "Here", "Why"), rows, "What the paper does not fix, or is done differently here.")


def _save_figures(figures: Mapping[str, Figure], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            figure.drawing.savefig(folder / f"{name}.{kind}", dpi=_FIGURE_DPI)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    scratch.write_text(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(path)
