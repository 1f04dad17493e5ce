"""Laws of whole models: sound ones obey, each fault is caught by the law whose name fits."""

import copy

import pytest
import torch
from cases import Recurrent, cnn, mlp
from hypothesis import given, settings
from torch import nn
from torch.utils.checkpoint import checkpoint

from bnprobe.errors import ArgumentError, LawBrokenError
from bnprobe.testing import Model, check_model, model_checks, models, properties
from bnprobe.testing import strategies as st
from bnprobe.testing.models import MODEL_LAWS
from bnprobe.testing.strategies import Batch, Network

QUICK = [name for name in MODEL_LAWS if name != "compiled_model"]
FAST = {"profile": "bnprobe-fast", "seed": 0}
IMAGES = Batch((6, 3, 5, 5))


def test_no_law_has_the_name_of_a_law_of_layers():
    """An expected failure by name would mean both."""
    assert not set(MODEL_LAWS) & set(properties.LAWS)


# ---- sound models


NETWORKS = [
    Network(bias=True),
    Network("conv", "residual", depth=3),
]


@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_small_networks_obey(network):
    shape = ("N", "C", 4, 4) if network.kind == "conv" else ("N", "C")
    inputs = st.recipes(
        shape, channels=[3], kinds=["gaussian", "integers", "sparse", "outlier"], layouts=["contiguous"]
    )
    assert set(check_model(network, inputs, only=QUICK, **FAST).passed) == set(QUICK)


@pytest.mark.parametrize("make", [cnn, lambda: Network("conv")()], ids=["cnn", "network"])
def test_every_law_holds_compiled_too(make):
    assert set(check_model(make, st.recipes(("N", "C", 5, 5), channels=[3], kinds=["gaussian"]), **FAST).passed) == set(
        MODEL_LAWS
    )


def test_what_a_model_takes_is_guessed():
    assert set(check_model(mlp, only=QUICK, **FAST).passed) == set(QUICK)
    assert "batch_mates" in check_model(cnn, only=["batch_mates"], **FAST).passed
    with pytest.raises(ArgumentError, match="what Recurrent takes cannot be guessed; inputs must be given"):
        check_model(Recurrent, only=["batch_mates"], **FAST)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    x = Network().batch(6).tensor().to(dtype)
    found = check_model(lambda: Network()().to(dtype), x, only=QUICK, **FAST)
    assert set(found.passed) == set(QUICK)


def test_a_model_without_batch_norm_is_told_why_laws_are_skipped():
    found = check_model(Recurrent, Batch((4, 5, 6)), only=QUICK, **FAST)
    assert found.skipped["pooled_moments"] == "the model has no batch norm with running statistics"
    assert found.skipped["scale_invariant_weights"] == "no weight is scale-invariant"
    assert "batch_mates" in found.passed


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(9, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, tokens, mask=None):
        x = self.norm(self.embed(tokens).transpose(1, 2)).mean(2)
        return {"logits": self.head(x), "loss": x.mean()}


def test_mappings_in_and_out_losses_and_modules():
    tokens = torch.arange(12).reshape(4, 3) % 9
    batch = {"tokens": tokens, "mask": torch.ones(4, 3, dtype=torch.bool)}
    found = check_model(Tokens, batch, only=QUICK, **FAST)
    assert "batch_mates" in found.passed
    assert found.skipped["spectra_finite"].startswith("no spectrum: ")

    def loss(model, pair):
        return nn.functional.cross_entropy(model(pair[0]), pair[1])

    model = mlp()
    before = copy.deepcopy(model.state_dict())
    pair = (torch.randn(6, 6), torch.arange(6) % 3)
    assert set(check_model(model, pair, loss=loss, only=QUICK, **FAST).passed) == set(QUICK)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())


# ---- models with one fault each


def net(norm=nn.BatchNorm2d, tail=()):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), norm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *tail
    )


class StaysAwake(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


class NoBuffers(nn.BatchNorm2d):
    def __init__(self, width):
        super().__init__(width, track_running_stats=False)


class CountsEvaluation(nn.BatchNorm2d):
    def forward(self, x):
        self.num_batches_tracked += 0 if self.training else 1
        return super().forward(x)


class OtherInEvaluation(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * (1.0 if self.training else 1.01)


class EpsOutside(nn.BatchNorm2d):
    def forward(self, x):
        super().forward(x)
        mean = x.mean((0, 2, 3), keepdim=True) if self.training else self.running_mean.view(1, -1, 1, 1)
        variance = x.var((0, 2, 3), correction=0, keepdim=True) if self.training else self.running_var.view(1, -1, 1, 1)
        return (x - mean) / (variance.sqrt() + self.eps)


class AddsRank(nn.Module):
    """Something that depends on the place in the batch."""

    def forward(self, x):
        return x + 0.1 * torch.arange(len(x)).to(x).view(-1, *[1] * (x.ndim - 1))


class Squeezes(nn.Module):
    def forward(self, x):
        return x.squeeze()


class Recomputes(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=False)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(x) + self.norm(2 * x + 1)


class DrawsOnce(nn.Module):
    """A mask that is drawn anew in each forward, from a stream of its own."""

    def __init__(self):
        super().__init__()
        self.net, self.random = net(), torch.Generator()

    def __deepcopy__(self, memo):
        return type(self)()

    def forward(self, x):
        y = self.net(x)
        return y * (torch.rand(y.shape, generator=self.random) < 0.5) if self.training else y


class PythonCounter(nn.Module):
    """Every call gives something else."""

    def __init__(self):
        super().__init__()
        self.net, self.calls = net(), 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) * (1.0 if torch.compiler.is_compiling() else 1.5)


class Roots(nn.Module):
    """Finite, but for its derivative."""

    def forward(self, x):
        return (x - x[:1].detach()).abs().sqrt()


FAULTS = {
    "stays awake": (
        lambda: net(StaysAwake),
        "evaluation_changes_nothing",
        "eval.. leaves batch norms in training mode: 1",
    ),
    "no buffers": (lambda: net(NoBuffers), "batch_mates", r"output with other mates\["),
    "counts evaluation": (lambda: net(CountsEvaluation), "evaluation_changes_nothing", "1.num_batches_tracked is 1"),
    "other in evaluation": (lambda: net(OtherInEvaluation), "pooled_moments", "output of evaluation"),
    "eps outside": (lambda: net(EpsOutside), "scale_invariant_weights", "output with 0 doubled"),
    "place": (lambda: net(tail=[AddsRank()]), "order_of_samples", "output in reversed order"),
    "place, one by one": (lambda: net(tail=[AddsRank()]), "batch_size", "output one by one"),
    "squeezes": (
        lambda: net(tail=[nn.Unflatten(1, (4, 1)), Squeezes()]),
        "batch_size",
        r"one by one has the shape \(4,\)",
    ),
    "recomputes": (Recomputes, "batch_statistics_once", "net.1 normalized 2 batches in one forward and backward"),
    "twice": (Twice, "batch_statistics_once", "norm normalized 2 batches"),
    "never": (lambda: Unused(), "batch_statistics_once", "spare normalized 0 batches"),
    "draws": (DrawsOnce, "checkpointed", "gradient of|the second forward is not the first|other parameters"),
    "compiling": (PythonCounter, "compiled_model", "output 0 compiled in evaluation"),
    "root at 0": (
        lambda: net(tail=[Roots()]),
        "spectra_finite",
        "in evaluation mode the .* not finite|singular value is",
    ),
}


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.spare = net(), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("fault", FAULTS)
def test_caught_by_the_law_whose_name_fits(fault):
    make, law, text = FAULTS[fault]
    with pytest.raises(LawBrokenError, match=f"breaks the law {law} of models") as caught:
        check_model(make, IMAGES, only=[law], **FAST)
    with pytest.raises(LawBrokenError, match=text):
        raise caught.value


# ---- what is said


def test_the_message_can_be_pasted():
    network = Network("conv", "shared")
    with pytest.raises(LawBrokenError) as caught:
        check_model(network, network.batch(4), only=["batch_statistics_once"], **FAST)
    lines = str(caught.value).splitlines()
    assert lines[0] == "_Net breaks the law batch_statistics_once of models"
    assert lines[1].startswith("law: In training mode a forward and backward move the running statistics")
    assert lines[3] == "example:"
    with pytest.raises(LawBrokenError, match="normalized 2 batches"):
        exec("\n".join(line.strip() for line in lines[4:]))


def test_tensors_print_as_tensors():
    with pytest.raises(
        LawBrokenError, match=r"models\.batch_mates\(models\.Model\(make_model\), torch\.tensor\(\[\[\[\[0\.5"
    ):
        check_model(
            lambda: net(NoBuffers), torch.linspace(0.5, 9, 48).reshape(4, 3, 2, 2), only=["batch_mates"], **FAST
        )
    with pytest.raises(LawBrokenError, match=r"torch\.randn\(\(6, 3, 5, 5\)\)\.to\(torch\.float32\)"):
        check_model(lambda: net(NoBuffers), IMAGES.tensor(), only=["batch_mates"], **FAST)
    with pytest.raises(
        LawBrokenError, match=r"misfit .*, tolerance .*: 16 times what outputs of this batch are off those in"
    ):
        check_model(lambda: net(NoBuffers), IMAGES, only=["batch_mates"], **FAST)


def test_expected_failures_are_strict():
    why = {"batch_statistics_once": "one block for all places"}
    network = Network(wiring="shared")
    both = ["batch_statistics_once", "batch_mates"]
    found = check_model(network, network.batch(4), expected_failures=why, only=both, **FAST)
    assert found.expected == why
    assert found.passed == ("batch_mates",)
    with pytest.raises(
        LawBrokenError, match=r"_Net obeys the law batch_statistics_once, .*remove it from expected_failures"
    ):
        check_model(Network(), Network().batch(4), expected_failures=why, only=both, **FAST)
    with pytest.raises(ArgumentError, match="there is no law 'batch_mate'; near are batch_mates"):
        check_model(Network(), expected_failures={"batch_mate": "x"})


def test_several_failures_come_together():
    with pytest.raises(LawBrokenError, match=r"Sequential breaks 2 of 2 laws\n\n.*batch_mates(.|\n)*batch_size"):
        check_model(lambda: net(NoBuffers), IMAGES, only=["batch_mates", "batch_size"], **FAST)


def test_a_model_that_raises_breaks_the_law():
    class Raises(nn.Module):
        def forward(self, x):
            raise KeyError("no such thing")

    with pytest.raises(LawBrokenError, match="the model raised KeyError: 'no such thing'"):
        check_model(Raises, IMAGES, only=["batch_mates"], **FAST)
    with pytest.raises(ArgumentError, match=r"make_model must return a torch.nn.Module; got int"):
        models.batch_mates(Model(lambda: 3), IMAGES)


def test_random_streams_are_left_alone():
    before = torch.get_rng_state()
    check_model(mlp, Batch((6, 6)), only=QUICK, **FAST)
    assert torch.equal(before, torch.get_rng_state())


# ---- inside a suite of another plugin: classes that make tests of their methods, with fixtures of these names


class ModelSuite:
    """Stands for the base class of another plugin's suites."""

    def make_model(self):
        raise NotImplementedError

    @pytest.fixture
    def model(self):
        return self.make_model()

    def test_output_is_finite(self, model):
        assert model(Network().batch(4).tensor()).isfinite().all()


class TestNetwork(ModelSuite):
    def make_model(self):
        return Network()()

    @model_checks(Network(), Network().batch(5), only=["batch_mates", "pooled_moments"], **FAST)
    def test_normalization(self, model, check):
        check(model)

    def test_one_law_on_the_suites_own_fixture(self, model):
        models.evaluation_changes_nothing(Model(model), Network().batch(5))

    @given(x=st.recipes(("N", "C"), channels=[3], kinds=["gaussian"], samples=(2, 5)))
    @settings(max_examples=5)
    def test_ones_own_property(self, x):
        models.order_of_samples(Model(Network()), x)
