"""Checks without a test file."""

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch._dynamo  # noqa: F401 - pytester forgets modules that are first imported inside of it; torch comes once only

from bnprobe.testing import models, properties  # likewise

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
MODULE = """
import torch
from torch import nn

class Sound(nn.BatchNorm1d):
    pass

class Biased(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x) + (0.01 if self.training else 0)

def make_model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))

def make_shared():
    norm = nn.BatchNorm1d(3)
    return nn.Sequential(norm, nn.Linear(3, 3), norm)

def batch():
    return torch.arange(15.0).reshape(5, 3).cos()

sequence = torch.ones(2, 3, 4, 5, 6)
"""
# Installed, pytest loads it by its entry point; a tree of which an older state is installed has none.
INSTALLED = any(one.value == "bnprobe.pytest_plugin" for one in entry_points(group="pytest11"))
LOADED = () if INSTALLED else ("-p", "bnprobe.pytest_plugin")
PLUGIN = (*LOADED, "-p", "no:cacheprovider", "--hypothesis-profile", "bnprobe-fast")


@pytest.fixture
def run(pytester, monkeypatch):
    pytester.makepyfile(mine=MODULE)
    monkeypatch.syspath_prepend(pytester.path)

    def run(*arguments, plugin=PLUGIN):
        return pytester.runpytest_inprocess(*plugin, *arguments)

    return run


def test_a_norm_layer(run):
    result = run("--bnprobe-norm", "mine:Sound", "-k", "sign_flip or samuelson or batches_counted", "-v")
    result.assert_outcomes(passed=3, deselected=len(properties.LAWS) - 3 - _of_others())
    result.stdout.fnmatch_lines(["*mine:Sound::sign_flip PASSED*"])


def _of_others():
    return sum("batch_norm" not in law.likes for law in properties.LAWS.values())


def test_another_kind_has_other_laws(run):
    result = run("--bnprobe-norm", "torch.nn:LayerNorm", "--bnprobe-like", "layer_norm", "--collect-only", "-q")
    of_its_kind = [name for name, law in properties.LAWS.items() if "layer_norm" in law.likes]
    result.stdout.fnmatch_lines([f"torch.nn:LayerNorm::{name}" for name in of_its_kind])
    result.stdout.no_fnmatch_line("*batches_counted*")


def test_a_broken_layer_prints_the_law_and_no_traceback(run):
    result = run("--bnprobe-norm", "mine:Biased", "-k", "standardised_output")
    result.assert_outcomes(failed=1, deselected=len(properties.LAWS) - 1 - _of_others())
    result.stdout.fnmatch_lines(
        [
            "*mine:Biased::standardised_output*",
            "Biased breaks the law standardised_output of batch_norm",
            "law: *",
            "*misfit *, tolerance *",
            "example:",
            "*properties.standardised_output(Subject(Biased, like='batch_norm')*",
            "FAILED mine:Biased::standardised_output*",
        ]
    )
    result.stdout.no_fnmatch_line("*conformance.py*")


def test_expected_failures_are_strict(run):
    known = ("--bnprobe-expected-failure", "standardised_output=adds 0.01")
    run("--bnprobe-norm", "mine:Biased", "-k", "standardised_output", *known).assert_outcomes(
        xfailed=1, deselected=len(properties.LAWS) - 1 - _of_others()
    )
    cured = run("--bnprobe-norm", "mine:Sound", "-k", "standardised_output", *known)
    assert cured.ret == pytest.ExitCode.TESTS_FAILED
    cured.stdout.fnmatch_lines(["*which was expected to fail (adds 0.01): remove it from expected_failures"])


def test_a_model_beside_tests_of_ones_own(run, pytester):
    pytester.makepyfile(test_own="def test_own(): pass")
    only = "own or batch_mates or batch_statistics_once"
    result = run("--bnprobe-model", "mine:make_model", "--bnprobe-model", "mine:make_shared", "-k", only)
    result.assert_outcomes(passed=4, failed=1, deselected=2 * (len(models.MODEL_LAWS) - 2))
    result.stdout.fnmatch_lines(["0 normalized 2 batches in one forward and backward, the law has 1"])
    result = run("--bnprobe-model", "mine:make_model", "--bnprobe-inputs", "mine:batch", "-m", "bnprobe", "-k", "mates")
    result.assert_outcomes(passed=1, deselected=len(models.MODEL_LAWS))


def test_a_law_that_is_not_for_the_model_is_skipped_with_its_reason(run):
    result = run("--bnprobe-model", "mine:make_shared", "-k", "pooled_moments", "-rs")
    result.assert_outcomes(skipped=1, deselected=len(models.MODEL_LAWS) - 1)
    result.stdout.fnmatch_lines(["SKIPPED*0 is called 2 times in a forward*"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--bnprobe-norm", "mine.Sound"), "*--bnprobe-norm: 'mine.Sound' is not of the form pkg.module:name"),
        (("--bnprobe-norm", "yours:Sound"), "*--bnprobe-norm: there is no module 'yours' from here"),
        (("--bnprobe-model", "mine:Nothing"), "*--bnprobe-model: mine has no 'Nothing'"),
        (("--bnprobe-norm", "mine:Sound", "--bnprobe-like", "norm"), "*like must be one of batch_norm, *; got 'norm'"),
        (
            ("--bnprobe-norm", "mine:Sound", "--bnprobe-expected-failure", "scale_low=x"),
            "*--bnprobe-expected-failure: there is no law 'scale_low' among those that are checked",
        ),
        (
            ("--bnprobe-norm", "mine:Sound", "--bnprobe-expected-failure", "scale_law"),
            "*--bnprobe-expected-failure must be LAW=REASON; got 'scale_law'",
        ),
    ],
)
def test_wrong_arguments(run, arguments, text):
    result = run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([text])


def test_an_input_that_does_not_fit_breaks_the_law(run):
    result = run("--bnprobe-model", "mine:make_model", "--bnprobe-inputs", "mine:sequence", "-k", "batch_mates")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*the model raised RuntimeError: *"])


def test_spread_over_processes(pytester):
    pytester.makepyfile(mine=MODULE)
    options = ("-n", "1", "--bnprobe-norm", "mine:Sound", "-k", "sign_flip or samuelson")
    result = _elsewhere(pytester.path, *PLUGIN, *options)
    assert " 2 passed" in result.stdout, result.stdout + result.stderr


def test_a_run_that_asks_for_nothing_imports_nothing(pytester):
    pytester.makepyfile(
        """
        import sys

        def test_light():
            heavy = {"torch", "hypothesis", "numpy", "bnprobe.testing", "bnprobe.errors"}
            assert "bnprobe.pytest_plugin" in sys.modules
            assert not heavy & set(sys.modules)
        """
    )
    result = _elsewhere(pytester.path, *LOADED, "-p", "no:cacheprovider")
    assert "1 passed" in result.stdout, result.stdout + result.stderr


def _elsewhere(path, *arguments):
    """In a fresh process."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pytest; sys.exit(pytest.main({list(arguments)!r}))"
    return subprocess.run([sys.executable, "-c", code], cwd=path, capture_output=True, text=True, check=False)


def test_pytest_finds_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"bnprobe": "bnprobe.pytest_plugin"}
