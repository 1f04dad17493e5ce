"""The command line: answers fast, says what is wrong, exits with the status that it promises."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from report.believable_run import make_run

import bnprobe
from bnprobe import distances
from bnprobe.cli import main
from bnprobe.drift import drift


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", steps=range(12), blocks=1)


@pytest.fixture
def bnprobe_cli(capsys):
    """Runs a command line: exit status, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_help_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from bnprobe.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'pandas', 'numpy', 'pyarrow', 'scipy', 'matplotlib', 'seaborn', 'jinja2', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "report" in done.stdout
    assert "drift" in done.stdout


def test_commands_do_not_load_torch(run, tmp_path):
    code = (
        "import sys\n"
        "from bnprobe.cli import main\n"
        f"try: main(['report', {str(run.path)!r}, '--out', {str(tmp_path / 'page.html')!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version(bnprobe_cli):
    assert bnprobe_cli("--version") == (0, f"{bnprobe.__version__}\n", "")


def test_report_writes_beside_the_run_unless_told_otherwise(run, tmp_path, bnprobe_cli):
    status, out, _ = bnprobe_cli("report", run.path)
    assert (status, out) == (0, f"{run.path / 'report.html'}\n")
    (run.path / "report.html").unlink()
    target = tmp_path / "new" / "page.html"
    assert bnprobe_cli("report", run.path, "--out", target, "--title", "Mine")[:2] == (0, f"{target}\n")
    assert "<title>Mine</title>" in target.read_text(encoding="utf-8")


def test_drift_as_text_is_a_line_a_layer(run, bnprobe_cli):
    status, out, _ = bnprobe_cli("drift", run.path)
    title, _, header, *lines = out.splitlines()
    assert status == 0
    assert title == "wasserstein distance of the input, reference first"
    assert header.split() == ["layer", "call", "place", "records", "last", "error", "largest", "at", "step"]
    assert [line.split()[0] for line in lines] == ["fc1", "bn1", "act1", "head"]
    expected = drift(run, layer="bn1", place="input").iloc[-1]
    assert lines[1].split()[3:5] == ["12", f"{expected['value']:.3g}"]
    assert lines[1].split()[-1] == "11"
    assert len({len(line) for line in (header, *lines)}) == 1


def test_drift_as_json_is_the_frame(run, bnprobe_cli):
    arguments = ("--distance", "kolmogorov-smirnov", "--reference", "previous", "--layer", "act1", "--place", "output")
    status, out, _ = bnprobe_cli("drift", run.path, *arguments, "--format", "json")
    rows = json.loads(out)
    expected = drift(run, distances.KolmogorovSmirnov(), "previous", layer="act1", place="output")
    assert status == 0
    assert [row["step"] for row in rows] == list(range(12))
    assert rows[0]["value"] is None
    assert rows[0]["reference_step"] is None
    np.testing.assert_allclose([row["value"] for row in rows[1:]], expected["value"].to_numpy()[1:])


def test_infinity_is_told_from_what_was_not_measured(run, bnprobe_cli, monkeypatch):
    monkeypatch.setattr(
        distances.Wasserstein, "__call__", lambda self, p, q: np.where(np.arange(12) == 3, math.inf, 1.0)
    )
    _, out, _ = bnprobe_cli("drift", run.path, "--layer", "act1", "--format", "json")
    assert json.loads(out)[3]["value"] == "Infinity"


@pytest.mark.parametrize("name", ["KolmogorovSmirnov", "kolmogorov_smirnov", "Reverse-Kullback-Leibler", "hellinger"])
def test_distances_are_found_by_any_spelling(run, bnprobe_cli, name):
    assert bnprobe_cli("drift", run.path, "--distance", name, "--layer", "fc1")[0] == 0


def test_every_distance_has_a_name_here(run, bnprobe_cli):
    _, _, err = bnprobe_cli("drift", run.path, "--distance", "nothing")
    exported = {getattr(distances, name) for name in distances.__all__} - {distances.Distance, distances.Summary}
    assert all(kind().name in err for kind in exported)


def test_another_run_is_a_reference(run, tmp_path, bnprobe_cli):
    other = make_run(tmp_path / "other", steps=range(12), blocks=1)
    status, out, _ = bnprobe_cli("drift", run.path, "--reference", other.path, "--standardize")
    assert status == 0
    assert f"reference {other.path}, in standard deviations of the reference" in out
    assert {line.split()[4] for line in out.splitlines()[3:]} == {"0"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "bnprobe: 'nowhere' is not a run directory"),
        (["drift", "{run}", "--layer", "act9"], "no layer 'act9'"),
        (["drift", "{run}", "--reference", "99"], "reference is step 99"),
        (["drift", "{run}", "--reference", "last"], "'last' is neither first, previous, a step"),
        (["drift", "{run}", "--place", "middle"], "place must be one of"),
        (["drift", "{run}", "--distance", "nothing"], "'nothing' is no distance; there are energy"),
        (["drift", "{run}", "--format", "xml"], "--format"),
        (["report", "{run}", "--out", "{run}"], "path must name a file"),
        (["report", "{run}", "--out", "{run}/run.json/page.html"], "bnprobe: "),
        (["nonsense"], "nonsense"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(run, bnprobe_cli, arguments, message):
    status, out, err = bnprobe_cli(*(argument.replace("{run}", str(run.path)) for argument in arguments))
    assert status == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def make_model():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU())\n"
        "def make_batch():\n"
        "    return torch.randn(5, 4)\n"
        "def make_tokens():\n"
        "    return torch.arange(4)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "mine"
    sys.modules.pop("mine", None)


def test_spectra_as_text_is_a_line_a_layer(own_module, bnprobe_cli):
    status, out, err = bnprobe_cli("spectra", "mine:make_model", "--input", "mine:make_batch")
    header, *lines = out.splitlines()
    assert status == 0, err
    assert header.split()[:5] == ["layer", "kind", "method", "jacobian", "max"]
    assert [line.split()[:2] for line in lines] == [["0", "Linear"], ["1", "BatchNorm1d"], ["2", "ReLU"]]
    assert "closed form, coupled" in lines[1]
    assert "1 of 15 x 15" in lines[1]


def test_spectra_as_json(own_module, bnprobe_cli):
    arguments = ("--layers", "1", "--layers", "2", "-k", "2", "--per", "sample", "--memory", "0.5", "--format", "json")
    status, out, _ = bnprobe_cli("spectra", "mine:make_model", "--input", "mine:make_batch", *arguments)
    rows = json.loads(out)
    assert status == 0
    assert [row["layer"] for row in rows] == ["1", "2"]
    assert [row["samples"] for row in rows] == [5, 5]
    assert not rows[0]["coupled"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine:make_model", "--input", "mine:nothing"], "mine has no 'nothing'"),
        (["yours:make_model", "--input", "mine:make_batch"], "there is no module 'yours' from here"),
        (["mine", "--input", "mine:make_batch"], "'mine' is not of the form pkg.module:function"),
        (["mine:make_model", "--input", "mine:make_batch", "-k", "few"], "'few' is neither all, a number nor two"),
        (["mine:make_model", "--input", "mine:make_batch", "-k", "0"], "k must be"),
        (["mine:make_model", "--input", "mine:make_batch", "--layers", "9"], "matches no layer"),
    ],
)
def test_spectra_that_cannot_be_had_are_explained(own_module, bnprobe_cli, arguments, message):
    status, out, err = bnprobe_cli("spectra", *arguments)
    assert (status, out) == (2, "")
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err
