"""The report of one run."""

import os
from collections.abc import Sequence
from pathlib import Path

from bnprobe.errors import ArgumentError
from bnprobe.report.overview import lead
from bnprobe.report.page import Page, Section
from bnprobe.report.sections import sections
from bnprobe.store import Run

__all__ = ["report"]


def report(run: Run, path: str | os.PathLike[str], *, title: str | None = None, extra: Sequence[Section] = ()) -> Path:
    """Writes everything that a run has to show to one self-contained HTML file.

    Args:
        run: a run; it may still be being written.
        path: of the file; its folder is made where it is missing, an old file is replaced.
        title: heading of the page; None is the name of the run directory.
        extra: further sections, which come right after the overview.

    Returns:
        The path.

    Raises:
        ArgumentError: ``run`` is no run, or ``path`` is a directory.
    """
    if not isinstance(run, Run):
        raise ArgumentError(f"run must be a Run, as bnprobe.load(directory) gives it; got {type(run).__name__}")
    if Path(path).is_dir():
        raise ArgumentError(f"path must name a file, such as 'report.html'; {str(path)!r} is a directory")
    first, *others = sections(run)
    page = Page(title or f"Run {run.path.resolve().name}", lead(run), [first, *extra, *others])
    return page.write(path)
