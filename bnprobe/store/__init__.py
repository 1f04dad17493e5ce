"""Runs on disk: ``Writer`` appends tables of measurements to a directory, ``load`` and ``Run`` read them."""

from bnprobe.store.run import Grid, Run, load
from bnprobe.store.table import Placed, RecordKeys, build_table
from bnprobe.store.writer import Writer

__all__ = ["Grid", "Placed", "RecordKeys", "Run", "Writer", "build_table", "load"]
