"""Step times on a host depend on what the C library does with freed memory.

glibc gives large blocks back to the system and asks for them again, page by page, at the next step, or it does not, as
the heap happens to lie: the same training step takes half as long again in some processes, with or without a watcher,
and whoever allocates anything beside it moves it from one regime to the other. Long trainings switch that off (an
allocator that keeps memory is what PyTorch's tuning guide advises), and so do the comparisons here, for both sides.
``--malloc default`` compares with the allocator as it comes.
"""

import argparse
import os
import sys

__all__ = ["add_argument", "settings", "use"]

_KEEPS = {
    "MALLOC_MMAP_MAX_": "0",  # large blocks come from the heap as well
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),  # the heap never shrinks
}


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The option of a benchmark that times steps."""
    parser.add_argument(
        "--malloc",
        choices=("keeps", "default"),
        default="keeps",
        help="whether glibc keeps freed memory, for both sides (default), or does as it comes",
    )


def settings() -> dict[str, str]:
    """What glibc's allocator was told by the environment."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")}


def use(choice: str) -> None:
    """Begin this process anew with the settings, unless it has them: the allocator reads them once."""
    if choice == "keeps" and not settings().keys() >= _KEEPS.keys():
        arguments = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, **_KEEPS})  # the same command line
