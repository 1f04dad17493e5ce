"""The doctor's commands: what they write, how they end, and what they say where they cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from report.believable_run import make_run

import bnprobe
from bnprobe.cli import main
from bnprobe.rules import rules

MODELS = """\
import torch
from torch import nn

def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    for _ in range(30):
        model(torch.randn(16, 4))
    return model.eval()

def sick_model():
    model = make_model()
    model[1].running_var[0] = float("nan")
    return model

def broken_model():
    raise KeyError("nothing here")

def make_loader():
    torch.manual_seed(1)
    return [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(4)]

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

a_number = 3
"""
SELECT = ("--select", "N11")


@pytest.fixture
def own_models(tmp_path, monkeypatch):
    (tmp_path / "ours.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("ours", None)


@pytest.fixture
def command(capsys):
    """Runs a command line: exit status, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def ours():
    """The environment in which another process imports the same package."""
    return os.environ | {"PYTHONPATH": str(Path(bnprobe.__file__).parents[1])}


def diagnose(command, model, *arguments):
    return command("diagnose", f"ours:{model}", "--loader", "ours:make_loader", *arguments)


def test_a_sound_model_ends_with_0_and_a_sick_one_with_1(own_models, command):
    status, out, err = diagnose(command, "make_model", *SELECT)
    assert (status, err) == (0, "")
    assert out.startswith("Diagnosis of Sequential: no finding\n")
    status, out, err = diagnose(command, "sick_model", "--select", "n11, N02", "--ignore", "N02")
    assert (status, err) == (1, "")
    assert "ERROR N11 non-finite-statistics: 1\n" in out
    assert "N02" not in out


@pytest.mark.parametrize(("fail_on", "status"), [("never", 0), ("warning", 1), ("error", 1)])
def test_the_severity_that_fails_is_chosen(own_models, command, fail_on, status):
    assert diagnose(command, "sick_model", *SELECT, "--fail-on", fail_on)[0] == status


def test_formats_to_standard_output_and_to_files(own_models, command):
    _, out, _ = diagnose(command, "sick_model", *SELECT, "--format", "json")
    assert [one["code"] for one in json.loads(out)["findings"]] == ["N11"]
    _, out, _ = diagnose(command, "sick_model", *SELECT, "--format", "sarif", "--out", "new/d.sarif")
    assert out.startswith("Diagnosis of Sequential: 1 error")
    (result,) = json.loads((own_models / "new" / "d.sarif").read_text())["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "ours.py"
    assert MODELS.splitlines()[place["region"]["startLine"] - 1] == "def sick_model():"
    diagnose(command, "sick_model", *SELECT, "--format", "html", "--out", "d.html")
    assert (own_models / "d.html").read_text().startswith("<!DOCTYPE html>")
    _, out, _ = diagnose(command, "sick_model", *SELECT, "--out", "d.txt")
    assert (own_models / "d.txt").read_text() == out


def test_a_baseline_accepts_and_tells_what_is_gone(own_models, command):
    status, out, _ = diagnose(command, "sick_model", *SELECT, "--write-baseline", "base.json")
    assert status == 0
    assert json.loads((own_models / "base.json").read_text()) == ["N11 1"]
    status, out, err = diagnose(command, "sick_model", *SELECT, "--baseline", "base.json", "--fail-on", "warning")
    assert (status, err) == (0, "")
    assert "Accepted by the baseline: 1\n  error N11 non-finite-statistics: 1\n" in out
    status, _, err = diagnose(command, "make_model", *SELECT, "--baseline", "base.json")
    assert status == 0
    assert "base.json accepts 'N11 1', which is not found any more" in err


def test_kept_evidence_is_judged_again_without_torch(own_models, command):
    status, first, _ = diagnose(command, "sick_model", *SELECT, "--loss", "ours:loss", "--batches", 2, "--keep", "kept")
    assert status == 1
    assert "2 batches with 32 samples" in first
    code = (
        "import sys\nfrom bnprobe.cli import main\n"
        "try: main(['diagnose', '--run', 'kept', '--select', 'N11'])\n"
        "except SystemExit as end: assert end.code == 1, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=own_models, env=ours()
    )
    assert done.returncode == 0, done.stderr

    def entry(text):
        return text[
            text.index("ERROR N11") : text.index("Nothing was changed" if text is first else "No model was run")
        ]

    assert entry(done.stdout) == entry(first)


def test_a_probes_run_is_judged_as_far_as_it_goes(tmp_path, command):
    run = make_run(tmp_path / "run", steps=range(12), blocks=1)
    status, out, _ = command("diagnose", "--run", run.path)
    assert status == 0
    assert "Diagnosis of run run: no finding" in out
    assert "needs the model and batches: a probe's records do not tell it" in out
    assert "N02 stored-statistics-do-not-fit" in out
    assert "no measurement was taken that could have cleared normalization" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give MODEL and --loader, or --run"),
        (["ours:make_model"], "give MODEL and --loader, or --run"),
        (["--run", "nowhere"], "is not a run directory"),
        (["ours:make_model", "--run", "nowhere"], "give no model beside it"),
        (["ours:nothing", "--loader", "ours:make_loader"], "ours has no 'nothing'"),
        (["ours:a_number", "--loader", "ours:make_loader"], "ours:a_number is no function but of type int"),
        (["ours:make_model", "--loader", "ours:make_loader", "--select", "N77"], "there is no rule 'N77'"),
        (["ours:make_model", "--loader", "ours:make_loader", "--intent", "fly"], "intent must be one of"),
        (["ours:make_model", "--loader", "ours:make_loader", "--baseline", "no.json"], "cannot be read"),
        (["ours:make_model", "--loader", "ours:make_loader", "--format", "xml"], "--format"),
        (["ours:make_loader", "--loader", "ours:make_loader"], "model must be a torch.nn.Module"),
        (["ours:make_model", "--loader", "ours:make_loader", *SELECT, "--out", "."], "is a directory"),
    ],
)
def test_what_cannot_be_done_ends_with_2_and_a_sentence(own_models, command, arguments, message):
    status, _, err = command("diagnose", *arguments)
    assert status == 2
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err


def test_an_error_of_the_users_own_code_is_no_finding(own_models, command):
    status, _, err = diagnose(command, "broken_model")
    assert status == 2
    assert "KeyError: 'nothing here'" in err


def test_rules_are_listed(command):
    status, out, _ = command("rules")
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()] == [[one.code, one.name] for one in rules().values()]
    assert [one["title"] for one in json.loads(command("rules", "--format", "json")[1])] == [
        one.title for one in rules().values()
    ]


@pytest.mark.parametrize("name", ["N11", "n11", "non-finite-statistics"])
def test_a_rule_is_explained(command, name):
    status, out, _ = command("explain", name)
    assert status == 0
    assert out.startswith("N11 non-finite-statistics\n")
    assert "What to do\n    for m in model.modules():" in out


def test_an_unknown_rule_lists_those_there_are(command):
    status, _, err = command("explain", "N99")
    assert status == 2
    assert "there is no rule 'N99'; there are" in err
    assert "N11" in err
