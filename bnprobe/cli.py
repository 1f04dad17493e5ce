"""The command line: ``bnprobe report RUN``, ``bnprobe drift RUN`` and ``bnprobe spectra MODEL --input X``.

Exit status 0 is success, 2 an argument or a run that cannot be used; the message goes to standard error. What a
command needs is imported inside it, so that ``--help`` does not wait for it.
"""

import json
import math
import sys
from collections.abc import Sequence
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnprobe import __version__
from bnprobe.errors import BnprobeError

if TYPE_CHECKING:
    import pandas as pd

    from bnprobe.distances import Distance
    from bnprobe.drift import Reference
    from bnprobe.store import Run

__all__ = ["app", "main"]

app = typer.Typer(
    name="bnprobe",
    help="A measuring instrument for normalization in PyTorch networks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # half of the time that --help takes would go into loading it
    pretty_exceptions_enable=False,
)


class Phase(StrEnum):
    """Which records."""

    train = "train"
    eval = "eval"


class Per(StrEnum):
    """Whose Jacobian."""

    sample = "sample"
    batch = "batch"


class Format(StrEnum):
    """How a result is written."""

    text = "text"
    json = "json"


RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, as attach(out=...) wrote it.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    Args:
        arguments: instead of the process's own.
    """
    try:
        app(None if arguments is None else list(arguments), prog_name="bnprobe")
    except (BnprobeError, OSError) as error:
        print(f"bnprobe: {error}", file=sys.stderr)  # noqa: T201 - standard error is where it belongs
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A measuring instrument for normalization in PyTorch networks."""


@app.command()
def report(
    run: RunDirectory,
    out: Annotated[Path | None, typer.Option(help="The HTML file.  [default: RUN/report.html]")] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.  [default: the directory's name]")] = None,
) -> None:
    """Write everything that a run has to show to one HTML file, and print its path."""
    from bnprobe.report import report as write_report
    from bnprobe.store import load

    typer.echo(str(write_report(load(run), out or run / "report.html", title=title)))


@app.command()
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
        typer.echo(_as_json(frame))
        return
    unit = ", in standard deviations of the reference" if standardize else ""
    typer.echo(f"{frame['distance'].iloc[0]} distance of the {place}, reference {reference}{unit}\n\n{_as_text(frame)}")


@app.command()
def spectra(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="pkg.module:make_model, a function that returns the model.")
    ],
    input: Annotated[  # noqa: A002 - it is the option's name
        str, typer.Option(metavar="X", help="pkg.module:make_batch, a function that returns the model's input.")
    ],
    layers: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Only these layers; may be repeated.")
    ] = None,
    k: Annotated[
        str, typer.Option("-k", metavar="K", help="all; or how many of the largest; or largest,smallest.")
    ] = "10,3",
    per: Annotated[
        Per | None, typer.Option(help="sample: batch statistics held fixed. batch: of the whole batch.")
    ] = None,
    memory: Annotated[float, typer.Option(help="GiB for matrices and vectors.")] = 1.0,
    format: Annotated[  # noqa: A002 - it is the option's name
        Format, typer.Option(help="text: a line a layer. json: an object a layer.")
    ] = Format.text,
) -> None:
    """Show the singular values of every layer's Jacobian at one input."""
    count = _count(k)
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    made, x = _made(model, "MODEL"), _made(input, "--input")
    from bnprobe.measures.jacobian import spectra as measure

    frame = measure(made, x, layers or None, count, per=None if per is None else per.value, memory=int(memory * 2**30))
    typer.echo(_as_json(frame) if format is Format.json else _spectra_as_text(frame))


def _count(text: str) -> int | tuple[int, int] | None:
    parts = text.split(",")
    if text == "all":
        return None
    if len(parts) <= 2 and all(part.strip().isdecimal() for part in parts):
        largest, *smallest = map(int, parts)
        return (largest, smallest[0]) if smallest else largest
    raise typer.BadParameter(f"{text!r} is neither all, a number nor two numbers (10,3)", param_hint="-k")


def _made(path: str, hint: str) -> Any:
    """What the function at ``pkg.module:function`` returns."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise typer.BadParameter(f"{path!r} is not of the form pkg.module:function", param_hint=hint)
    try:
        function = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # something that the module itself needs
        raise typer.BadParameter(f"there is no module {module!r} from here", param_hint=hint) from error
    except AttributeError as error:
        raise typer.BadParameter(f"{module} has no {name!r}", param_hint=hint) from error
    return function()


def _spectra_as_text(frame: "pd.DataFrame") -> str:
    numbers = {"max": "max", "min": "min", "mean_square": "mean s^2", "condition_number": "condition"}
    numbers |= {"share_near_one": "near 1", "error": "error"}
    lines = [("layer", "kind", "method", "jacobian", *numbers.values())]
    said = []
    for row in frame.to_dict("records"):
        if row["why"]:
            said.append(f"{row['layer']} ({row['kind']}): {row['why']}")
            continue
        shape = f"{row['samples']} of {row['outputs']} x {row['inputs']}"
        cells = ("-" if math.isnan(row[name]) else f"{row[name]:.3g}" for name in numbers)
        method = f"{row['method']}, coupled" if row["coupled"] else row["method"]
        lines.append((row["layer"], row["kind"], method, shape, *cells))
    return "\n".join([_aligned(lines, words=(0, 1, 2)), *([""] if said else []), *said])


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


def _as_json(frame: "pd.DataFrame") -> str:
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return json.dumps([{str(key): _jsonable(value) for key, value in row.items()} for row in rows])


def _jsonable(value: Any) -> Any:
    """JSON has no infinity; null would say "not measured"."""
    return str(value).replace("inf", "Infinity") if isinstance(value, float) and math.isinf(value) else value


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
    return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]], words: Sequence[int] = (0, 2)) -> str:
    """Columns under one another: some are words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in words else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
