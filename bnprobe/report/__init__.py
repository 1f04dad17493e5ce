"""One run as one HTML file, and the blocks to build other such pages from.

``report`` writes the standard page of a run. ``Page`` takes any ``Section`` of paragraphs, ``Figure``, ``Table``,
``Facts``, ``Code`` and ``Note``; ``sections`` gives a run's own, to put them beside others.
"""

from bnprobe.report.of_run import report
from bnprobe.report.page import Code, Facts, Figure, Mark, Note, Page, Section, Table
from bnprobe.report.sections import sections

__all__ = ["Code", "Facts", "Figure", "Mark", "Note", "Page", "Section", "Table", "report", "sections"]
