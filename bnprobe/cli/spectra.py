"""The command ``spectra``."""

import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnprobe.cli.words import Format, aligned, as_json, made

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["spectra"]


class Per(StrEnum):
    """Whose Jacobian."""

    sample = "sample"
    batch = "batch"


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
    network, x = made(model, "MODEL"), made(input, "--input")
    from bnprobe.measures.jacobian import spectra as measure

    frame = measure(
        network, x, layers or None, count, per=None if per is None else per.value, memory=int(memory * 2**30)
    )
    typer.echo(as_json(frame) if format is Format.json else _spectra_as_text(frame))


def _count(text: str) -> int | tuple[int, int] | None:
    parts = text.split(",")
    if text == "all":
        return None
    if len(parts) <= 2 and all(part.strip().isdecimal() for part in parts):
        largest, *smallest = map(int, parts)
        return (largest, smallest[0]) if smallest else largest
    raise typer.BadParameter(f"{text!r} is neither all, a number nor two numbers (10,3)", param_hint="-k")


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
    return "\n".join([aligned(lines, words=(0, 1, 2)), *([""] if said else []), *said])
