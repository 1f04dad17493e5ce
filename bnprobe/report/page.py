"""Building blocks of a self-contained HTML page: sections of paragraphs, figures, tables, facts, code and notes.

A page is one file. It asks the network for nothing, works without JavaScript (only the search of long tables
needs it) and follows the reader's choice of light or dark. All text is escaped, wherever it comes from.
"""

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from numbers import Integral, Real
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure as Drawing

from bnprobe import __version__
from bnprobe.errors import ArgumentError
from bnprobe.plots import style
from bnprobe.report.svg import embed

__all__ = ["Code", "Facts", "Figure", "Mark", "Note", "Page", "Section", "Table"]

Tone = Literal["good", "bad", "open", "plain"]


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        drawing: a matplotlib figure; what ``bnprobe.plots`` made is ``axes.figure``.
        caption: what it shows and how to read it.
        alt: what a reader who cannot see it needs to know.
        wide: takes the whole width; other figures stand side by side where there is room.
    """

    drawing: Drawing
    caption: str
    alt: str
    wide: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.drawing, Drawing):
            raise ArgumentError(f"drawing must be a matplotlib Figure; got {type(self.drawing).__name__}")
        if not self.alt.strip():
            raise ArgumentError("alt must say what the figure shows; got an empty text")


@dataclass(frozen=True)
class Mark:
    """A judged word: ``good``, ``bad``, ``open`` (undecided) or ``plain``. The word says it, colour underlines."""

    text: str
    tone: Tone


Cell = str | int | float | bool | Mark | None


@dataclass(frozen=True)
class Table:
    """Rows under a header; numbers stand right and have three digits, None is a dash.

    Attributes:
        header: one name a column.
        rows: cells, as many a row as the header has.
        caption: what it shows, or empty.
        search: label of a search box over the table, e.g. "Search layers"; empty for none.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    search: str = ""

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ArgumentError(f"rows must have {len(self.header)} cells each; row {index} has {len(row)}")

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers, and nothing else but gaps."""
        columns = [[cell for cell in column if cell is not None] for column in zip(*self.rows, strict=True)]
        return [bool(cells) and all(map(_is_number, cells)) for cells in columns] or [False] * len(self.header)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, caption: str = "", search: str = "") -> "Table":
        """A table with the columns of a DataFrame; its index is left out."""
        rows = [
            [None if _is_missing(cell) else cell for cell in row] for row in frame.itertuples(index=False, name=None)
        ]
        return cls([str(name) for name in frame.columns], rows, caption, search)


@dataclass(frozen=True)
class Facts:
    """Terms and what they are, such as what ran with which versions."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Lines to copy, shown as they are."""

    text: str


@dataclass(frozen=True)
class Note:
    """Sentences that stand out: a ``problem`` to know before reading on, or something plainly ``missing``."""

    sentences: Sequence[str]
    kind: Literal["problem", "missing"] = "missing"
    heading: str = ""


Part = str | Figure | Table | Facts | Code | Note


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it; a ``str`` is a paragraph."""

    title: str
    parts: Sequence[Part]

    def __post_init__(self) -> None:
        # A str is a sequence of str, but nobody means a paragraph a letter.
        unknown = [part for part in self.parts if not isinstance(part, str | Figure | Table | Facts | Code | Note)]
        if unknown or isinstance(self.parts, str):
            raise ArgumentError(
                f"parts of section {self.title!r} must be a list of str, Figure, Table, Facts, Code and Note; "
                f"got {unknown[0] if unknown else self.parts!r}"
            )


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: its heading, and the browser's title.
        lead: one or two sentences below the heading.
        sections: in order; their titles make the list of contents.
    """

    title: str
    lead: str
    sections: Sequence[Section]

    def html(self) -> str:
        """The whole page."""
        script = _asset("page.js")
        return _template().render(
            page=self,
            anchors=_anchors([section.title for section in self.sections]),
            style=Markup(_asset("page.css")),  # our own files: nothing from a run gets into them
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            version=__version__,
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page to ``path`` in one step, making its folder where it is missing.

        Returns:
            The path.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_text(self.html(), encoding="utf-8")
        temporary.replace(target)
        return target


def _is_number(cell: object) -> bool:
    return isinstance(cell, Real) and not isinstance(cell, bool | np.bool_)


def _is_missing(cell: object) -> bool:
    return not isinstance(cell, Mark | str) and bool(pd.isna(cell))  # type: ignore[call-overload]  # any scalar will do


def _asset(name: str) -> str:
    return (files("bnprobe.report") / name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.tests.update(
        paragraph=lambda part: isinstance(part, str),
        figure=lambda part: isinstance(part, Figure),
        table=lambda part: isinstance(part, Table),
        facts=lambda part: isinstance(part, Facts),
        code=lambda part: isinstance(part, Code),
        mark=lambda cell: isinstance(cell, Mark),
    )
    environment.filters.update(shown=_shown, svg=lambda figure, prefix: embed(figure.drawing, prefix, figure.alt))
    return environment.from_string(_asset("page.html.j2"))


def _shown(cell: object) -> str:
    """A table cell as text."""
    if cell is None:
        return "–"
    if isinstance(cell, bool | np.bool_):
        return "yes" if cell else "no"
    if isinstance(cell, Integral):
        return f"{int(cell):,}".replace("-", "−")
    return style.number(float(cell)) if isinstance(cell, Real) else str(cell)


def _anchors(titles: Sequence[str]) -> list[str]:
    """An id for each section, from its title, none twice."""
    anchors: list[str] = []
    for title in titles:
        base = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        same = sum(re.fullmatch(rf"{base}(-\d+)?", known) is not None for known in anchors)
        anchors.append(f"{base}-{same + 1}" if same else base)
    return anchors
