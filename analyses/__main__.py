"""``python -m analyses``: list the claims, run them again."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from analyses.analysis import Analysis, Settings, find, names
from bnprobe.errors import BnprobeError

app = typer.Typer(
    name="analyses", help="Run claims of the literature about normalization again.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

_INTERRUPTED = 130  # what shells give for Ctrl-C


@app.command("list")
def list_() -> None:
    """Name the analyses and their claims."""
    for name in names():
        analysis = find(name)
        typer.echo(f"{name}\n  {analysis.TITLE}\n  scales: {', '.join(analysis.SCALES)}")
        for claim in analysis.CLAIMS:
            typer.echo(f"  {claim.code}  {claim.statement} ({claim.place})")


@app.command()
def run(
    wanted: Annotated[list[str], typer.Argument(metavar="NAME...", help="Analyses, as `list` names them.")],
    data: Annotated[
        str, typer.Option(help="digits (bundled), mnist, or any NAME.npz in the folder that BNPROBE_DATA names.")
    ] = "digits",
    scale: Annotated[str, typer.Option(help="smoke (does it work?), laptop, or gpu (the whole grid).")] = "laptop",
    seeds: Annotated[int | None, typer.Option(min=1, help="Paired seeds; default: as the scale has it.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Trials side by side; default: one a processor.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Results folder; default: results/NAME/DATA-SCALE. Finished trials are kept there."),
    ] = None,
) -> None:
    """Train, judge and write a report. A run that was interrupted goes on where it was."""
    with _told():
        analyses = {name: find(name) for name in wanted}
        for name, analysis in analyses.items():
            folder = out or Path("results") / name / f"{data}-{scale}"
            folder = folder / name if out and len(analyses) > 1 else folder
            _run(name, analysis, Settings(folder, data, scale, seeds, jobs))


def _run(name: str, analysis: Analysis, settings: Settings) -> None:
    start = time.monotonic()
    results = analysis.run(settings)
    verdicts = analysis.judge(results)
    from analyses.publish import publish, verdict_table  # matplotlib: only once there is something to draw

    report = publish(name, analysis, settings, results, verdicts)
    typer.echo(f"{analysis.TITLE}\n")
    typer.echo(verdict_table(verdicts, shutil.get_terminal_size((110, 24)).columns))
    typer.echo(f"\nours, since the paper does not fix it: {', '.join(choice.what for choice in analysis.CHOICES)}")
    typer.echo(f"report: {report} ({time.monotonic() - start:.0f} s)")


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong on purpose ends in one sentence and an exit status: 2 for a mistake, 130 for Ctrl-C."""
    try:
        yield
    except BnprobeError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as stop:
        typer.echo("interrupted; finished trials are kept, and the same command goes on from there", err=True)
        raise typer.Exit(_INTERRUPTED) from stop


def main() -> None:
    """Entry point of ``python -m analyses``."""
    app(prog_name="python -m analyses")


if __name__ == "__main__":
    main()
