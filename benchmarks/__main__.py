"""``python -m benchmarks NAME``: measure, print, and write the result beside a description of the machine."""

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bnprobe
from benchmarks import overhead, reading

_BENCHMARKS = {"overhead": overhead.run, "reading": reading.run}


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=sorted(_BENCHMARKS))
    parser.add_argument("--seconds", type=float, default=30.0, help="measuring time a subject")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    result = {
        "benchmark": arguments.name,
        "environment": environment(),
        "result": _BENCHMARKS[arguments.name](arguments.seconds),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    json.dump(result["result"], sys.stdout, indent=1)
    print(f"\n{path}")


def environment() -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    names = ("torch", "numpy", "pandas", "pyarrow")
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "bnprobe": bnprobe.__version__,
        **{name: version(name) for name in names},
    }


if __name__ == "__main__":
    main()
