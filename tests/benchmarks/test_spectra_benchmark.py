"""The benchmark of Jacobian spectra compares what it says it compares; its ways and references agree."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import __main__ as command
from benchmarks import spectra, spectra_reference, spectra_ways
from benchmarks.spectra_bounds import bounds
from benchmarks.spectra_cases import ACCURACY, DUELS, Case, Duel, at


def bent():
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 3, padding=1))


TINY = Duel(
    "tiny",
    at(bent, 3, 2, 5, 5),
    {"k": 4},
    rivals={"each": lambda model, x: spectra_ways.arpack_each(model, x, 4)},
    least={"each": 1e-9},
    best_of=("each",),
    limit=1e9,
    memory={"each": 0.6},
)
WAYS = ("functional", "functional_vectorized", "jacrev_once", "jacrev_loop", "jacrev_vmapped", "linearized")


@pytest.mark.parametrize("name", WAYS)
def test_every_way_finds_the_references_values(name):
    torch.manual_seed(0)
    model, x = bent().double(), torch.randn(1, 2, 5, 5, dtype=torch.float64)
    found = getattr(spectra_ways, name)(model.float(), x.float())
    torch.testing.assert_close(
        found.double(), spectra_reference.dense(model.double(), x, {}), atol=1e-5, rtol=0, check_dtype=False
    )


def test_partial_ways_find_the_largest_values():
    torch.manual_seed(0)
    model, x = bent(), torch.randn(2, 2, 5, 5)
    found = spectra_ways.arpack_each(model, x, 3)
    wanted = spectra_reference.blocks(model.double(), x.double(), {"k": 3})
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=0)


def test_the_sparse_reference_is_the_dense_one():
    torch.manual_seed(0)
    model, x = nn.Conv2d(2, 3, 3, padding=1).double(), torch.randn(1, 2, 6, 6, dtype=torch.float64)
    options = {"k": (4, 2)}
    wanted = spectra_reference.dense(model, x, options)
    torch.testing.assert_close(spectra_reference.sparse_ends(model, x, options), wanted, atol=1e-12, rtol=0)


def test_channels_are_those_of_the_whole_batch():
    torch.manual_seed(0)
    model, x = nn.BatchNorm2d(3).double(), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    nn.init.normal_(model.weight)
    wanted = spectra_reference.dense(model, x, {})
    torch.testing.assert_close(spectra_reference.channels(model, x, {}), wanted, atol=1e-13, rtol=0)


def test_a_duel_has_times_errors_and_targets():
    result = spectra.duel(TINY, seconds=0.0)
    assert result["ours"]["rounds"] == result["each"]["rounds"] == 3
    assert result["ours"]["relative_error"] < 1e-6
    assert result["each"]["interval"][0] <= result["each"]["ours_faster"] <= result["each"]["interval"][1]
    assert [one["within"] for one in result["targets"]][0::2] == [True, True]
    json.dumps(result)


def test_a_target_that_is_missed_is_said_so():
    case = Duel("missed", TINY.make, rivals={"a": spectra_ways.jacrev_loop}, least={"a": 2}, limit=1.0)
    result = {"ours": {"median_ms": 2.0}, "a": {"median_ms": 3.0, "ours_faster": 1.5}}
    assert [one["within"] for one in spectra._targets(case, result)] == [False, False]


def test_accuracy_is_that_of_every_value(monkeypatch):
    case = Case("tiny", at(bent, 3, 2, 5, 5))
    result = spectra.accuracy(case)
    assert (result["method"], result["values"], result["within"]) == ("dense", 150, True)
    right = spectra._truth(case)
    monkeypatch.setattr(spectra, "_truth", lambda _: right * (1 + np.eye(3, 50) * 1e-3))
    assert not spectra.accuracy(case)["within"]


def test_bounds_hold_on_a_few_draws():
    result = bounds(25)
    assert result["within"], result
    assert result["measured"] <= 25


def test_spectra_run_by_name(monkeypatch):
    monkeypatch.setattr(spectra, "DUELS", (TINY,))
    monkeypatch.setattr(spectra, "ACCURACY", ())
    threads = torch.get_num_threads()
    result = spectra.run("accuracy,speed", "tiny", seconds=0.0, threads=threads)
    assert (list(result["speed"]), result["accuracy"]) == (["tiny"], {})
    with pytest.raises(SystemExit, match="unknown: vgg; there are tiny"):
        spectra.run("speed", "vgg", threads=threads)


def test_the_table_of_a_small_resnet():
    result = spectra.table(blocks=1, size=4, batch=4)
    assert (result["layers"], result["not_measured"], result["within"]) == (23, 0, True)


def test_names_are_unique():
    for cases in (ACCURACY, DUELS):
        assert len({one.name for one in cases}) == len(cases)


def test_runs_add_up(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(spectra, "DUELS", (TINY,))
    monkeypatch.setattr(spectra, "ACCURACY", (TINY,))
    seen, threads = [], torch.get_num_threads()
    for part in ("speed", "accuracy", "accuracy"):
        line = f"benchmarks spectra --add --threads {threads} --seconds 0 --parts {part} --out {tmp_path}"
        monkeypatch.setattr("sys.argv", line.split())
        command.main()
        seen.append(json.loads((tmp_path / "spectra.json").read_text()))
    assert set(seen[0]["result"]) == {"threads", "speed", "runs"}
    assert set(seen[2]["result"]) == {"threads", "speed", "accuracy", "runs"}
    assert seen[2]["result"]["speed"] == seen[0]["result"]["speed"]
    assert set(seen[2]["result"]["runs"]) == {
        f"--threads {threads} --seconds 0 --parts {one}" for one in ("speed", "accuracy")
    }
    monkeypatch.setattr("sys.argv", [one for one in line.split() if one != "--add"])
    command.main()
    assert set(json.loads((tmp_path / "spectra.json").read_text())["result"]) == {"threads", "accuracy"}
