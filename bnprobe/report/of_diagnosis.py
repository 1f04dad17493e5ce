"""The page of a diagnosis: each rule's findings with numbers and remedy, pictures of the evidence, what was not run."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from bnprobe import plots
from bnprobe.errors import RunError
from bnprobe.evidence import Evidence
from bnprobe.formats.groups import (
    ADVICE,
    Group,
    chance,
    circumstances,
    grouped,
    impact,
    kept,
    place,
    quantity,
    reasons,
    shown,
    verdict,
)  # fmt: skip
from bnprobe.report.page import Cell, Code, Facts, Figure, Mark, Note, Page, Part, Section, Table
from bnprobe.rules import Severity

if TYPE_CHECKING:
    from bnprobe.diagnosis import Diagnosis, Finding

__all__ = ["page"]

_TONES = {Severity.ERROR: "bad", Severity.WARNING: "open", Severity.INFO: "plain"}
_PICTURES: tuple[tuple[Callable[[Evidence], Axes], str, str], ...] = (
    (
        plots.loss_triangle,
        "The same batches normalized by running statistics, by their own, and by statistics pooled over all batches. A "
        "grey line is one batch; bars are 95 % intervals of the mean. Low everywhere: normalization is innocent. High "
        "on the left only: running statistics do not fit. Low in the middle only: the model needs its own batch.",
        "Three dots with intervals: loss with running, batch and pooled statistics.",
    ),
    (
        plots.swap_test,
        "How much the output of a sample changes when other samples share its batch. Dotted: 0.005 and 0.05 standard "
        "deviations, from where rule N01 warns, and speaks of an error.",
        "Bars on a logarithmic scale: change of outputs with other batch mates.",
    ),
    (
        plots.statistics_gap,
        "How far running statistics are from those of all batches together, layer by layer in the order of their "
        "calls. Beyond the dotted lines they do not describe these batches; whether that hurts, the losses say.",
        "Dots, one row a layer: gaps of running means and variances.",
    ),
    (
        plots.effective_values,
        "To how many independent values the values of a batch amount, layer by layer: few where batches are small or "
        "their samples alike.",
        "Dots, one row a layer: effective number of values a batch, over bands that end at 8, 16 and 32.",
    ),
)


def page(diagnosis: "Diagnosis") -> Page:
    """The page.

    Args:
        diagnosis: what to show.
    """
    groups = grouped(diagnosis.findings)
    model = shown(diagnosis.evidence.context.texts.get("model", ""))
    sections = [
        Section("Overview", list(_overview(diagnosis, groups))),
        *(Section(f"{group.worst.code} {group.worst.name}", list(_finding(group))) for group in groups),
        Section("Evidence", _pictures(diagnosis.evidence)),
    ]
    if diagnosis.accepted:
        sections.append(Section("Accepted", [_table(diagnosis.accepted, "Accepted by the baseline file.")]))
    sections += [Section("Not run", _not_run(diagnosis)), Section("How it was examined", [_examined(diagnosis)])]
    lead = f"{diagnosis.counted}; {', '.join(circumstances(diagnosis))}".rstrip("; ") + "."
    return Page(f"Diagnosis of {model}" if model else "Diagnosis", lead[:1].upper() + lead[1:], sections)


def _overview(diagnosis: "Diagnosis", groups: list[Group]) -> Iterable[Part]:
    changed = not all(diagnosis.proof.values())
    if changed:
        yield Note([kept(diagnosis)], kind="problem", heading="The model was changed")
    if groups:
        rows: list[list[Cell]] = [
            [_mark(one.worst), f"{one.worst.code} {one.worst.name}", _where(one), shown(one.worst.summary)]
            for one in groups
        ]
        yield Table(["Severity", "Rule", "Where", "What"], rows)
    sentence = verdict(diagnosis)
    if sentence:
        yield sentence
    if sentence and diagnosis.certificate is not None:
        yield Facts([(shown(one.name), quantity(one, named=False)) for one in diagnosis.certificate])
        yield ADVICE
    if not changed:
        yield kept(diagnosis)


def _where(group: Group) -> str:
    more = len(group.others)
    return place(group.worst) + (f" and {more} further layer{'s' * (more > 1)}" if more else "")


def _mark(finding: "Finding") -> Mark:
    return Mark(str(finding.severity), _TONES[finding.severity])  # type: ignore[arg-type]  # they are tones


def _finding(group: Group) -> Iterable[Part]:
    one = group.worst
    yield shown(one.summary)
    facts = [("Severity", str(one.severity)), ("Where", place(one))]
    facts += [("Effect", quantity(one.effect))] if one.effect is not None else []
    facts += [("Chance", chance(one))]
    facts += [("Impact", impact(one))] if impact(one) else []
    facts += [("Follows from", f"{one.follows_from}, which explains it: mend that first")] if one.follows_from else []
    facts += [(shown(number.name), quantity(number, named=False)) for number in one.evidence]
    yield Facts(facts)
    if one.causes:
        yield Note([shown(cause) for cause in one.causes], heading="What may be behind it, the likeliest first")
    if one.remedy:
        yield "What to do:"
        yield Code(shown(one.remedy).strip("\n"))
    if group.others:
        search = "Search layers" if len(group.others) > 9 else ""
        yield _table((one, *group.others), "All layers with this finding, the worst first.", search)
    if one.reference:
        yield f"Read: {'; '.join(map(shown, one.reference))}."


def _table(findings: Iterable["Finding"], caption: str, search: str = "") -> Table:
    rows: list[list[Cell]] = []
    for one in findings:
        effect = None if one.effect is None else one.effect.value
        rows.append([_mark(one), one.code, place(one), effect, one.p_value, shown(one.summary)])
    return Table(["Severity", "Rule", "Layer", "Effect", "p-value", "What"], rows, caption, search)


def _pictures(evidence: Evidence) -> list[Part]:
    parts: list[Part] = []
    missing = []
    for draw, caption, alt in _PICTURES:
        try:
            drawing = draw(evidence).figure
        except RunError as error:
            missing.append(f"Not drawn: {error}.")
            continue
        assert isinstance(drawing, Drawing)
        parts.append(Figure(drawing, caption, alt))
    return [*parts, Note(missing)] if missing else parts


def _not_run(diagnosis: "Diagnosis") -> list[Part]:
    if not diagnosis.not_run:
        return ["Every rule that was asked could judge."]
    rows = [
        [", ".join(f"{one.code} {one.name}" for one in some), shown(why)]
        for why, some in reasons(diagnosis.not_run).items()
    ]
    return [Table(["Rules", "Why not"], rows)]


def _examined(diagnosis: "Diagnosis") -> Facts:
    context = diagnosis.evidence.context
    facts = [("Looked at", ", ".join(circumstances(diagnosis)) or "records only")]
    if context.given:
        facts.append(("Given", ", ".join(context.given)))
    if context.texts.get("why_no_loss"):
        facts.append(("Loss", f"none ({shown(context.texts['why_no_loss'])}); outputs were compared"))
    slowest = sorted(context.seconds.items(), key=lambda one: -one[1])[:4]
    if slowest:
        facts.append(("Longest measurements", ", ".join(f"{name} {seconds:.2g} s" for name, seconds in slowest)))
    facts.append(("Rules that judged", ", ".join(diagnosis.asked) or "none"))
    facts.append(("Evidence", shown(str(diagnosis.run.path))))
    return Facts(facts)
