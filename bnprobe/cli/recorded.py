"""Commands that read a run directory: ``report`` and ``drift``."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnprobe.cli.words import Format, aligned, as_json

if TYPE_CHECKING:
    import pandas as pd

    from bnprobe.distances import Distance
    from bnprobe.drift import Reference
    from bnprobe.store import Run

__all__ = ["drift", "report"]


class Phase(StrEnum):
    """Which records."""

    train = "train"
    eval = "eval"


RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, as attach(out=...) wrote it.")]


def report(
    run: RunDirectory,
    out: Annotated[Path | None, typer.Option(help="The HTML file.  [default: RUN/report.html]")] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.  [default: the directory's name]")] = None,
) -> None:
    """Write everything that a run has to show to one HTML file, and print its path."""
    from bnprobe.report import report as write_report
    from bnprobe.store import load

    typer.echo(str(write_report(load(run), out or run / "report.html", title=title)))


def drift(
    run: RunDirectory,
    distance: Annotated[
        str, typer.Option(metavar="NAME", help="How to compare two distributions; a wrong name lists them.")
    ] = "wasserstein",
    reference: Annotated[
        str,
        typer.Option(metavar="REF", help="What to compare with: first, previous, a step, or another run directory."),
    ] = "first",
    place: Annotated[str, typer.Option(metavar="PLACE", help="input, output, grad_output or weight.")] = "input",
    layer: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this layer; may be repeated.")] = None,
    phase: Annotated[Phase, typer.Option(help="Which records.")] = Phase.train,
    standardize: Annotated[bool, typer.Option(help="In units of the reference's standard deviation.")] = False,
    format: Annotated[  # noqa: A002 - it is the option's name
        Format, typer.Option(help="text: a line a layer. json: an object a layer and step.")
    ] = Format.text,
) -> None:
    """Show how far every layer's distribution has moved."""
    from bnprobe.drift import drift as compute_drift
    from bnprobe.store import load

    frame = compute_drift(
        load(run),
        _distance(distance),
        _reference(reference),
        layer=layer or None,
        place=place,
        phase=phase.value,
        standardize=standardize,
    )
    if format is Format.json:
        typer.echo(as_json(frame))
        return
    unit = ", in standard deviations of the reference" if standardize else ""
    typer.echo(f"{frame['distance'].iloc[0]} distance of the {place}, reference {reference}{unit}\n\n{_as_text(frame)}")


def _distance(name: str) -> "Distance":
    """The distance of a name as people type it: ``wasserstein``, ``kolmogorov-smirnov``, ``KolmogorovSmirnov``."""
    from bnprobe import distances

    kinds = [getattr(distances, exported) for exported in distances.__all__ if exported not in ("Distance", "Summary")]
    every: list[Distance] = [*(kind() for kind in kinds), distances.KullbackLeibler(reverse=True)]
    by_name = {distance.name: distance for distance in every}
    wanted = name.replace("-", "_").lower()
    for known, distance in by_name.items():
        if wanted in (known, known.replace("_", "")):
            return distance
    raise typer.BadParameter(f"{name!r} is no distance; there are {', '.join(by_name)}", param_hint="--distance")


def _reference(text: str) -> "Reference | int | Run":
    if text == "first":
        return "first"
    if text == "previous":
        return "previous"
    if text.isdecimal():
        return int(text)
    if Path(text).exists():
        from bnprobe.store import load

        return load(text)
    raise typer.BadParameter(
        f"{text!r} is neither first, previous, a step (a whole number) nor a run directory", param_hint="--reference"
    )


def _as_text(frame: "pd.DataFrame") -> str:
    lines = [("layer", "call", "place", "records", "last", "error", "largest", "at step")]
    for series, rows in frame.groupby(["layer", "call", "place"], sort=False, observed=True):
        layer, call, place = map(str, series)
        known = rows.dropna(subset=["value"])
        value, error, step = (known[column].tolist() for column in ("value", "error", "step"))
        if not value:
            lines.append((layer, call, place, "0", "-", "-", "-", "-"))
            continue
        top = value.index(max(value))
        numbers = (f"{value[-1]:.3g}", f"{error[-1]:.3g}", f"{value[top]:.3g}", str(step[top]))
        lines.append((layer, call, place, str(len(value)), *numbers))
    return aligned(lines)
