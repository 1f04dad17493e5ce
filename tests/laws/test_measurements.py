"""Laws of every measurement that runs passes of its own: it leaves no trace, and it is repeatable."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import bnprobe
from bnprobe import statistics as s
from bnprobe.hooks.sites import find_sites
from bnprobe.statistics import Measurement, Occasion
from tests.cases import CASES, batches
from tests.laws.test_no_observer_effect import assert_bitwise, run


def mean_square(model, x):
    return model(x).square().mean()


# One of each exported kind, given a case's batch.
MEMBERS = {
    "Spectra": lambda x: s.Spectra(x, every=3, k=(2, 1)),
    "GradientShift": lambda x: s.GradientShift(mean_square, x, every=3),
    "Landscape": lambda x: s.Landscape(mean_square, x, (0.1, 0.3), every=3),
}
OWN_PLACES = {"jacobian", "grad_weight", "loss"}


def test_every_exported_measurement_is_under_the_laws():
    kinds = [getattr(s, name) for name in s.__all__]
    found = {kind.__name__ for kind in kinds if issubclass(kind, Measurement) and kind is not Measurement}
    assert found == set(MEMBERS)


@pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS)
@pytest.mark.parametrize("name", CASES)
def test_the_run_is_bitwise_the_same(name, make):
    model, shape = CASES[name]
    arguments = (model, batches(shape, 7), lambda p: torch.optim.Adam(p, 0.01), 7)
    batch = batches((4, *shape[1:]), 1, seed=5)[0][0]
    assert_bitwise(run(*arguments), run(*arguments, statistics=(make(batch), s.Moments()), every=2))


class Fragile(nn.Module):
    """Raises in the middle of every forward but the training's own, after it has changed what it can."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(1))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.seen += 1
        x = self.norm(x) + 0.1 * torch.rand_like(x)
        if len(x) == 4:
            raise ValueError("not this batch")
        return self.last(x)


def fragile():
    torch.manual_seed(0)
    return Fragile()


@pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS)
def test_the_run_is_the_same_where_measuring_fails_half_way(make):
    data = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(5)]
    arguments = (fragile, data, lambda p: torch.optim.SGD(p, 0.1, 0.9), 5)
    with pytest.warns(RuntimeWarning, match=r"could not measure \w+ at step 0: ValueError: not this batch"):
        probed = run(*arguments, statistics=(make(torch.randn(4, 6)),), every=1)
    assert_bitwise(run(*arguments), probed)


@pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS)
def test_other_statistics_do_not_see_its_passes(make):
    def records(*more):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with bnprobe.attach(model, s.Moments(), s.Gradients(), s.RunningGap(), *more, optimizer=optimizer) as probe:
            for _ in range(6):
                optimizer.zero_grad()
                model(torch.randn(16, 6)).square().mean().backward()
                optimizer.step()
        frame, layers = probe.run.frame(), probe.run.layers
        others = frame[~frame["place"].isin(OWN_PLACES)].reset_index(drop=True)
        return others, layers[layers["name"] != ""].reset_index(drop=True).drop(columns="why")

    plain, measured = records(), records(make(torch.randn(4, 6, generator=torch.Generator().manual_seed(0))))
    assert plain[0].astype(str).equals(measured[0].astype(str))
    assert plain[1].equals(measured[1])


@pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS)
def test_measuring_twice_gives_the_same_and_changes_nothing_of_its_own(make):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Dropout(0.5), nn.Linear(9, 3))
    member = make(torch.randn(4, 6))
    before = copy.deepcopy(vars(member))
    sites, optimizer = member.sites(model, find_sites(model, None)), torch.optim.SGD(model.parameters(), 0.1)
    occasion = Occasion(0, model, sites, [optimizer])
    first, second = member.measure(occasion), member.measure(occasion)
    assert first.layers == second.layers
    assert len(first.layers) == len(first.counts) > 0
    for name, values in first.values.items():
        np.testing.assert_array_equal(values.value, second.values[name].value)
        assert len(values.value) == len(first.layers)
    for name, value in vars(member).items():
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name]


def test_a_measurement_is_an_interface():
    with pytest.raises(TypeError, match="abstract"), warnings.catch_warnings():
        Measurement()
