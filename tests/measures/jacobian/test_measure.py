"""``bnprobe.spectrum``: right within its bound, by every way, of every piece; and the model is left alone."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bnprobe
from bnprobe.errors import ArgumentError, NotMeasuredError, SelectionError
from tests.cases import CASES, Residual, mlp
from tests.measures.jacobian.oracle import in_double, rounding_of, singular_values
from tests.measures.test_untouched import state, streams

LAYERS = {
    "conv": lambda c: nn.Conv2d(c, c, 3, padding=1),
    "strided": lambda c: nn.Conv2d(c, 2 * c, 2, stride=2),
    "batch": nn.BatchNorm2d,
    "group": lambda c: nn.GroupNorm(1, c),
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "layer": lambda c: nn.LayerNorm((4, 4)),
    "relu": lambda c: nn.Sequential(nn.Conv2d(c, c, 1), nn.ReLU(inplace=True)),
    "gelu": lambda c: nn.GELU(),
    "pool": lambda c: nn.AvgPool2d(2),
    "max": lambda c: nn.MaxPool2d(2),
    "linear": lambda c: nn.Linear(4, 3),
}


@st.composite
def cases(draw):
    """A random network on ``[N, C, 4, 4]`` in train or eval mode, with its input and what is asked for."""
    seed = draw(st.integers(0, 2**31))
    channels, samples = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    plan = draw(st.lists(st.sampled_from(["conv", "batch", "group", "instance", "layer", "relu", "gelu"]), max_size=4))
    plan.append(draw(st.sampled_from(sorted(LAYERS))))
    torch.manual_seed(seed)
    model = nn.Sequential(*(LAYERS[name](channels) for name in plan)).train(draw(st.booleans()))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    return model, torch.randn(samples, channels, 4, 4), draw(st.sampled_from([None, "batch"]))


@given(cases())
@settings(max_examples=40)
def test_every_value_is_within_its_bound(case):
    model, x, per = case
    found = bnprobe.spectrum(model, x, per=per)
    expected = singular_values(in_double(model), x, per_sample=not found.coupled)
    if per == "batch" and not found.coupled:
        expected = -np.sort(-expected.reshape(1, -1))
    assert found.values.shape == expected.shape
    assert (np.abs(found.values - expected) <= found.error + rounding_of(expected)).all()


def test_bounds_are_not_far_from_the_errors():
    """In the median; closed forms, whose own error is that of the twin, are left out."""
    ratios = []
    for seed in range(25):
        torch.manual_seed(seed)
        model, x = CASES["mlp" if seed % 2 else "residual"][0](), torch.randn(4, *([6] if seed % 2 else [3, 5, 5]))
        found = bnprobe.spectrum(model, x)
        off = np.abs(found.values - singular_values(in_double(model), x, per_sample=False))
        assert found.method == "dense"
        ratios += list((found.error / np.maximum(off, 1e-300)).ravel())
    assert 1 < np.median(ratios) < 100


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_end_to_end(name, mode):
    make, shape = CASES[name]
    model, x = make().train(mode == "train" and name != "lstm"), torch.randn(shape)
    found = bnprobe.spectrum(model, x)
    assert found.coupled is (mode == "train" and name != "lstm")
    expected = singular_values(in_double(model), x, per_sample=not found.coupled)
    assert (np.abs(found.values - expected) <= found.error + rounding_of(expected)).all()


def test_a_layer_at_the_input_that_x_causes():
    model, x = mlp(), torch.randn(16, 6)
    given_ = model[:4](x).detach()
    found = bnprobe.spectrum(model, x, "4", method="dense")
    expected = singular_values(in_double(model[4]), given_, per_sample=False)
    assert (np.abs(found.values - expected) <= found.error + rounding_of(expected)).all()
    assert found.layer == "4"
    assert found.coupled


def test_a_segment_through_a_residual_branch():
    model, x = Residual(), torch.randn(4, 3, 5, 5)
    h = F.relu(model.bn1(model.conv1(x))).detach()
    twin = in_double(model)

    def by_hand(shared_input):
        # The first call's input; the second call and the sum read the layer's output and the constant.
        y = twin.bn2(twin.shared(F.relu(twin.shared(shared_input)))) + h.double()
        return twin.head(torch.cat([h.double(), y], 1).mean((2, 3)))

    found = bnprobe.spectrum(model, x, ("shared", "head"))
    expected = singular_values(by_hand, h, per_sample=False)
    np.testing.assert_allclose(found.values, expected, atol=1e-5 * expected.max())
    assert found.layer == ("shared", "head")


@pytest.mark.parametrize("k", [2, (2, 1), (0, 2), 500, (400, 300), None])
@pytest.mark.parametrize("method", [None, "dense", "Lanczos"])
def test_as_many_values_as_asked_for(k, method):
    if (k, method) == (None, "Lanczos"):
        pytest.skip("refused, below")
    model, x = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 35)), torch.randn(3, 40)
    found, whole = bnprobe.spectrum(model, x, k=k, method=method), bnprobe.spectrum(model, x, method="dense")
    largest, smallest = {2: (2, 0), (2, 1): (2, 1), (0, 2): (0, 2)}.get(k, (35, 0))
    assert found.which == (largest, smallest)
    expected = np.concatenate([whole.values[:, :largest], whole.values[:, 35 - smallest :]], 1)
    assert (np.abs(found.values - expected) <= found.error + whole.error.max()).all()


def test_the_batchs_jacobian_of_independent_samples_is_their_union():
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh()), torch.randn(3, 5)
    each, together = bnprobe.spectrum(model, x), bnprobe.spectrum(model, x, per="batch")
    assert together.shape == (12, 15)
    assert not together.coupled
    np.testing.assert_array_equal(together.values[0], -np.sort(-each.values.ravel()))
    np.testing.assert_array_equal(
        bnprobe.spectrum(model, x, k=(2, 1), per="batch").values[0], together.values[0, [0, 1, -1]]
    )


def test_frozen_batch_statistics_are_constants():
    model, x = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(6, 5)
    twin = in_double(model)
    with torch.no_grad():
        variance, mean = torch.var_mean(twin[0](x.double()), 0, correction=0)
    twin[1].running_mean, twin[1].running_var = mean, variance
    expected = singular_values(twin.eval(), x, per_sample=True)
    found = bnprobe.spectrum(model, x, per="sample")
    assert found.frozen
    assert not found.coupled
    assert (np.abs(found.values - expected) <= found.error + rounding_of(expected)).all()
    assert bnprobe.spectrum(model, x).shape == (18, 30)


def test_statistics_that_a_layer_computes_itself_cannot_be_frozen():
    class OwnNorm(nn.Module):
        def forward(self, x):
            return (x - x.mean(0)) / x.std(0)

    with pytest.raises(NotMeasuredError, match="samples interact by more than batch norm's statistics"):
        bnprobe.spectrum(OwnNorm(), torch.randn(6, 3), per="sample")
    with pytest.raises(NotMeasuredError, match="first axis counts samples"):
        bnprobe.spectrum(nn.Sequential(nn.Linear(3, 3), nn.Flatten(0)), torch.randn(6, 3), per="sample")


def test_dropout_is_the_mask_of_the_forward():
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 5)), torch.randn(4, 6)
    torch.manual_seed(8)
    mask = [None]
    model[1].register_forward_hook(lambda _, args, out: mask.__setitem__(0, (out / args[0]).detach()))
    model(x)
    for layer in (None, "1"):
        torch.manual_seed(8)
        drawn = mask[0].double()
        found = bnprobe.spectrum(model, x, layer)
        twin = in_double(model)
        blocks = [torch.diag(one) for one in drawn]
        if layer is None:
            blocks = [twin[2].weight @ one @ twin[0].weight for one in blocks]
        expected = np.stack([torch.linalg.svdvals(one.detach()).numpy() for one in blocks])
        np.testing.assert_allclose(found.values, expected, atol=1e-5)


class Trap(nn.Module):
    def forward(self, x):
        if x.requires_grad:
            raise ZeroDivisionError
        return x


@pytest.mark.parametrize(
    "how", [{}, {"k": 2, "method": "Lanczos"}, {"layer": "3"}, {"per": "sample"}, {"layer": ("1", "4")}]
)
@pytest.mark.parametrize("raises", [False, True])
def test_the_model_is_left_as_it_was(how, raises):
    model = nn.Sequential(
        nn.Linear(6, 30), nn.BatchNorm1d(30), nn.Dropout(0.3),
        nn.utils.parametrizations.spectral_norm(nn.Linear(30, 30)),
        nn.ReLU(inplace=True), Trap() if raises else nn.Identity(), nn.Linear(30, 30),
    )  # fmt: skip
    x = torch.randn(8, 6)
    sound = copy.deepcopy(model)
    sound[5] = nn.Identity()
    sound(x).sum().backward()
    for mine, other in zip(model.parameters(), sound.parameters(), strict=True):
        mine.grad = other.grad
    before, drawn, given_ = state(model), streams(), x.clone()
    try:
        bnprobe.spectrum(model, x, **how)
    except ZeroDivisionError:
        assert raises
    assert state(model) == before
    assert streams() == drawn
    assert torch.equal(x, given_)
    assert x.grad is None


def test_spectral_norms_power_iteration_is_held():
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5))
    x = torch.randn(3, 6)
    first, second = (bnprobe.spectrum(model, x).values for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"k": 0}, ArgumentError, "k must be None, a positive int or two ints"),
        ({"k": (1, -1)}, ArgumentError, "k must be"),
        ({"k": True}, ArgumentError, "k must be"),
        ({"per": "layer"}, ArgumentError, 'per must be None, "sample" or "batch"; got \'layer\''),
        ({"method": "svd"}, ArgumentError, "method must be None"),
        ({"memory": 0}, ArgumentError, "memory must be a positive number of bytes"),
        ({"method": "Lanczos"}, ArgumentError, "needs k: how many"),
        ({"layer": "nothing"}, SelectionError, "there is no 'nothing'"),
        ({"method": "closed form"}, NotMeasuredError, "there is no closed form for Sequential"),
        ({"memory": 10}, NotMeasuredError, "give memory="),
    ],
)
def test_what_cannot_be_done_is_said(how, error, message):
    with pytest.raises(error, match=message):
        bnprobe.spectrum(mlp(), torch.randn(8, 6), **how)


def test_a_model_is_a_module():
    with pytest.raises(ArgumentError, match=r"model must be a torch.nn.Module; got function"):
        bnprobe.spectrum(lambda x: x, torch.randn(2))


def test_a_model_that_insists_on_its_precision_has_a_rule_of_thumb():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 5)

        def forward(self, x):
            assert x.dtype == torch.float32
            return torch.tanh(self.inner(x))

    class Stubborn(Single):
        def forward(self, x):
            return torch.tanh(self.inner(x.float()))

    for kind in (Single, Stubborn):
        model, x = kind(), torch.randn(3, 6)
        try:
            found = bnprobe.spectrum(model, x)
        except AssertionError:
            pytest.fail("the second precision is our own affair")
        twin = nn.Sequential(in_double(model.inner), nn.Tanh())
        expected = singular_values(twin, x, per_sample=True)
        assert (np.abs(found.values - expected) <= found.error).all()


def test_half_precision_has_the_error_of_half_precision():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh()).bfloat16(), torch.randn(3, 6).bfloat16()
    found = bnprobe.spectrum(model, x)
    expected = singular_values(in_double(model), x, per_sample=True)
    assert (np.abs(found.values - expected) <= found.error).all()
    assert found.error.max() > 1e-4


def test_autocast_is_part_of_the_function():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh()), torch.randn(3, 6)
    exact = bnprobe.spectrum(model, x).values
    with torch.autocast("cpu", torch.bfloat16):
        for layer in (None, "0"):
            found = bnprobe.spectrum(model, x, layer)
            wanted = exact if layer is None else bnprobe.spectrum(model[0].double(), x.double()).values
            model.float()
            assert found.method == "dense"
            assert 0 < np.abs(found.values - wanted).max() < 0.02
            assert (np.abs(found.values - wanted) <= found.error + 1e-6).all()


def test_shared_jacobians_are_computed_once_and_told_for_every_sample():
    x = torch.randn(5, 3, 6, 6)
    model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 3, padding=1))
    found = bnprobe.spectrum(model, x, "1", method="dense")
    assert found.values.shape == (5, 108)
    expected = singular_values(in_double(model), x[:1], per_sample=True)
    np.testing.assert_allclose(found.values[3:4], expected, atol=1e-6)
