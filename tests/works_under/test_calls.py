"""How layers are called: often, past their hooks, inside of transforms, graphs and scripts, and again in a backward."""

import functools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts

import bnprobe
from tests.cases import batches, cnn, mlp
from tests.works_under.naive import (
    DEFAULT,
    EXACT,
    LARGE,
    Naive,
    agree,
    assert_same,
    check,
    plain_loop,
    sgd,
    snapshot,
    trained,
    why,
)

pytestmark = pytest.mark.usefixtures("no_hooks_left")


class Shared(nn.Module):
    """One layer at two names, called three times a forward."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.again, self.act = self.first, nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.act(self.norm(self.first(x)))
        x = self.act(self.norm(self.again(x)))
        return self.head(self.first(x))


@pytest.mark.works_under("shared modules (a record a call)", group="Calls")
def test_shared_modules():
    probe = check(Shared, plain_loop(batches((8, 6), 3)))
    calls = probe.run.frame(statistic="mean", place="output").groupby("layer").call.max().to_dict()
    assert calls == {"first": 2, "norm": 1, "act": 1, "head": 0}


class Varying(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head, self.rare = nn.Linear(6, 6), nn.Linear(6, 3), nn.LayerNorm(6)

    def forward(self, x):
        times = int(x[0, 0] * 100) % 4
        for _ in range(times):
            x = torch.tanh(self.cell(x))
        return self.head(self.rare(x) if times == 3 else x)


@pytest.mark.works_under("modules called a varying number of times, or not at all", group="Calls")
def test_a_varying_number_of_calls():
    data = batches((8, 6), 12)
    probe = check(Varying, plain_loop(data))
    times = {step: int(x[0, 0] * 100) % 4 for step, (x, _) in enumerate(data)}
    assert set(times.values()) == {0, 1, 2, 3}
    called = probe.run.frame(layer="cell", statistic="mean", place="output").groupby("step").call.count().to_dict()
    assert called == {step: n for step, n in times.items() if n}


class Direct(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.past, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.never, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.norm.forward(self.past.forward(self.stem(x))))


@pytest.mark.works_under("child.forward(x) called directly", group="Calls", verdict="not observed, listed why")
def test_a_forward_called_directly():
    probe = check(Direct, plain_loop(batches((8, 6), 2)), without=["past", "norm", "never"])
    past = "its forward was not called through the module"
    assert why(probe) == {"past": past, "norm": past, "never": "its forward was not called"}


@pytest.mark.works_under("children called without their root", group="Calls")
def test_children_called_without_the_root():
    """No forward of the root to count within: the calls of a step merge, in the root's mode."""
    model = mlp()
    with bnprobe.attach(model, *EXACT) as probe:
        x, z = torch.randn(8, 6), torch.randn(5, 6)
        model[0](x)
        model.eval()
        model[0](x)
        model[0](z)
    frame = probe.run.frame(layer="0", place="input", statistic="mean").set_index("phase")
    assert frame["count"].to_dict() == {"train": 48, "eval": 78}
    assert frame.value["eval"] == pytest.approx(float(torch.cat([x, z]).double().mean()), rel=1e-9)


# Exceptions.


class Stumbles(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.act, self.head, self.fail = nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3), False

    def forward(self, x):
        x = self.act(self.stem(x))
        if self.fail:
            raise ZeroDivisionError("in the middle")
        return self.head(x)


@pytest.mark.works_under("a forward that raises, and training that goes on", group="Calls")
def test_a_forward_that_raised_is_over():
    data = batches((8, 6), 3)

    def loop(model, optimizer):
        for step, (x, y) in enumerate(data):
            if step == 1:
                model.fail = True
                with pytest.raises(ZeroDivisionError):
                    model(x)
                model.fail = False
                model.eval()
                model.stem(x)  # past the root: its first call, in eval mode
                model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    model, optimizer, probe = trained(Stumbles, loop, listen=lambda m, o: bnprobe.attach(m, *EXACT, optimizer=o))
    probe.detach()
    assert_same(snapshot(*trained(Stumbles, loop)[:2]), snapshot(model, optimizer))
    frame = probe.run.frame(layer="stem", place="input", statistic="mean")
    recorded = frame[["step", "phase", "call", "count"]].to_numpy().tolist()
    assert recorded == [[0, "train", 0, 48], [1, "train", 0, 96], [1, "eval", 0, 48], [2, "train", 0, 48]]


# torch.func, graphs and scripts.


@pytest.mark.works_under("functional_call", group="Graphs, scripts and transforms")
def test_functional_call():
    """The parameters are others; the layers and what flows through them are the model's own."""
    model, x = mlp(), torch.randn(8, 6)
    other = {name: p.detach() * 2 for name, p in model.named_parameters()}
    naive = Naive(model)
    with bnprobe.attach(model, *EXACT) as probe:
        torch.func.functional_call(model, other, (x,)).sum()
    agree(probe.run, naive.seen)
    first = probe.run.frame(layer="0", place="output", statistic="mean").value.item()
    assert first == pytest.approx(float(F.linear(x, other["0.weight"], other["0.bias"]).double().mean()), rel=1e-6)


def plain_mlp():
    return nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))


def under_vmap(model, x):
    return torch.vmap(model)(x)


def under_grad(model, x):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).square().sum())(parameters)["0.weight"]


def under_jvp(model, x):
    return torch.func.jvp(model, (x,), (torch.ones_like(x),))[1]


def per_sample(model, x):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    loss = lambda p, one: torch.func.functional_call(model, p, (one[None],)).square().sum()  # noqa: E731
    return torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)["0.weight"]


@pytest.mark.works_under(
    "vmap, grad, jvp over an attached model", group="Graphs, scripts and transforms", verdict="not observed, listed why"
)
@pytest.mark.parametrize("transform", [under_vmap, under_grad, under_jvp, per_sample])
@pytest.mark.parametrize("statistics", [EXACT, DEFAULT])
def test_transforms(transform, statistics):
    model, x = plain_mlp(), torch.randn(8, 6)
    plain = transform(model, x)
    with bnprobe.attach(model, *statistics) as probe:
        probed = transform(model, x)
        seen = probe.run.frame()
        model(x)
    assert torch.equal(plain, probed)
    transformed = "the layer ran inside a torch.func transform"
    if transform is under_grad:  # only the parameters are the transform's: the first layer's input is the plain batch
        assert set(seen.layer) == {"0"}
        assert set(seen.place) == {"input"}
        assert seen[seen.statistic == "mean"].value.item() == pytest.approx(float(x.double().mean()), rel=1e-6)
        assert why(probe)["0"] == f"output: {transformed}"
    else:
        assert seen.empty
        assert why(probe)["0"] == f"input: {transformed}"
    assert all(reason.endswith(transformed) for reason in why(probe).values())
    assert len(why(probe)) == 4
    assert probe.run.layers.observed.all()  # by the plain call afterwards


@pytest.mark.works_under("torch.fx GraphModules", group="Graphs, scripts and transforms")
def test_fx_graph_modules():
    probe = check(lambda: fx.symbolic_trace(cnn()), plain_loop(batches((4, 3, 6, 6), 2)))
    assert probe.run.layers.observed.all()


@pytest.mark.works_under("symbolic tracing of an attached model", group="Graphs, scripts and transforms")
def test_an_attached_model_is_traced_as_a_plain_one():
    model = cnn()
    plain = fx.symbolic_trace(model).code
    with bnprobe.attach(model, *EXACT) as probe:
        assert fx.symbolic_trace(model).code == plain
        assert len(probe.run.frame()) == 0


class Scripted(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.stem, self.fast, self.head = nn.Linear(6, 6), make(self.inner()), nn.Linear(6, 3)

    @staticmethod
    def inner():
        return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())

    def forward(self, x):
        return self.head(self.fast(self.stem(x)))


def traced(inner):
    return torch.jit.trace(inner, torch.randn(4, 6))


@pytest.mark.works_under(
    "scripted and traced submodules", group="Graphs, scripts and transforms", verdict="not observed, listed why"
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("make", [torch.jit.script, traced])
def test_scripted_submodules(make):
    inside = ["fast.0", "fast.1", "fast.2"]
    probe = check(lambda: Scripted(make), plain_loop(batches((8, 6), 4)), without=inside)
    assert why(probe) == dict.fromkeys(inside, "a scripted module runs outside of Python")
    assert probe.run.layers.set_index("name").kind[inside].tolist() == ["Linear", "BatchNorm1d", "ReLU"]


@pytest.mark.works_under("a scripted layer called from Python", group="Graphs, scripts and transforms")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_a_scripted_leaf_is_seen_from_outside():
    model, x = nn.Sequential(nn.Linear(6, 6), torch.jit.script(nn.LayerNorm(6))), torch.randn(8, 6)
    y = model(x)
    for statistics in (EXACT, DEFAULT):
        with bnprobe.attach(model, *statistics) as probe:
            model(x).sum().backward()
        variance = probe.run.frame(layer="1", place="output", statistic="variance").value.item()
        assert variance == pytest.approx(float(y.detach().double().var(correction=0)), rel=1e-5)
        assert probe.run.layers.family.tolist() == ["linear", "layer_norm"]
        assert not why(probe)


@pytest.mark.works_under(
    "torch.jit.trace and torch.export of an attached model", group="Graphs, scripts and transforms"
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_an_attached_model_is_exported_as_a_plain_one():
    model, x = plain_mlp(), torch.randn(8, 6)

    def graphs():
        traced = re.sub(r"___torch_mangle_\d+\.", "", str(torch.jit.trace(model, x, check_trace=False).graph))
        return traced, str(torch.export.export(model, (x,)).graph)

    plain = graphs()
    with bnprobe.attach(model, *EXACT) as probe:
        assert graphs() == plain
    assert len(probe.run.frame()) == 0


# Activation checkpointing.


def selective():
    return create_selective_checkpoint_contexts([torch.ops.aten.addmm.default, torch.ops.aten.mm.default])


WAYS = {
    "reentrant": functools.partial(checkpoint, use_reentrant=True),
    "non-reentrant": functools.partial(checkpoint, use_reentrant=False),
    "selective": functools.partial(checkpoint, use_reentrant=False, context_fn=selective),
    "no checkpoint": lambda body, x: body(x),
}


class Checkpointed(nn.Module):
    """A shared block under a checkpoint twice, with dropout inside and a checkpoint within."""

    def __init__(self, way):
        super().__init__()
        self.way, self.stem, self.head = way, nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm, self.act, self.drop = nn.LayerNorm(6), nn.ReLU(inplace=True), nn.Dropout(0.2)
        self.inner = nn.Linear(6, 6)

    def block(self, x):
        return self.drop(self.act(self.norm(self.inner(x)))) + x

    def forward(self, x):
        x = self.stem(x)
        for _ in range(2):
            x = WAYS[self.way](self.block, x)
        return self.head(x)


@pytest.mark.works_under(
    "checkpointing, reentrant, not, and selective: counted once, with gradients", group="Activation checkpointing"
)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("statistics", "rel"), [(EXACT, 1e-9), (DEFAULT, 2e-5)])
def test_checkpointing_records_what_training_without_it_does(way, statistics, rel):
    """The twin under naive hooks trains without checkpoints: the numbers must be the same, calls and all."""
    loop = plain_loop(batches((8, 6), 3))

    def naively(model, optimizer):
        naive = Naive(model)
        optimizer.register_step_post_hook(naive.tick)
        return naive

    naive = trained(lambda: Checkpointed("no checkpoint"), loop, listen=naively)[2]
    plain = snapshot(*trained(lambda: Checkpointed(way), loop)[:2])
    listen = lambda m, o: bnprobe.attach(m, *statistics, optimizer=o, sample=LARGE)  # noqa: E731
    model, optimizer, probe = trained(lambda: Checkpointed(way), loop, listen=listen)
    probe.detach()
    assert_same(plain, snapshot(model, optimizer))
    agree(probe.run, naive.seen, rel)
    assert probe.run.frame(layer="inner", place="grad_output", statistic="mean").call.tolist() == [0, 1] * 3


class Sequence(nn.Module):
    def __init__(self, segments):
        super().__init__()
        self.body, self.segments = cnn(), segments

    def forward(self, x):
        if not self.segments:
            return self.body(x)
        return checkpoint_sequential(self.body, self.segments, x.requires_grad_(), use_reentrant=False)


@pytest.mark.works_under("checkpoint_sequential with accumulation", group="Activation checkpointing")
def test_checkpointed_micro_batches():
    data = batches((4, 3, 6, 6), 4)

    def loop(model, optimizer):
        for i, (x, y) in enumerate(data):
            F.cross_entropy(model(x), y).backward()
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()

    def naively(model, optimizer):
        naive = Naive(model)
        optimizer.register_step_post_hook(naive.tick)
        return naive

    # Running statistics move twice under a checkpoint, with and without a probe; what the layers compute does not.
    naive = trained(lambda: Sequence(0), loop, listen=naively)[2]
    plain = snapshot(*trained(lambda: Sequence(3), loop)[:2])
    model, optimizer, probe = trained(
        lambda: Sequence(3), loop, listen=lambda m, o: bnprobe.attach(m, *EXACT, optimizer=o)
    )
    probe.detach()
    assert_same(plain, snapshot(model, optimizer))
    agree(probe.run, naive.seen)


@pytest.mark.works_under("a second backward through the same graph", group="Activation checkpointing")
def test_two_backwards_through_one_graph():
    """Each brings gradients of its own; they merge into the step's."""
    model, x = plain_mlp(), torch.randn(8, 6)
    optimizer = sgd(model.parameters())
    naive = Naive(model)
    with bnprobe.attach(model, *EXACT, optimizer=optimizer) as probe:
        y = model(x)
        y[:, 0].sum().backward(retain_graph=True)
        y[:, 1].square().sum().backward()
        optimizer.step()
    agree(probe.run, naive.seen)
    assert probe.run.frame(layer="3", place="grad_output", statistic="mean")["count"].tolist() == [48]


@pytest.mark.works_under("double backward (gradient penalty)", group="Activation checkpointing")
def test_a_gradient_penalty():
    data = batches((8, 6), 2)

    def loop(model, optimizer):
        for x, y in data:
            optimizer.zero_grad()
            x = x.clone().requires_grad_()
            loss = F.cross_entropy(model(x), y)
            (slope,) = torch.autograd.grad(loss, x, create_graph=True)
            (loss + slope.square().sum()).backward()
            optimizer.step()

    check(plain_mlp, loop)
