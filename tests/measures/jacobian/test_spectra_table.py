"""The table of all layers: each row is what ``spectrum`` says of that layer, or why there is none."""

import numpy as np
import pytest
import torch
from torch import nn

import bnprobe
from bnprobe.errors import ArgumentError, SelectionError
from tests.cases import CASES, Recurrent
from tests.measures.test_untouched import state, streams


class Odd(nn.Module):
    """Layers that cannot be measured, and one that can."""

    def __init__(self):
        super().__init__()
        self.tokens, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.unused, self.scripted = nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4))
        self.broken = Broken()

    def forward(self, numbers):
        return self.broken(self.scripted(self.norm(self.tokens(numbers))))


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("this step has no derivative\nat all")


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return Step.apply(x * self.weight)


@pytest.mark.parametrize("name", CASES)
def test_rows_are_what_spectrum_says(name):
    make, shape = CASES[name]
    model, x = make(), torch.randn(shape)
    table = bnprobe.spectra(model, x, progress=False).set_index("layer")
    for layer, row in table.iterrows():
        if row["why"]:
            continue
        found = bnprobe.spectrum(model, x, layer, k=(10, 3))
        assert (row["outputs"], row["inputs"], row["coupled"]) == (*found.shape, found.coupled)
        assert row["method"] == found.method
        np.testing.assert_allclose(row["max"], found.values.max(), rtol=1e-6)
        np.testing.assert_allclose(row["min"], found.values.min(), rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(row["error"], found.error.max(), rtol=0.5, atol=1e-12)
    assert (table["why"] == "").sum() >= len(table) - 1


def test_why_a_layer_was_not_measured():
    table = bnprobe.spectra(Odd(), torch.tensor([[1, 2], [3, 4]]), ["*"], progress=False).set_index("layer")
    said = table["why"]
    assert said["tokens"] == "not measured: the input of 'tokens' is int64: not differentiable"
    assert said["unused"] == "not measured: it is not called in this forward"
    assert said["scripted"] == "not measured: a scripted module runs outside of Python"
    assert "this step has no derivative" in said["broken"]
    assert said["norm"] == ""
    assert np.isnan(table.loc["tokens", "max"])


def test_nothing_is_left_on_the_model():
    model, x = Recurrent(), torch.randn(8, 5, 6)
    before, drawn = state(model), streams()
    bnprobe.spectra(model, x, progress=False)
    assert state(model) == before
    assert streams() == drawn


def test_chosen_layers_and_all_values():
    model, x = CASES["mlp"][0](), torch.randn(16, 6)
    table = bnprobe.spectra(model, x, nn.BatchNorm1d, None, per="sample", progress=False)
    assert list(table["layer"]) == ["1", "4"]
    assert not table["coupled"].any()
    assert list(table["samples"]) == [16, 16]
    assert table["share_near_one"].notna().all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layers": "zz*"}, SelectionError, "'zz\\*' matches no layer"),
        ({"k": -1}, ArgumentError, "k must be"),
        ({"model": 3}, ArgumentError, r"model must be a torch.nn.Module; got int"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, error, message):
    with pytest.raises(error, match=message):
        bnprobe.spectra(**{"model": CASES["mlp"][0](), "x": torch.randn(16, 6), "progress": False, **arguments})


def test_the_progress_bar_shows_where_it_is(capsys):
    bnprobe.spectra(CASES["mlp"][0](), torch.randn(16, 6), progress=True)
    assert "7/7" in capsys.readouterr().err


def test_values_that_come_all_at_once_all_count():
    model, x = CASES["mlp"][0](), torch.randn(16, 6)
    few, all_values = (bnprobe.spectra(model, x, k=k, progress=False) for k in ((2, 1), None))
    assert few["share_near_one"].notna().all()
    for name in ("max", "min", "mean_square", "share_near_one"):
        np.testing.assert_allclose(few[name], all_values[name], err_msg=name)
