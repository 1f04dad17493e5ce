"""``python -m analyses``: what it prints, and how it fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analyses.__main__ import app
from analyses.analysis import Settings, find, names
from bnprobe.errors import ArgumentError

runner = CliRunner()


def test_list_names_analyses_and_claims() -> None:
    out = runner.invoke(app, ["list"])
    assert out.exit_code == 0
    for text in ("ioffe2015_mnist", "C1a", "C1b", "scales: smoke, laptop, gpu"):
        assert text in out.output


def test_every_analysis_keeps_the_protocol() -> None:
    codes = [claim.code for name in names() for claim in find(name).CLAIMS]
    assert len(set(codes)) == len(codes), "claim codes are unique"
    for name in names():
        for part in ("run", "judge", "draw", "tables"):
            assert callable(getattr(find(name), part)), f"{name}.{part}"
        assert {"smoke", "laptop"} <= set(find(name).SCALES)


def test_the_common_parts_are_no_analyses() -> None:
    assert "ioffe2015_mnist" in names()
    assert not {"inference", "trials", "data", "claim", "_ioffe2015_trial"} & set(names())


def test_an_unknown_analysis_lists_near_names() -> None:
    out = runner.invoke(app, ["run", "iofe2015"])
    assert out.exit_code == 2
    assert "error: no analysis 'iofe2015'; there is ioffe2015_mnist" in out.output


def test_an_unknown_scale_and_data_set_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNPROBE_DATA", str(tmp_path))
    out = runner.invoke(app, ["run", "ioffe2015_mnist", "--scale", "huge", "--out", str(tmp_path / "r")])
    assert (out.exit_code, "scale must be one of smoke, laptop, gpu; got 'huge'" in out.output) == (2, True)
    out = runner.invoke(app, ["run", "ioffe2015_mnist", "--data", "nope", "--out", str(tmp_path / "r")])
    assert (out.exit_code, "put nope.npz into" in out.output) == (2, True)


@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
def test_numbers_must_be_positive(option: str) -> None:
    assert runner.invoke(app, ["run", "ioffe2015_mnist", option, "0"]).exit_code == 2


def test_settings_must_be_positive() -> None:
    with pytest.raises(ArgumentError, match="seeds must be an int of at least 1; got 0"):
        Settings(Path("x"), seeds=0)


def test_listing_needs_no_torch() -> None:
    script = "import sys; from analyses.analysis import find; find('ioffe2015_mnist'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=_environment(), check=False).returncode == 0


def test_control_c_says_that_finished_trials_are_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "analyses", "run", "ioffe2015_mnist", "--jobs", "1", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, env=_environment(), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.time() + 60
    while not list(tmp_path.glob("trials/.unfinished-*/run/run.json")) and time.time() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finished trials are kept" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("trials/.unfinished-*"))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
