"""What an analysis is: a module with the names of ``Analysis``, which ``python -m analyses`` finds by its file name."""

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from analyses.claim import Choice, Claim, Verdict
from analyses.trials import available_jobs
from bnprobe.errors import ArgumentError

if TYPE_CHECKING:
    from bnprobe.report import Figure, Table

__all__ = ["Analysis", "Settings", "find", "names"]

# First author, year, subject: other modules of this folder are the common parts.
_NAME = re.compile(r"[a-z]+\d{4}_\w+")


@dataclass(frozen=True)
class Settings:
    """What the user asks for.

    Attributes:
        out: results folder.
        data: name of the data set, see :mod:`analyses.data`.
        scale: how much to run: ``smoke`` (seconds: does it work?), ``laptop`` or ``gpu``.
        seeds: number of paired seeds; None as the scale has it.
        jobs: trials side by side; None as many as there are processors.
    """

    out: Path
    data: str = "digits"
    scale: str = "laptop"
    seeds: int | None = None
    jobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ArgumentError(f"{name} must be an int of at least 1; got {value!r}")

    @property
    def processes(self) -> int:
        """Trials side by side."""
        return self.jobs or available_jobs()


class Analysis(Protocol):
    """One paper's claims, run again.

    ``run`` makes records and decides nothing, ``judge`` decides by the rule that ``CLAIMS`` fixed before, ``draw`` and
    ``tables`` show what there is. All of them read only what ``run`` returned.
    """

    TITLE: str
    CLAIMS: tuple[Claim, ...]
    CHOICES: tuple[Choice, ...]
    SCALES: tuple[str, ...]

    def run(self, settings: Settings) -> Any:
        """Train what is not trained yet, and return the results."""

    def judge(self, results: Any) -> Sequence[Verdict]:
        """A verdict per claim."""

    def draw(self, results: Any) -> "Mapping[str, Figure]":
        """Pictures by file name, the main one first."""

    def tables(self, results: Any) -> "Sequence[Table]":
        """Numbers behind the verdicts and beside them."""


def names() -> list[str]:
    """Names of all analyses."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if _NAME.fullmatch(path.stem))


def find(name: str) -> Analysis:
    """The analysis of this name.

    Raises:
        ArgumentError: there is none; the message lists names that are near.
    """
    if name not in names():
        near = get_close_matches(name, names(), n=3, cutoff=0.3) or names()
        raise ArgumentError(f"no analysis {name!r}; there is {', '.join(near)} (see `python -m analyses list`)")
    return cast(Analysis, importlib.import_module(f"analyses.{name}"))
