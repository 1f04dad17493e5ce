"""Gradient shift is what its definition says, layer by layer, and nobody notices that it was measured."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.checkpoint import checkpoint

import bnprobe
from bnprobe.errors import ArgumentError, NotMeasuredError, SelectionError
from tests.cases import CASES, batches, mlp


def cross_entropy(model, batch):
    torch.manual_seed(3)  # for dropout
    return F.cross_entropy(model(batch[0]), batch[1])


def own(model, name):
    return list(model.get_submodule(name).parameters(recurse=False))


def naive(model, loss, batch, optimizer, order):
    """From the definition: a copy of everything for each layer, earlier layers' weights taken from a stepped copy."""

    def gradient(twin, name):
        return torch.cat([one.flatten() for one in torch.autograd.grad(loss(twin, batch), own(twin, name))])

    stepped, stepping = copy.deepcopy((model, optimizer))
    stepping.zero_grad()
    loss(stepped, batch).backward()
    stepping.step()
    rows = []
    for index, name in enumerate(order):
        before, twin = copy.deepcopy(model), copy.deepcopy(model)
        with torch.no_grad():
            for earlier in order[:index]:
                for mine, other in zip(own(twin, earlier), own(stepped, earlier), strict=True):
                    mine.copy_(other)
        one, other = gradient(before, name), gradient(twin, name)
        rows.append([(one - other).norm(), F.cosine_similarity(one, other, dim=0), one.norm(), other.norm()])
    return torch.tensor(rows).numpy().T


def trained(model, optimizer, batch, steps=3):
    """So that the optimizer has momenta, and the parameters gradients."""
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()
    return model, optimizer


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.8, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, 0.02, amsgrad=True, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, centered=True),
}
ORDER = {"mlp": "0 1 3 4 6", "cnn": "0 1 3 4 8 9", "residual": "conv1 bn1 shared bn2 head", "lstm": "lstm head"}


def made(case, optimizer="sgd"):
    torch.manual_seed(0)
    make, shape = CASES[case]
    model = make().double()
    x, y = batches(shape, 1)[0]
    batch = (x.double(), y)
    return *trained(model, OPTIMIZERS[optimizer](model.parameters()), batch), batch


def assert_same(found, expected, rtol=1e-10):
    for name, values in zip(("l2", "cosine", "norm", "shifted_norm"), expected, strict=True):
        np.testing.assert_allclose(getattr(found, name), values, rtol=rtol, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", ["mlp", "residual"])
def test_as_defined_with_every_optimizer(case, optimizer):
    model, stepping, batch = made(case, optimizer)
    found = bnprobe.gradient_shift(model, cross_entropy, batch, stepping)
    assert " ".join(found.layers) == ORDER[case]
    assert_same(found, naive(model, cross_entropy, batch, stepping, found.layers))
    assert found.l2[0] == 0
    assert (found.l2[1:] > 1e-4).all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_as_defined_on_every_case_and_in_both_modes(case, training):
    model, stepping, batch = made(case, "adamw")
    found = bnprobe.gradient_shift(model.train(training), cross_entropy, batch, stepping)
    assert " ".join(found.layers) == ORDER[case]
    assert_same(found, naive(model, cross_entropy, batch, stepping, found.layers))
    assert found.parameters.tolist() == [sum(one.numel() for one in own(model, name)) for name in found.layers]


@st.composite
def nets(draw):
    """A net of linear layers and norms, maybe with a skip connection, an optimizer and a batch."""
    width, depth, rows = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(2, 6))
    norms = draw(st.lists(st.sampled_from([nn.Identity, nn.BatchNorm1d, nn.LayerNorm]), min_size=depth, max_size=depth))
    act = draw(st.sampled_from([nn.Identity, nn.Tanh, nn.ReLU]))
    skip, seed = draw(st.booleans()), draw(st.integers(0, 999))
    torch.manual_seed(seed)
    layers = [nn.Sequential(nn.Linear(width, width), norm(width), act()) for norm in norms]
    model = Skipping(layers) if skip else nn.Sequential(*layers)
    model.double().train(draw(st.booleans()))
    optimizer = OPTIMIZERS[draw(st.sampled_from(sorted(OPTIMIZERS)))](model.parameters())
    return model, optimizer, torch.randn(rows, width, dtype=torch.float64)


class Skipping(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


def square(model, x):
    return (model(x) - x.flip(0) - 0.5).square().sum()


@given(nets())
@settings(max_examples=25)
def test_as_defined_on_drawn_nets(net):
    model, optimizer, x = net
    names = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    found = bnprobe.gradient_shift(model, square, x, optimizer)
    expected = naive(model, square, x, optimizer, names)
    assert list(found.layers) == names
    # A difference of two gradients, each rounded: relative to them, not to itself.
    np.testing.assert_allclose(found.l2, expected[0], rtol=1e-9, atol=1e-10 * max(1.0, found.norm.max()))
    np.testing.assert_allclose(found.norm, expected[2], rtol=1e-9, atol=1e-10)
    known = np.minimum(found.norm, found.shifted_norm) > 1e-6
    np.testing.assert_allclose(found.cosine[known], expected[1][known], atol=1e-6)


def test_single_precision_is_off_by_no_more_than_it_says():
    for case in CASES:
        model, stepping, (x, y) = made(case, "momentum")
        exact = bnprobe.gradient_shift(model, cross_entropy, (x, y), stepping)
        rough, roughly = copy.deepcopy((model, stepping))
        rough.float()
        for slot in roughly.state.values():
            slot.update({name: one.float() for name, one in slot.items() if torch.is_tensor(one)})
        found = bnprobe.gradient_shift(rough, cross_entropy, (x.float(), y), roughly)
        assert (abs(found.l2 - exact.l2) <= 3 * found.error).all()
        assert (abs(found.cosine - exact.cosine) <= 3 * found.cosine_error).all()
        assert (found.error < 1e-4 * found.norm).all()
        assert (exact.error < 1e-12 * exact.norm).all()
        assert (exact.error > 0).all()


def test_some_layers_only_are_as_among_all():
    model, stepping, batch = made("residual", "adam")
    every = bnprobe.gradient_shift(model, cross_entropy, batch, stepping).frame().set_index("layer")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    some = bnprobe.gradient_shift(model, cross_entropy, batch, stepping, layers=nn.BatchNorm2d)
    assert some.layers == ("bn1", "bn2")
    assert len(calls) == 2 + 3  # two layers; the order, G, and G at rounded weights
    assert some.frame().set_index("layer").equals(every.loc[["bn1", "bn2"]])


def test_several_optimizers_and_groups():
    model, _, batch = made("mlp")
    whole = torch.optim.SGD([{"params": model[:3].parameters(), "lr": 0.3}, {"params": model[3:].parameters()}], 0.1)
    parts = [torch.optim.SGD(model[:3].parameters(), 0.3), torch.optim.SGD(model[3:].parameters(), 0.1)]
    one, other = (bnprobe.gradient_shift(model, cross_entropy, batch, some) for some in (whole, parts))
    assert one.frame().equals(other.frame())
    last = bnprobe.gradient_shift(model, cross_entropy, batch, parts[1])  # the first part stays as it is
    assert (last.l2[:3] == 0).all()
    assert (last.l2[3:] > 0).all()


class Odd(nn.Module):
    """Parameters of its own, a shared layer, a parametrized one, attention, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.unused = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.list = nn.ModuleList([nn.Dropout()])  # neither called nor missed: they have no parameters

    def forward(self, x):
        x = torch.tanh(self.first(x)) + self.token
        x = self.frozen(self.last(x))
        x = self.attention(x, x, x)[0]
        return self.last(x).mean((1, 2))


def squares(model, x):
    return model(x).square().mean()


def test_who_owns_which_parameter():
    model, x = Odd().double(), torch.randn(3, 5, 4, dtype=torch.float64)
    found = bnprobe.gradient_shift(model, squares, x, torch.optim.SGD(model.parameters(), 1.0))
    table = found.frame().set_index("layer")
    assert found.layers == ("", "first", "last", "attention")
    assert table["parameters"].tolist()[:4] == [4, 16 + 4 + 4, 20, 3 * 20 + 20]
    assert found.l2[0] == 0
    assert (found.l2[1:] > 0).all()
    why = {
        "unused": "it is not called in this forward",
        "attention.out_proj": "it is not called as a module; its parameters count as those of 'attention'",
    }
    assert found.why == why
    assert table["why"].tolist() == [""] * 4 + list(why.values())
    chosen = bnprobe.gradient_shift(
        model, squares, x, torch.optim.SGD(model.parameters(), 1.0), layers=["last", "frozen", "unused"]
    )
    assert chosen.layers == ("last",)
    assert chosen.why == {"unused": why["unused"], "frozen": "it has no parameters of its own that train"}


def test_layers_that_share_all_their_parameters_are_one():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 1))
    model[2].weight, model[2].bias = model[0].weight, model[0].bias
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = bnprobe.gradient_shift(model, square, torch.randn(4, 3), optimizer, layers=None)
    assert found.layers == ("0", "3")
    assert found.why == {"2": "its parameters count as those of '0', which shares them"}
    with pytest.raises(
        NotMeasuredError, match=r"no chosen layer has a gradient: '2': its parameters count as those of"
    ):
        bnprobe.gradient_shift(model, square, torch.randn(4, 3), optimizer, layers="2")


class Halves(nn.Module):
    """One half does not reach the loss, and one weight is complex, one embedding's gradient sparse."""

    def __init__(self):
        super().__init__()
        self.embed, self.lost, self.head = nn.Embedding(7, 3, sparse=True), nn.Linear(3, 3), nn.Linear(3, 2)
        self.phase = nn.Linear(2, 2, dtype=torch.complex64)

    def forward(self, tokens):
        x = self.embed(tokens).mean(1)
        with torch.no_grad():
            self.lost(x)
        return self.phase(self.head(x).to(torch.complex64)).abs()


def test_sparse_and_complex_gradients_and_none():
    model, tokens = Halves(), torch.randint(7, (5, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    found = bnprobe.gradient_shift(model, squares, tokens, optimizer)
    assert found.layers == ("embed", "head", "phase")
    assert found.why == {"lost": "the loss does not depend on its parameters"}
    stepped, stepping = copy.deepcopy((model, optimizer))
    squares(stepped, tokens).backward()
    stepping.step()
    stepped.phase.load_state_dict(model.phase.state_dict())
    one, other = (torch.autograd.grad(squares(net, tokens), net.phase.parameters()) for net in (model, stepped))
    gap = sum(float((a - b).abs().square().sum()) for a, b in zip(one, other, strict=True)) ** 0.5
    assert found.l2[2] == pytest.approx(gap, rel=1e-4)


def everything(model, optimizer):
    """What must be the same bits and the same objects afterwards."""
    streams = [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64))]  # noqa: NPY002
    tensors = [*model.parameters(), *model.buffers(), *(one.grad for one in model.parameters()), *streams]
    tensors += [one for slot in optimizer.state.values() for one in slot.values() if torch.is_tensor(one)]
    objects = [id(one) for one in tensors[: -len(streams)]] + [one.requires_grad for one in model.parameters()]
    hooks = [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return (
        [one.detach().clone() for one in tensors],
        hooks,
        [one.training for one in model.modules()],
        groups,
        objects[:3],
    )


def assert_bitwise(a, b):
    assert all(torch.equal(one, other) for one, other in zip(a[0], b[0], strict=True))
    assert a[1:] == b[1:]


@pytest.mark.parametrize("case", CASES)
def test_nothing_changes(case):
    model, optimizer, batch = made(case, "adamw")
    model.register_buffer("spare", torch.ones(1))
    x = batch[0].clone()
    before = everything(model, optimizer)
    first = bnprobe.gradient_shift(model, cross_entropy_drawing, batch, optimizer)
    assert_bitwise(everything(model, optimizer), before)
    assert bnprobe.gradient_shift(model, cross_entropy_drawing, batch, optimizer).frame().equals(first.frame())
    assert torch.equal(batch[0], x)


def cross_entropy_drawing(model, batch):
    """Draws from the global streams, counts its calls, writes into the batch."""
    batch[0].add_(0.1 * torch.rand_like(batch[0])).mul_(1 + np.random.rand() / 10)  # noqa: NPY002
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("last", range(8))
def test_nothing_changes_where_the_loss_raises(last):
    model, optimizer, batch = made("mlp", "momentum")
    calls = []

    def failing(net, pair):
        calls.append(1)
        found = cross_entropy_drawing(net, pair)
        if len(calls) > last:
            net.train(False)
            net[0].weight.data.zero_()
            raise ZeroDivisionError
        return found

    before = everything(model, optimizer)
    with pytest.raises(ZeroDivisionError):
        bnprobe.gradient_shift(model, failing, batch, optimizer)
    assert len(calls) == last + 1
    assert_bitwise(everything(model, optimizer), before)


def test_the_loss_may_be_a_module_of_its_own():
    class Criterion(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, model, batch):
            return F.cross_entropy(self.norm(model(batch[0])), batch[1])

    model, optimizer, (x, y) = made("mlp")
    loss = Criterion().double()
    first = bnprobe.gradient_shift(model, loss, (x, y), optimizer)
    assert bnprobe.gradient_shift(model, loss.forward, (x, y), optimizer).frame().equals(first.frame())
    assert torch.equal(loss.norm.running_mean, torch.zeros(3, dtype=torch.float64))
    assert int(loss.norm.num_batches_tracked) == 0
    assert_same(first, naive(model, loss, (x, y), optimizer, first.layers))


def test_hooks_of_the_optimizer_do_not_run_nor_of_a_probe():
    model, optimizer, batch = made("mlp", "adam")
    calls = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
        *(one.register_post_accumulate_grad_hook(lambda *_: calls.append("grad")) for one in model.parameters()),
    ]
    try:
        with bnprobe.attach(model, optimizer=optimizer) as probe:
            bnprobe.gradient_shift(model, cross_entropy, batch, optimizer)
            assert probe.now == 0
            assert not calls
            optimizer.step()
            assert probe.now == 1
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["global pre", "pre", "post", "global post"]


def test_a_schedulers_step_does_not_step_the_original():
    """It puts a method on the optimizer that is bound to it."""
    model, optimizer, batch = made("mlp", "momentum")
    plain = bnprobe.gradient_shift(model, cross_entropy, batch, optimizer)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = everything(model, optimizer)
    found = bnprobe.gradient_shift(model, cross_entropy, batch, optimizer)
    assert found.frame().equals(plain.frame())
    assert_bitwise(everything(model, optimizer), before)
    assert not getattr(optimizer, "_opt_called", False)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


class Sharpness(torch.optim.Optimizer):
    """A third party's: holds another optimizer and attributes of its own."""

    def __init__(self, base):
        super().__init__(base.param_groups, {})
        self.base, self.factor = base, 0.5
        self.param_groups = base.param_groups

    def step(self, closure=None):
        for group in self.param_groups:
            for one in group["params"]:
                one.grad.mul_(self.factor)
        self.base.step()


def test_optimizers_of_third_parties():
    model, _, batch = made("mlp")
    wrapped = Sharpness(torch.optim.SGD(model.parameters(), 0.2))
    plain = torch.optim.SGD(model.parameters(), 0.1)
    one, other = (bnprobe.gradient_shift(model, cross_entropy, batch, some) for some in (wrapped, plain))
    np.testing.assert_allclose(one.l2, other.l2, rtol=1e-9, atol=1e-15)


def test_what_a_gradient_scaler_leaves_on_a_fused_optimizer_is_not_used():
    """While its step runs, which is when a probe measures, it divides by the scale."""
    model, optimizer, batch = made("mlp", "adam")
    plain = bnprobe.gradient_shift(model, cross_entropy, batch, optimizer)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(1.0)
    assert bnprobe.gradient_shift(model, cross_entropy, batch, optimizer).frame().equals(plain.frame())


def test_weights_that_autocast_has_kept_are_not_taken_for_the_updated_ones():
    model, x = mlp(norm=nn.Identity), torch.randn(8, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)

    def loss(net, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return net(batch).float().square().mean()

    plain = bnprobe.gradient_shift(model, loss, x, optimizer)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        inside = bnprobe.gradient_shift(model, loss, x, optimizer)
        assert torch.equal(model(x), expected)
    np.testing.assert_array_equal(inside.l2, plain.l2)
    assert (plain.l2[1:] > 0).all()
    assert inside.error[0] > 1000 * plain.error[0]  # here it is known that bfloat16 rounds


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel])
def test_wrappers_are_looked_through(wrap):
    model, optimizer, batch = made("mlp")
    plain = bnprobe.gradient_shift(model, None, batch, optimizer)
    wrapped = wrap(model)
    if wrap is torch.optim.swa_utils.AveragedModel:
        optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
    assert bnprobe.gradient_shift(wrapped, None, batch, optimizer).frame().equals(plain.frame())


def test_in_inference_mode_and_without_gradients():
    model, optimizer, batch = made("cnn")
    plain = bnprobe.gradient_shift(model, None, batch, optimizer)
    for mode in (torch.inference_mode(), torch.no_grad()):
        with mode:
            assert bnprobe.gradient_shift(model, None, batch, optimizer).frame().equals(plain.frame())


def test_channels_last_group_norm_on_a_cpu_does_not_crash():
    """torch's backward does where a group norm's own input needs no gradient."""
    code = (
        "import torch, bnprobe\n"
        "from torch import nn\n"
        "model = nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.Flatten())\n"
        "model = model.to(memory_format=torch.channels_last)\n"
        "x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)\n"
        "loss = lambda net, x: net(x).square().mean()\n"
        "optimizer = torch.optim.SGD(model.parameters(), 0.1)\n"
        "found = bnprobe.gradient_shift(model, loss, x, optimizer)\n"
        "plain = bnprobe.gradient_shift(model, loss, x.contiguous(), optimizer)\n"
        "assert abs(found.l2 - plain.l2).max() < 1e-5\n"
        "bnprobe.landscape(model, loss, x)\n"
        "bnprobe.hessian_eigenvalues(model, loss, x)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_under_activation_checkpointing():
    model, optimizer, batch = made("residual", "momentum")
    plain = bnprobe.gradient_shift(model, None, batch, optimizer)

    def loss(net, pair):
        return F.cross_entropy(checkpoint(net, pair[0], use_reentrant=False), pair[1])

    found = bnprobe.gradient_shift(model, loss, batch, optimizer)
    np.testing.assert_allclose(found.l2, plain.l2, rtol=1e-9, atol=1e-14)


def test_losses_that_are_not_finite_give_nan():
    model, optimizer, (x, y) = made("mlp")
    found = bnprobe.gradient_shift(model, None, (x * torch.inf, y), optimizer)
    assert np.isnan(found.l2).all()
    assert np.isnan(found.cosine).all()


def test_refusals():
    model, optimizer, batch = made("mlp")
    with pytest.raises(ArgumentError, match=r"model must be a torch.nn.Module; got str"):
        bnprobe.gradient_shift("model", None, batch, optimizer)
    with pytest.raises(ArgumentError, match="needs loss"):
        bnprobe.gradient_shift(model, None, batch[0], optimizer)
    with pytest.raises(ArgumentError, match=r"optimizer must be a torch.optim.Optimizer; got float"):
        bnprobe.gradient_shift(model, None, batch, 0.1)
    with pytest.raises(ArgumentError, match="LBFGS cannot be asked for its next step: its step evaluates the loss"):
        bnprobe.gradient_shift(model, None, batch, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ArgumentError, match="holds no parameter of the model that trains"):
        bnprobe.gradient_shift(model, None, batch, torch.optim.SGD(mlp().parameters(), 0.1))
    with pytest.raises(ArgumentError, match="no parameter of the model requires a gradient"):
        bnprobe.gradient_shift(mlp().requires_grad_(False), None, batch, optimizer)
    with pytest.raises(SelectionError, match="matches no layer"):
        bnprobe.gradient_shift(model, None, batch, optimizer, layers="nowhere")
    again = lambda net, pair: checkpoint(net, pair[0].requires_grad_(), use_reentrant=True).sum()  # noqa: E731
    with pytest.raises(NotMeasuredError, match="reentrant activation checkpointing hides the parameters inside of it"):
        bnprobe.gradient_shift(model, again, batch, optimizer)
    scripted = nn.Sequential(nn.Linear(3, 3), torch.jit.script(nn.Sequential(nn.Linear(3, 3))))
    with pytest.raises(NotMeasuredError, match="'1' is scripted: it calls its layers outside of Python"):
        bnprobe.gradient_shift(scripted, square, torch.randn(2, 3), torch.optim.SGD(scripted.parameters(), 0.1))
    with pytest.raises(NotMeasuredError, match="the loss must be one number with a gradient"):
        bnprobe.gradient_shift(model, lambda net, pair: net(pair[0]), batch, optimizer)

    class Needy(torch.optim.SGD):
        def step(self, closure):
            return closure()

    with pytest.raises(
        ArgumentError, match="Needy cannot be asked for its next step: on a copy of it that raised Type"
    ):
        bnprobe.gradient_shift(model, None, batch, Needy(model.parameters(), 0.1))
