"""Who may import whom, and what works without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bnprobe"

# Each part of the package and the parts that it may import. Data flows to the right: a part imports from earlier ones.
VOCABULARY = {"errors", "records", "schedule"}
MAY_IMPORT = {
    "errors": set(),
    "records": set(),
    "schedule": {"errors"},
    "hooks": VOCABULARY,
    "evidence": VOCABULARY | {"store"},
    "measures": VOCABULARY | {"contrasts", "hooks", "evidence"},
    "rules": VOCABULARY | {"evidence"},
    # What a diagnosis prints is imported when it is asked for; formats need its types only.
    "diagnosis": VOCABULARY | {"evidence", "rules", "store", "formats", "report"},
    "formats": VOCABULARY | {"rules", "diagnosis"},
    "contrasts": VOCABULARY,
    "recorded_evidence": VOCABULARY | {"contrasts"} | {"evidence", "rules", "store", "diagnosis"},
    "diagnose": VOCABULARY | {"evidence", "diagnosis", "hooks", "measures", "measuring"},
    "statistics": VOCABULARY | {"hooks", "measures"},
    "remedies": VOCABULARY | {"hooks", "measures"},
    "store": VOCABULARY,
    "collected": VOCABULARY | {"statistics", "store"},
    "collect": VOCABULARY | {"hooks", "statistics", "store", "collected"},
    "listen": VOCABULARY | {"hooks", "statistics", "collect"},
    "ranks": VOCABULARY | {"store", "collect", "collected"},
    "measuring": VOCABULARY | {"hooks", "statistics", "collect", "ranks"},
    "tracking": VOCABULARY | {"hooks", "statistics", "collect", "measuring"},
    "arguments": VOCABULARY | {"statistics"},
    "attach": VOCABULARY
    | {"arguments", "hooks", "statistics", "store", "collect", "listen", "ranks", "measuring", "tracking"},
    "testing": VOCABULARY | {"hooks", "measures"},
    "pytest_plugin": VOCABULARY | {"testing"},
    "distances": VOCABULARY,
    "drift": VOCABULARY | {"store", "distances"},
    "plots": VOCABULARY | {"evidence", "store", "distances", "drift"},
    "report": VOCABULARY | {"evidence", "rules", "diagnosis", "formats", "store", "distances", "drift", "plots"},
    "cli": VOCABULARY
    | {"store", "distances", "drift", "plots", "report", "measures", "rules", "formats", "recorded_evidence"}
    | {"diagnose", "diagnosis"},
    "__init__": VOCABULARY | {"attach", "diagnose", "diagnosis", "drift", "report", "store", "measures"},
}
WITHOUT_TORCH = (
    "errors", "records", "schedule", "store", "distances", "drift", "plots", "report", "cli", "pytest_plugin",
    "evidence", "rules", "diagnosis", "contrasts", "formats", "recorded_evidence", "report.of_diagnosis", "rules.page",
)  # fmt: skip


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Parts of bnprobe that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [node.module] if node.module != "bnprobe" else [f"bnprobe.{alias.name}" for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "bnprobe":
                yield rest.split(".")[0] or "__init__"
            assert head not in ("analyses", "benchmarks", "notebooks", "tests"), f"{path} imports {name}"


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_part_is_in_the_table():
    assert {part_of(path) for path in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    part = part_of(path)
    allowed = MAY_IMPORT[part] | {part, "__version__"}
    wrong = {name for name in imports(path) if name not in allowed}
    assert not wrong, f"{part} must not import {wrong}"


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_no_torch_right_of_the_record(part):
    code = f"import sys, bnprobe.{part}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_package_itself_is_light():
    heavy = {"torch", "pandas", "numpy", "matplotlib", "pyarrow"}
    code = f"import sys, bnprobe; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_names_stay_what_they_are_however_they_are_imported():
    code = "import bnprobe.drift, bnprobe.report, bnprobe; assert callable(bnprobe.drift) and callable(bnprobe.report)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_hooks_are_registered_in_three_files_only():
    """One listens, one cuts, one takes outputs out."""
    for path in FILES:
        calls = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
        }
        hooking = {name for name in calls if name.startswith("register_") and "hook" in name}
        assert not hooking or path.name in ("taps.py", "segments.py", "outputs.py"), f"{path} registers {hooking}"


def test_analyses_use_public_names_only():
    public = {
        "", "distances", "plots", "records", "report", "report.page", "schedule", "statistics", "errors", "store",
        "measures.jacobian.laws", "measures.norm_dynamics",
    }  # fmt: skip
    for path in sorted((ROOT / "analyses").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bnprobe":
                inner = (node.module or "").removeprefix("bnprobe").strip(".")
                assert inner in public, f"{path} reaches into bnprobe.{inner}"
                assert not any(alias.name.startswith("_") and alias.name != "__version__" for alias in node.names)


def test_no_file_is_a_drawer():
    """Over 400 lines a file usually hides two things."""
    long = {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    assert not long
