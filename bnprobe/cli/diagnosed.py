"""Commands of the doctor: ``diagnose``, ``rules`` and ``explain``."""

import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnprobe.cli.words import Format, aligned, found, made
from bnprobe.errors import ArgumentError

if TYPE_CHECKING:
    from bnprobe.diagnosis import Diagnosis

__all__ = ["diagnose", "explain", "rules"]


class Shape(StrEnum):
    """How a diagnosis is written."""

    text = "text"
    json = "json"
    sarif = "sarif"
    html = "html"


class FailOn(StrEnum):
    """From which severity on the exit status is 1."""

    warning = "warning"
    error = "error"
    never = "never"


def diagnose(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="pkg.module:make_model, a function that returns the model.")
    ] = None,
    loader: Annotated[
        str | None, typer.Option(metavar="X", help="pkg.module:make_loader, a function that returns the batches.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Judge what is recorded there instead: a diagnosis, or a probe's run."),
    ] = None,
    loss: Annotated[str | None, typer.Option(metavar="X", help="pkg.module:loss, loss(model, batch).")] = None,
    forward: Annotated[str | None, typer.Option(metavar="X", help="pkg.module:forward, forward(model, batch).")] = None,
    val_loader: Annotated[str | None, typer.Option(metavar="X", help="A function: batches of the evaluation.")] = None,
    reference: Annotated[str | None, typer.Option(metavar="X", help="A function: a second model (EMA).")] = None,
    exported: Annotated[str | None, typer.Option(metavar="X", help="A function: the deployed model.")] = None,
    intent: Annotated[
        str | None, typer.Option(help="serve, train, frozen, batch-stats-at-test or transductive.")
    ] = None,
    batches: Annotated[int, typer.Option(help="How many to look at.")] = 32,
    seed: Annotated[int, typer.Option(help="Of permutations and draws.")] = 0,
    select: Annotated[list[str] | None, typer.Option(metavar="CODES", help="Only these rules: N01,N06.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(metavar="CODES", help="Not these rules: N31.")] = None,
    format: Annotated[  # noqa: A002 - it is the option's name
        Shape, typer.Option(help="How the diagnosis is written.")
    ] = Shape.text,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write there; the text still goes to standard output.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the evidence there, for --run.")] = None,
    baseline: Annotated[Path | None, typer.Option(metavar="FILE", help="Findings that are accepted.")] = None,
    write_baseline: Annotated[Path | None, typer.Option(metavar="FILE", help="Accept all that is found now.")] = None,
    fail_on: Annotated[FailOn, typer.Option(help="From which severity on the exit status is 1.")] = FailOn.error,
) -> None:
    """Say which normalization pitfall hurts a model, with evidence; or that none does."""
    from bnprobe.formats import baseline as accepted

    known = accepted.read_baseline(baseline) if baseline is not None else []
    chosen, left = _codes(select) or None, _codes(ignore)
    source: tuple[str, int] | None = None
    if run is not None:
        others = (model, loader, loss, forward, val_loader, reference, exported, intent, keep)
        if any(one is not None for one in others):
            raise typer.BadParameter("it judges what is recorded: give no model beside it", param_hint="--run")
        result = _of_run(run, chosen, left)
    else:
        if model is None or loader is None:
            raise typer.BadParameter("give MODEL and --loader, or --run with a directory")
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
        function = found(model, "MODEL")
        source = _source(function)
        from bnprobe.diagnose import diagnose as examine

        result = examine(
            function(), made(loader, "--loader"), _found(loss, "--loss"), intent=intent, batches=batches, seed=seed,
            forward=_found(forward, "--forward"), val_loader=_made(val_loader, "--val-loader"),
            reference=_made(reference, "--reference"), exported=_made(exported, "--exported"),
            select=chosen, ignore=left, out=keep,
        )  # fmt: skip
    result = result.accept(known)
    for one in accepted.outdated(result, known):
        typer.echo(f"bnprobe: {baseline} accepts {one!r}, which is not found any more", err=True)
    if write_baseline is not None:
        accepted.write_baseline(result, write_baseline)
        result = result.accept([one.fingerprint for one in result.findings])
    _write(result, format, out, source)
    raise typer.Exit(_status(result, fail_on))


def rules(
    format: Annotated[  # noqa: A002 - it is the option's name
        Format, typer.Option(help="text: a line a rule. json: an object a rule.")
    ] = Format.text,
) -> None:
    """List the rules of the doctor."""
    from bnprobe.rules import page
    from bnprobe.rules import rules as every

    if format is Format.json:
        typer.echo(page.as_json(every().values()))
    else:
        typer.echo(aligned([(one.code, one.name, one.title) for one in every().values()], words=(0, 1, 2)))


def explain(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="Its code or name: N06, batches-not-random.")],
) -> None:
    """Explain a rule: what it finds, why it hurts, how it shows, what to do."""
    from bnprobe.rules import page
    from bnprobe.rules import rules as every

    for one in every().values():
        if rule.casefold() in (one.code.casefold(), one.name.casefold()):
            typer.echo(page.plain(one))
            return
    raise ArgumentError(f"there is no rule {rule!r}; there are {', '.join(every())}")


def _of_run(directory: Path, select: Sequence[str] | None, ignore: Sequence[str]) -> "Diagnosis":
    from bnprobe.recorded_evidence import diagnosis_of_run
    from bnprobe.store import load

    return diagnosis_of_run(load(directory), select, ignore)


def _write(result: "Diagnosis", shape: Shape, out: Path | None, source: tuple[str, int] | None) -> None:
    if shape is Shape.text or out is not None:
        typer.echo(str(result))
    if out is not None and out.is_dir():
        raise ArgumentError(f"--out must name a file; {str(out)!r} is a directory")
    if shape is Shape.text:
        text: str | None = str(result) + "\n"
    elif shape is Shape.json:
        text = result.to_json()
    elif shape is Shape.html:
        text = result.to_html()
    else:
        file, line = source or (None, 1)
        text = result.to_sarif(source=file, line=line)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text or "", encoding="utf-8")
    elif shape is not Shape.text:
        typer.echo(text)


def _status(result: "Diagnosis", fail_on: FailOn) -> int:
    from bnprobe.rules import Severity

    if fail_on is FailOn.never:
        return 0
    least = Severity[fail_on.value.upper()]
    return int(any(one.severity >= least for one in result.findings))


def _codes(given: Sequence[str] | None) -> list[str]:
    """``["N01,n06", "N31"]`` as N01, N06, N31."""
    return [code.strip().upper() for some in given or () for code in some.split(",") if code.strip()]


def _found(path: str | None, hint: str) -> Any:
    return None if path is None else found(path, hint)


def _made(path: str | None, hint: str) -> Any:
    return None if path is None else made(path, hint)


def _source(function: Callable[..., Any]) -> tuple[str, int] | None:
    """File, from here, and line where the model is made; None where that is not below here."""
    import inspect

    try:
        file, (_, line) = inspect.getsourcefile(function), inspect.getsourcelines(function)
        return (str(Path(file or "").resolve().relative_to(Path.cwd().resolve())), line) if file else None
    except (TypeError, OSError, ValueError):  # made in C, or elsewhere
        return None
