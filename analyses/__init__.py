"""Claims of the literature about normalization, run again.

One paper's claim a file, named ``<first author><year>_<subject>``: the file states its claims and what would refute
them (``CLAIMS``), trains (``run``), decides (``judge``) and paints (``draw``). ``python -m analyses list`` names them.
"""
