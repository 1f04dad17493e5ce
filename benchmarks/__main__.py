"""``python -m benchmarks NAME``: measure, print, and write the result beside a description of the machine."""

import argparse
import importlib
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import bnprobe
from benchmarks import allocator

# By name: each is a module with `add_arguments(parser)` and `run(...)`, which takes what the options are called.
_BENCHMARKS = (
    "conformance", "doctor", "gpu", "gradient_growth", "growth", "overhead", "reading", "scale_invariance", "spectra",
    "zoo",
)  # fmt: skip


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in _BENCHMARKS}
    for name, module in modules.items():
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        command.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the result")
        command.add_argument("--add", action="store_true", help="keep the figures that are there and were not measured")
        module.add_arguments(command)
    options = vars(parser.parse_args())
    name, out, add = (options.pop(one) for one in ("benchmark", "out", "add"))
    allocator.use(options.pop("malloc", "default"))
    result = {"benchmark": name, "environment": environment(), "result": modules[name].run(**options)}
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    if add:
        result["result"]["runs"] = {" ".join(_told(sys.argv[2:])): result["environment"]}
        if path.exists():
            result["result"] = merged(json.loads(path.read_text())["result"], result["result"])
    path.write_text(json.dumps(result, indent=1) + "\n")
    json.dump(result["result"], sys.stdout, indent=1)
    print(f"\n{path}")


def merged(old: Any, new: Any) -> Any:
    """Figures of several runs as one: of what both have, the new ones."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: merged(old[key], value) if key in old else value for key, value in new.items()}}


def _told(arguments: list[str]) -> list[str]:
    """What a run was asked for, without where its result goes."""
    kept = [one for one in arguments if one != "--add" and not one.startswith("--out=")]
    return [one for i, one in enumerate(kept) if one != "--out" and kept[i - 1 : i] != ["--out"]]


def environment() -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    names = ("torch", "numpy", "scipy", "pandas", "pyarrow")
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "malloc": allocator.settings() or "default",
        "python": platform.python_version(),
        "bnprobe": bnprobe.__version__,
        **{name: version(name) for name in names},
    }


if __name__ == "__main__":
    main()
