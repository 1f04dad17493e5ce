"""What ran: the first section of a run's report, and what a reader must know before the figures."""

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from bnprobe.plots import style
from bnprobe.report.page import Facts, Note, Part, Section, Table
from bnprobe.report.recorded import Recorded
from bnprobe.store import Run
from bnprobe.store.manifest import read_manifest

__all__ = ["lead", "overview"]

_NUMBERS = re.compile(r"[(\[](?:[-+.\de]+, ?){6,}[-+.\de]+,?[)\]]")


def lead(run: Run) -> str:
    """One sentence on the run, for below the title."""
    layers, steps = run.layers, run.steps
    span = f"{len(steps):,} training steps recorded, {_span(run)}" if len(steps) else "no step recorded yet"
    return f"{span}; {int(layers['observed'].sum())} of {len(layers)} layers observed; the run is {run.status}."


def overview(there: Recorded) -> Section:
    """Steps, layers, statistics, versions and settings of a run, after a box with its problems."""
    problems = there.run.problems
    parts: list[Part] = [_problem_box(problems)] if problems else []
    parts.append(Facts(list(_facts(there).items())))
    if there.run.settings:
        rows = [[name, _setting(value)] for name, value in there.run.settings.items()]
        parts.append(Table(["Setting", "Value"], rows))
    return Section("Overview", parts)


def _problem_box(problems: Sequence[str]) -> Note:
    sentences = [sentence[:1].upper() + sentence[1:].rstrip(".") + "." for sentence in problems]
    return Note(sentences, kind="problem", heading="Problems of this run")


def _facts(there: Recorded) -> dict[str, str]:
    run, layers, keys = there.run, there.layers, there.keys
    sessions = read_manifest(run.path).sessions
    facts = {
        "Run directory": run.path.name,
        "State": run.status,
        "Started": ", ".join(_moment(session.started) for session in sessions),
        "Recorded steps": f"{len(run.steps):,} ({_span(run)})" if len(run.steps) else "none",
        "Phases": _counts(keys["phase"], "records"),
        "Places": _counts(keys["place"], "records"),
        "Layers": f"{len(layers)} in the inventory, {int(layers['observed'].sum())} observed",
        "Statistics": ", ".join(run.statistics) or "none",
        "Quantile levels": f"{len(run.levels)} from {run.levels[0]:g} to {run.levels[-1]:g}" if run.levels else "none",
        "Versions": _listed(sessions[-1].versions),
    }
    return {term: description for term, description in facts.items() if description}


def _moment(started: str) -> str:
    """A session's start, as ``run.json`` has it, without what nobody reads."""
    return started.replace("T", " ").replace("+00:00", " UTC")


def _setting(value: object) -> str:
    """A setting as text; long rows of numbers, such as quantile levels, are only counted (``run.json`` has them)."""
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    return _NUMBERS.sub(lambda match: f"({match[0].count(',') + 1} numbers)", text) or "none"


def _span(run: Run) -> str:
    first, last = int(run.steps[0]), int(run.steps[-1])
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def _counts(column: pd.Series, what: str) -> str:
    counts = column.astype(str).value_counts()
    return ", ".join(f"{name} ({style.number(count)} {what})" for name, count in counts.items()) or "none"


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
