"""The README's commands and examples are the ones that work."""

import re
import subprocess
from pathlib import Path

import bnprobe
from tests.cases import batches, mlp
from tests.cases import train as train_on

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(marker):
    (found,) = re.findall(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.S)
    return found.strip()


def test_ci_runs_the_test_command_as_it_stands_here():
    script = (ROOT / ".ci" / "run").read_text()
    (extract,) = re.findall(r"^command=\$\((awk .*? README\.md)\)$", script, re.M)
    found = subprocess.run(["bash", "-c", extract], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert found == block("ci: test")
    assert found.startswith('python -m pip install -c constraints.txt -e ".[dev]" && python -m pytest ')


def test_the_example_runs(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = batches((16, 6), 25)
    names = {"model": model, "optimizer": optimizer, "train": lambda model, optimizer: train_on(model, optimizer, data)}
    exec(block("test: example"), names)
    assert bnprobe.load("runs/a").steps.tolist() == [0, 10, 20]
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_the_jacobians_are_measured():
    import torch

    exec(block("test: jacobians"), {"bnprobe": bnprobe, "model": mlp(), "x": torch.randn(16, 6)})


def test_scale_invariance_and_the_others_run():
    import torch

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = batches((16, 6), 1)[0]
    names = {"model": model, "loss": None, "batch": batch, "optimizer": optimizer}
    exec(block("test: scale"), {"bnprobe": bnprobe, **names})


def test_the_diagnosis_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(block("test: diagnosis"), {"bnprobe": bnprobe, "model": mlp(), "loader": batches((16, 6), 16)})
    assert "N0" in capsys.readouterr().out
    assert (tmp_path / "diagnosis.html").exists()
    assert (tmp_path / "diagnosis.sarif").exists()


def test_pictures_and_files_that_it_names_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README) + re.findall(r"`([\w/]+\.(?:md|txt|ipynb|py))`", README):
        assert (ROOT / path).exists(), path


def test_the_version_is_told_once():
    assert f"version: {bnprobe.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {bnprobe.__version__}" in (ROOT / "CHANGELOG.md").read_text()
