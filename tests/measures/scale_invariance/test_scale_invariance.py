"""The laws of scale invariance with epsilon, exactly; what is no invariance; nothing is touched."""

import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, batches
from hypothesis import given, settings
from hypothesis import strategies as st
from invariance_zoo import case, plain, shaken
from torch import nn
from torch.utils.checkpoint import checkpoint

import bnprobe
from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.measures.scale_invariance.prediction import scale_of


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def small(eps=1e-5, width=4, outer=torch.float64):
    return nn.Sequential(
        nn.Linear(5, width), nn.BatchNorm1d(width, eps=eps), nn.Tanh(), nn.Linear(width, 3)
    ).to(outer)  # fmt: skip


def data(size, inner=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, inner, generator=generator).to(dtype), torch.randint(3, (size,), generator=generator)


def state(model, optimizer=None):
    """All that must not change."""
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for slot in optimizer.state.values() if optimizer else ():
        tensors += [value for value in slot.values() if isinstance(value, torch.Tensor)]
    identities = [id(one) for one in (*model.parameters(), *model.buffers())]
    flags = [(one.training, sorted(vars(one))) for one in model.modules()]
    flags += [p.requires_grad for p in model.parameters()]
    streams = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    return [one.detach().numpy().tobytes() for one in tensors], identities, flags, streams


@settings(max_examples=12)
@given(
    st.floats(-3, 3).map(lambda power: 10**power),
    st.floats(-12, -1).map(lambda power: 10**power),
    st.integers(2, 9),
    st.integers(0, 1000),
)
def test_the_laws_hold_exactly(size, eps, samples, seed):
    """O5 and O6 against sums written out by hand, with weights of any size and any epsilon, down to two samples."""
    torch.manual_seed(seed)
    model = shaken(small(eps), seed)
    with torch.no_grad():
        model[0].weight.mul_(size)
    batch = data(samples, seed=seed)
    found = bnprobe.scale_invariance(model, loss_of, batch)["0.weight"]
    loss_of(model, batch).backward()
    norm, weight = model[1], model[0].weight
    variance = model[0](batch[0]).var(0, correction=0).detach()
    law = eps / (variance + eps) * norm.weight.detach() * norm.weight.grad
    size_of_terms = (weight.norm(dim=1) * weight.grad.norm(dim=1)).detach().numpy()
    numbers = found.channel_numbers
    np.testing.assert_allclose(numbers["inner_product"], (weight * weight.grad).sum(1).detach().numpy(), atol=1e-12)
    if found.verdict != "scale-invariant":  # m = 2 and a tiny epsilon: the sign of a difference has no gradient
        assert samples == 2
        return
    alive = np.array(found.channel_verdicts) == "scale-invariant"
    np.testing.assert_allclose(
        numbers["predicted_inner_product"][alive], law.numpy()[alive], rtol=1e-10, atol=1e-14 * size_of_terms.max()
    )
    off = np.abs(numbers["inner_product"] - numbers["predicted_inner_product"])[alive]
    assert (off <= 1e-10 * np.maximum(np.abs(law.numpy()), size_of_terms)[alive] + 1e-300).all()
    grown = scale_of(numbers["input_factor"], variance.numpy(), eps)
    np.testing.assert_allclose(numbers["predicted_deviation"][alive], (grown - 1)[alive], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        numbers["deviation"][alive], numbers["predicted_deviation"][alive], rtol=1e-8, atol=1e-10
    )
    np.testing.assert_allclose(
        (numbers["gradient_ratio"] / numbers["predicted_gradient_ratio"])[alive], 1, rtol=1e-6 if samples == 2 else 1e-8
    )


@pytest.mark.parametrize("factor", [-1e3, -2.0, -1e-3, 1e-3, 0.5, 10.0, 1e3])
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 1e-1])
def test_the_law_of_the_forward_is_that_of_batch_norm(factor, eps):
    x = torch.randn(7, 3, dtype=torch.float64)
    norm = nn.BatchNorm1d(3, eps=eps, affine=False, dtype=torch.float64)
    grown = scale_of(np.array([factor]), x.var(0, correction=0).numpy(), eps)
    np.testing.assert_allclose(norm(factor * x).numpy(), norm(x).numpy() * grown, rtol=1e-10, atol=1e-13)


def test_in_single_precision_the_law_holds_within_the_error():
    model, batch, _ = case("vgg")
    found = bnprobe.scale_invariance(model, None, batch)
    exact = bnprobe.scale_invariance(model, None, batch, dtype=torch.float64)
    for name in found.parameters:
        single, double = found[name].channel_numbers, exact[name].channel_numbers
        off = np.abs(single["inner_product"] - double["predicted_inner_product"])
        assert (off <= single["inner_product_error"] + 1e-6 * np.abs(double["inner_product"])).mean() > 0.7
        assert off.max() < 2e-6 * (single["norm"] * single["gradient_norm"]).max() * 10
        np.testing.assert_allclose(single["deviation"], single["predicted_deviation"], atol=2e-6)


def test_epsilon_hides_no_invariance_and_is_told():
    model = shaken(small(eps=0.5))
    found = bnprobe.scale_invariance(model, None, data(20))
    numbers = found["0.weight"].numbers
    assert found.parameters == {"0.weight"}
    assert numbers["epsilon_share"] > 0.3
    assert abs(numbers["deviation"]) > 0.1
    assert numbers["deviation"] == pytest.approx(numbers["predicted_deviation"], rel=1e-9)
    assert numbers["inner_product"] == pytest.approx(numbers["predicted_inner_product"], rel=1e-9)
    assert abs(numbers["cosine"]) > 1e-3


def test_signs():
    found = bnprobe.scale_invariance(shaken(plain()), None, case("plain")[1])
    assert found["0.weight"].sign == found["3.weight"].sign == "equivariant"
    assert found["7.weight"].sign == ""
    stacked = nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    found = bnprobe.scale_invariance(shaken(stacked), None, data(20))
    assert found.parameters == {"0.weight", "2.weight"}  # the first as a whole: ReLU is homogeneous
    assert not found.channels["0.weight"].any()
    assert found["0.weight"].sign == "neither"
    assert found["2.weight"].sign == "equivariant"


def test_what_gets_no_gradient_is_not_invariant():
    model = small()
    model.register_module("unused", nn.Linear(2, 2, dtype=torch.float64))
    model.forward = lambda x: nn.Sequential(*list(model.children())[:4])(x)
    found = bnprobe.scale_invariance(model, loss_of, data(8))
    assert found["unused.weight"].verdict == "not"
    assert "no gradient reaches it" in found["unused.weight"].why
    dead = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        dead[0].bias.fill_(-100.0)
    found = bnprobe.scale_invariance(dead, loss_of, data(8))
    assert found["0.weight"].verdict == found["0.bias"].verdict == "undecided"
    assert "exactly zero" in found["0.weight"].why
    zero = small()
    nn.init.zeros_(zero[3].weight)
    found = bnprobe.scale_invariance(zero, loss_of, data(8))
    assert found["3.weight"].verdict == "undecided"
    assert found["0.weight"].verdict == "undecided"
    assert not found.parameters


def test_an_accident_is_refuted_by_scaling():
    """The gradient is orthogonal to the weight here and nowhere else."""

    class Accident(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64))
            self.net = small()

        def forward(self, x):
            return self.net(x) + (self.weight[:, 0] * 2 - self.weight[:, 1]).sum().expand(3)[0] * 0

    def loss(model, batch):
        first, second = model.weight
        return loss_of(model, batch) + 2 * first[0] - first[1] + second[0] + 3 * second[1]

    model = shaken(Accident(), size=0.0)
    found = bnprobe.scale_invariance(model, loss, data(8))
    assert found.parameters == {"net.0.weight"}
    assert found["weight"].verdict == "not"


def test_only_some_channels():
    """Half of the channels goes through batch norm."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.norm, self.out = nn.Linear(5, 6), nn.BatchNorm1d(3), nn.Linear(6, 3)

        def forward(self, x):
            x = self.into(x)
            return self.out(torch.tanh(torch.cat([self.norm(x[:, :3]), x[:, 3:]], 1)))

    found = bnprobe.scale_invariance(shaken(Half()).double(), None, data(9))
    assert not found.parameters
    assert found.channels["into.weight"].tolist() == [True] * 3 + [False] * 3
    assert found["into.bias"].channel_verdicts == ("translation-invariant",) * 3 + ("not",) * 3
    assert found["into.weight"].why == "only 3 of its 6 channels are scale-invariant"


def test_blocks_of_channels():
    model, batch, _ = case("unet")
    found = bnprobe.scale_invariance(model, None, batch, dtype=torch.float64)
    assert not found.channels["down2.weight"].any()
    assert found["down2.weight"].channel_why[0] == "only together with the other channels of its block of 2"
    assert found["head.bias"].why == "only all entries by the same amount"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = shaken(plain()).to(dtype)
    x, y = case("plain")[1]
    found = bnprobe.scale_invariance(model, None, (x.to(dtype), y))
    settled = {one.name for one in found.findings if one.verdict == "scale-invariant" and not one.members}
    assert settled <= {"0.weight", "3.weight"}
    assert all(found[name].verdict in ("scale-invariant", "undecided") for name in ("0.weight", "3.weight"))
    exact = bnprobe.scale_invariance(model, None, (x.to(dtype), y), dtype=torch.float64)
    assert exact.parameters == {"0.weight", "3.weight"}
    assert model[0].weight.dtype == dtype


def test_what_the_optimizer_does():
    model, batch = shaken(small()), data(20)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)
    found = bnprobe.scale_invariance(model, loss_of, batch, optimizer=optimizer)
    numbers, each = found["0.weight"].numbers, found["0.weight"].channel_numbers
    before = model[0].weight.detach().clone()
    loss_of(model, batch).backward()
    gradient = model[0].weight.grad
    optimizer.step()
    after = model[0].weight.detach()
    assert numbers["relative_update"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-12)
    angle = torch.acos(F.cosine_similarity(before, after, dim=1))
    np.testing.assert_allclose(each["angular_update"], angle.numpy(), rtol=1e-6)
    assert numbers["effective_learning_rate"] == pytest.approx(0.1 / float(before.norm()) ** 2, rel=1e-12)
    sphere = (before.norm(dim=1) * gradient.norm(dim=1)) ** 2
    norm = (0.1 * sphere / (5e-4 * 0.1 * (2 - 0.1 * 5e-4 / 1.9))) ** 0.25
    np.testing.assert_allclose(each["equilibrium_norm"], norm.numpy(), rtol=1e-10)
    assert numbers["equilibrium_angle"] == pytest.approx(math.sqrt(2 * 0.1 * 5e-4 / 1.9))
    adam = bnprobe.scale_invariance(model, loss_of, batch, optimizer=torch.optim.AdamW(model.parameters()))
    assert "no law here for the equilibrium of AdamW" in adam["0.weight"].why
    assert math.isnan(adam["0.weight"].numbers["equilibrium_norm"])
    assert adam["0.weight"].numbers["angular_update"] > 0


def test_the_table():
    found = bnprobe.scale_invariance(shaken(plain()), None, case("plain")[1])
    frame = found.frame()
    assert len(frame) == sum(1 + len(one.channel_verdicts) for one in found.findings)
    whole = frame[frame.kind == "tensor"].set_index("parameter")
    assert set(whole.index[whole.verdict == "scale-invariant"]) == found.parameters
    rows = frame[(frame.parameter == "3.weight") & frame.channel.notna()]
    np.testing.assert_allclose(np.sqrt((rows.norm**2).sum()), whole.loc["3.weight", "norm"])
    assert frame[frame.verdict == "not"].why.str.len().min() > 0


def test_screening_alone_confirms_nothing():
    found = bnprobe.scale_invariance(shaken(plain()), None, case("plain")[1], confirm=False)
    assert found.parameters == set()
    assert found.passes == 1
    assert not found.confirmed
    undecided = {one.name for one in found.findings if one.verdict == "undecided"}
    assert undecided == {"0.weight", "3.weight", "0.bias", "7.bias"}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_touched(name):
    make, shape = CASES[name]
    model, batch = make(), batches(shape, 1)[0]
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    loss_of(model, batch).backward()
    optimizer.step()
    before = state(model, optimizer)
    bnprobe.scale_invariance(model, None, batch, optimizer=optimizer, dtype=torch.float64)
    bnprobe.scale_invariance(model, None, batch, optimizer=optimizer)
    assert state(model, optimizer) == before


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_nothing_is_touched_where_the_loss_raises(call):
    model, batch = CASES["residual"][0](), batches(CASES["residual"][1], 1)[0]
    calls = 0

    def loss(net, batch):
        nonlocal calls
        calls += 1
        value = loss_of(net, batch)
        if calls == call:
            raise RuntimeError("in the middle")
        return value

    before = state(model)
    with pytest.raises(RuntimeError, match="in the middle"):
        bnprobe.scale_invariance(model, loss, batch)
    assert state(model) == before


def test_a_checkpoint_runs_its_layers_again():
    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x + 0, use_reentrant=False)

    model, batch, (invariant, *_) = case("plain")
    found = bnprobe.scale_invariance(Checkpointed(model), None, batch)
    assert found.parameters == {f"inner.{name}" for name in invariant}
    again = Checkpointed(model)
    again.forward = lambda x: checkpoint(model, (x + 0).requires_grad_(), use_reentrant=True)
    with pytest.raises(NotMeasuredError, match="use_reentrant=False has"):
        bnprobe.scale_invariance(again, None, batch)


def test_wrapped_and_awkward_models():
    model, batch, (invariant, *_) = case("plain")
    assert bnprobe.scale_invariance(nn.DataParallel(model), None, batch).parameters == invariant
    named = {"x": batch[0], "y": batch[1]}
    found = bnprobe.scale_invariance(model, lambda net, b: F.cross_entropy(net(b["x"]), b["y"]), named)
    assert found.parameters == invariant
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = batch[0].to(memory_format=torch.channels_last)
    assert bnprobe.scale_invariance(last, None, (x, batch[1])).parameters == invariant


def test_what_cannot_be_measured_says_so():
    model, batch = small(), data(8)
    with pytest.raises(ArgumentError, match=r"model must be a torch\.nn\.Module; got int"):
        bnprobe.scale_invariance(3, None, batch)
    with pytest.raises(ArgumentError, match="needs loss"):
        bnprobe.scale_invariance(model, None, batch[0])
    with pytest.raises(ArgumentError, match="optimizer must be"):
        bnprobe.scale_invariance(model, None, batch, optimizer=0.1)
    with pytest.raises(ArgumentError, match="dtype must be"):
        bnprobe.scale_invariance(model, None, batch, dtype=torch.int32)
    with pytest.raises(ArgumentError, match="passes must be"):
        bnprobe.scale_invariance(model, None, batch, passes=0)
    with pytest.raises(NotMeasuredError, match="the loss is nan"):
        bnprobe.scale_invariance(model, lambda net, b: loss_of(net, b) * math.nan, batch)
    with pytest.raises(NotMeasuredError, match="must be one number with a gradient"):
        bnprobe.scale_invariance(model, lambda net, b: net(b[0]), batch)
    with pytest.raises(NotMeasuredError, match="the model has no parameters"):
        bnprobe.scale_invariance(nn.ReLU(), loss_of, batch)
    own = torch.Generator().manual_seed(0)
    with pytest.raises(NotMeasuredError, match="is another in every pass"):
        bnprobe.scale_invariance(
            model, lambda net, b: loss_of(net, b) * torch.rand((), generator=own, dtype=torch.float64), batch
        )
    found = bnprobe.scale_invariance(model, None, batch, passes=2)
    assert not found.parameters
    assert "more than 2 passes" in found["0.weight"].why
