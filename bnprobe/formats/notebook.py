"""A diagnosis as a notebook shows it: a piece of HTML that takes its colours from the page around it."""

from html import escape
from typing import TYPE_CHECKING

from bnprobe.formats.groups import grouped, kept, place, shown, verdict
from bnprobe.formats.text import as_text, entry
from bnprobe.rules import Severity

if TYPE_CHECKING:
    from bnprobe.diagnosis import Diagnosis

__all__ = ["as_fragment"]

_COLORS = {Severity.ERROR: "#c0392b", Severity.WARNING: "#b8860b", Severity.INFO: "#6b7785"}
_PRE = "white-space: pre-wrap; overflow-x: auto; margin: .3em 0 .6em 1em; font-size: .9em"


def as_fragment(diagnosis: "Diagnosis") -> str:
    """One line a rule that opens to the whole finding; no identifiers, no scripts, no style sheet."""
    model = diagnosis.evidence.context.texts.get("model", "")
    parts = [f"<p><b>Diagnosis{_html(f' of {model}' if model else '')}: {diagnosis.counted}</b></p>"]
    for group in grouped(diagnosis.findings):
        one, more = group.worst, len(group.others)
        where = place(one) + (f" and {more} further layer{'s' * (more > 1)}" if more else "")
        badge = f'<b style="color: {_COLORS[one.severity]}">{str(one.severity).upper()}</b>'
        line = f"{badge} {one.code} {_html(one.name)}: {_html(where)}<br>{_html(one.summary)}"
        parts.append(_opening(line, entry(group), is_open=one.severity == Severity.ERROR))
    sentence = verdict(diagnosis)
    parts += [f"<p>{_html(sentence)}</p>"] if sentence else []
    parts.append(_opening("Whole report", as_text(diagnosis)))
    return f"<div>{''.join(parts)}<p><small>{_html(kept(diagnosis))}</small></p></div>"


def _opening(line: str, text: str, *, is_open: bool = False) -> str:
    state = " open" if is_open else ""
    return f'<details{state}><summary>{line}</summary><pre style="{_PRE}">{_html(text)}</pre></details>'


def _html(text: str) -> str:
    return escape(shown(text))
