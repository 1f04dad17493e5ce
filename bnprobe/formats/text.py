"""A diagnosis as text, for terminals and logs."""

from collections.abc import Iterable, Sequence
from textwrap import indent, wrap
from typing import TYPE_CHECKING

from bnprobe.formats.groups import (
    ADVICE,
    Group,
    amount,
    chance,
    circumstances,
    count,
    grouped,
    impact,
    kept,
    place,
    quantity,
    reasons,
    shown,
    verdict,
)  # fmt: skip

if TYPE_CHECKING:
    from bnprobe.diagnosis import Diagnosis, Finding

__all__ = ["as_text", "entry"]

WIDTH = 100
_LABEL = 9
_MOST_NAMED = 12  # layers; a network of 200 would fill the screen with their names


def as_text(diagnosis: "Diagnosis") -> str:
    """Findings by severity, what was not run, and how it knows that nothing was changed."""
    parts = [_head(diagnosis)]
    parts += [entry(group) for group in grouped(diagnosis.findings)]
    parts += [_cleared(diagnosis), _accepted(diagnosis.accepted), _not_run(diagnosis)]
    parts.append("\n".join([*_lines(kept(diagnosis)), *_lines(f"Evidence: {shown(str(diagnosis.run.path))}")]))
    return "\n\n".join(part for part in parts if part)


def _head(diagnosis: "Diagnosis") -> str:
    model = shown(diagnosis.evidence.context.texts.get("model", ""))
    title = f"Diagnosis{f' of {model}' if model else ''}: {diagnosis.counted}"
    if diagnosis.accepted:
        title += f" ({len(diagnosis.accepted)} more accepted)"
    said = circumstances(diagnosis)
    why = diagnosis.evidence.context.texts.get("why_no_loss", "")
    if why:
        said.append(f"no loss ({shown(why)}), so outputs are compared")
    return "\n".join([*_lines(title), *_lines(", ".join(said))])


def entry(group: Group) -> str:
    """One rule's findings: the worst in full."""
    one = group.worst
    lines = [f"{str(one.severity).upper()} {one.code} {one.name}: {place(one)}"]
    lines += _lines(shown(one.summary), "  ")
    if one.effect is not None:
        lines += _labelled("effect", quantity(one.effect))
    lines += _labelled("chance", chance(one))
    lines += _labelled("impact", impact(one))
    lines += _labelled("numbers", "; ".join(map(quantity, one.evidence)))
    if one.follows_from:
        lines += _labelled("follows", f"from {one.follows_from}, which explains it: mend that first")
    lines += _labelled("layers", _others(one, group.others))
    for label, cause in zip(["likely", *[""] * len(one.causes)], one.causes, strict=False):
        lines += _labelled(label, f"- {shown(cause)}")
    if one.remedy:
        lines += ["  remedy", indent(shown(one.remedy).strip("\n"), " " * 6)]
    for label, reference in zip(["see", *[""] * len(one.reference)], one.reference, strict=False):
        lines += _labelled(label, shown(reference))
    return "\n".join(lines)


def _others(worst: "Finding", others: Sequence["Finding"]) -> str:
    if not others:
        return ""
    named = [_short(one, worst) for one in others[:_MOST_NAMED]]
    more = f", and {len(others) - _MOST_NAMED} more (to_frame() has all)" if len(others) > _MOST_NAMED else ""
    return f"and {len(others)} further layer{'s' * (len(others) > 1)}: {', '.join(named)}{more}"


def _short(finding: "Finding", worst: "Finding") -> str:
    """A layer with its effect, of which the reader knows from the worst what it is; severity where it is another."""
    said = [] if finding.effect is None else [amount(finding.effect.value)]
    said += [str(finding.severity)] if finding.severity != worst.severity else []
    return f"{place(finding)} ({', '.join(said)})" if said else place(finding)


def _cleared(diagnosis: "Diagnosis") -> str:
    sentence = verdict(diagnosis)
    if not sentence:
        return ""
    if diagnosis.certificate is None:
        return "\n".join(_lines(sentence))
    lines = [f"N00 {sentence}"]
    for one in diagnosis.certificate:
        lines += _lines(quantity(one), "  ", "    ")
    return "\n".join([*lines, *_lines(ADVICE, "  ")])


def _accepted(accepted: Sequence["Finding"]) -> str:
    lines = [f"Accepted by the baseline: {len(accepted)}"] if accepted else []
    for one in accepted:
        lines += _lines(f"{one.severity!s} {one.code} {one.name}: {place(one)}", "  ", "    ")
    return "\n".join(lines)


def _not_run(diagnosis: "Diagnosis") -> str:
    if not diagnosis.not_run:
        return ""
    lines = [f"Not run: {count(len(diagnosis.not_run), 'rule')}"]
    for why, some in reasons(diagnosis.not_run).items():
        lines += _lines(f"{shown(why)}", "  ", "    ")
        lines += _lines(", ".join(f"{one.code} {one.name}" for one in some), "      ")
    return "\n".join(lines)


def _labelled(label: str, text: str) -> list[str]:
    return _lines(text, f"  {label:<{_LABEL}}", " " * (_LABEL + 2))


def _lines(text: str, first: str = "", then: str | None = None) -> list[str]:
    """Wrapped; names of layers and paths are never torn. No text gives no line."""
    further = first if then is None else then
    paragraphs: Iterable[str] = text.split("\n")
    return [
        line
        for number, paragraph in enumerate(paragraphs)
        for line in wrap(
            paragraph, WIDTH, initial_indent=further if number else first, subsequent_indent=further,
            break_long_words=False, break_on_hyphens=False,
        )
    ]  # fmt: skip
