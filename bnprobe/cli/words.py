"""What several commands share: names of functions become objects, tables become text."""

import json
import math
from collections.abc import Sequence
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Format", "aligned", "as_json", "found", "made"]


class Format(StrEnum):
    """How a result is written."""

    text = "text"
    json = "json"


def made(path: str, hint: str) -> Any:
    """What the function at ``pkg.module:function`` returns."""
    return found(path, hint)()


def found(path: str, hint: str) -> Any:
    """The function at ``pkg.module:function``."""
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
    if not callable(function):
        raise typer.BadParameter(f"{path} is no function but of type {type(function).__name__}", param_hint=hint)
    return function


def as_json(frame: "pd.DataFrame") -> str:
    """An object a row."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return json.dumps([{str(key): _jsonable(value) for key, value in row.items()} for row in rows])


def _jsonable(value: Any) -> Any:
    """JSON has no infinity; null would say "not measured"."""
    return str(value).replace("inf", "Infinity") if isinstance(value, float) and math.isinf(value) else value


def aligned(lines: Sequence[Sequence[str]], words: Sequence[int] = (0, 2)) -> str:
    """Columns under one another: some are words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in words else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
