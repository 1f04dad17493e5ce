import os
import subprocess
import sys
from pathlib import Path

from benchmarks import allocator

ROOT = Path(__file__).parents[2]


def test_a_benchmark_begins_anew_with_the_settings(monkeypatch):
    seen = {}
    monkeypatch.setattr(os, "execve", lambda program, arguments, environment: seen.update(environment))
    allocator.use("default")
    assert not seen
    allocator.use("keeps")
    assert seen["MALLOC_MMAP_MAX_"] == "0"
    for name in allocator._KEEPS:
        monkeypatch.setenv(name, seen.pop(name))
    seen.clear()
    allocator.use("keeps")
    assert not seen


def test_the_command_line_survives():
    code = "import sys; from benchmarks import allocator; allocator.use('keeps'); print(sorted(allocator.settings()))"
    script = f"import sys; sys.argv = ['benchmarks', '--help']; {code}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "gradient_growth,growth,overhead" in done.stdout
