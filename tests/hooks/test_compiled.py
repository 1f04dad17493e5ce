"""What is recorded inside ``torch.compile`` is what is recorded without it."""

import copy
import dataclasses
import gc
import pickle
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import bnprobe
from bnprobe import statistics as s
from tests.cases import Residual, batches, cnn, mlp, train

pytestmark = pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")  # torch warns of global hooks
KEYS = ["step", "phase", "layer", "call", "place", "statistic", "level"]
MODELS = {"mlp": (mlp, (16, 6)), "cnn": (cnn, (8, 3, 9, 9)), "residual": (Residual, (8, 3, 6, 6))}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(model, backend="aot_eager", **settings):
    return torch.compile(model, backend=backend, fullgraph=True, **settings)


def graphs():
    return counters["stats"]["unique_graphs"]


def record(make, shape, wrap=lambda model: model, steps=2, loop=train, every=1, measured=()):
    """Train a model, wrapped, with a probe whose samples hold every value."""
    torch.manual_seed(0)
    model = make()
    called, optimizer = wrap(model), torch.optim.SGD(model.parameters(), 0.1)
    chosen = measured or (s.Moments(), s.Gradients(), s.RunningGap())
    with bnprobe.attach(model, *chosen, optimizer=optimizer, sample=10**6, every=every) as probe:
        loop(called, optimizer, batches(shape, steps))
    return probe.run, model


def assert_same(run, reference, tolerance):
    both = reference.frame().merge(run.frame(), on=KEYS, how="outer", suffixes=("", "_too"), indicator=True)
    assert (both._merge == "both").all(), both[both._merge != "both"][KEYS]
    scale = both.value.abs() + 1e-2
    assert ((both.value - both.value_too).abs() <= tolerance * scale).all()
    assert (both["count"] == both.count_too).all()


@pytest.mark.works_under(
    "fullgraph=True, zero graph breaks: inputs, outputs and gradients as in eager mode", group="torch.compile"
)
@pytest.mark.parametrize("name", MODELS)
def test_records_are_those_of_eager_mode(name):
    make, shape = MODELS[name]
    run, model = record(make, shape, compiled)
    assert graphs() == 1
    assert not counters["graph_break"]
    reference, plain = record(make, shape)
    assert_same(run, reference, 1e-5)
    assert (run.layers.observed == reference.layers.observed).all()
    assert set(run.frame().place) == {"input", "output", "grad_output", "weight"}
    for mine, its in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, its)


def test_inductor_records_what_eager_mode_does():
    run, _ = record(mlp, (16, 6), lambda model: compiled(model, "inductor"))
    reference, _ = record(mlp, (16, 6))
    assert_same(run, reference, 1e-3)  # its own kernels, which sum in another order
    assert graphs() == 1


@pytest.mark.works_under("inductor", group="torch.compile")
def test_inductor_trains_to_the_same_bits_with_and_without():
    weights = []
    for recorded in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        probe = bnprobe.attach(model, optimizer=optimizer) if recorded else None
        train(compiled(model, "inductor"), optimizer, batches((16, 6), 3))
        if probe is not None:
            probe.detach()
            assert probe.run.layers.observed.all()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.works_under(
    "attached before and after (one compilation more); torch.compile(model), model.compile(), compiled losses",
    group="torch.compile",
)
@pytest.mark.parametrize("how", ["function", "method", "loss"])
def test_attached_after_compiling_the_model_is_compiled_once_more(how):
    torch.manual_seed(0)
    model = Residual()
    if how == "method":
        model.compile(backend="aot_eager", fullgraph=True)
    called = compiled(model) if how == "function" else model
    call = compiled(lambda x: model(x).square().mean()) if how == "loss" else lambda x: called(x).square().mean()
    other = nn.Sequential(nn.Linear(6, 3), nn.ReLU())
    call_other = compiled(other)
    x, y = torch.randn(8, 3, 6, 6), torch.randn(4, 6)
    call(x), call_other(y)
    before = graphs()
    with bnprobe.attach(model, s.Moments(), s.Gradients()) as probe:
        for _ in range(3):
            call(x).backward()
            probe.step()
    assert graphs() == before + 1
    assert probe.run.layers.observed.all()
    assert (probe.run.frame(place="grad_output").step.unique() == [0, 1, 2]).all()
    call_other(y)
    assert graphs() == before + 1  # another model's graph is left alone
    call(x)
    assert graphs() == before + 2
    call(x)
    assert graphs() == before + 2


@pytest.mark.works_under("schedules, without another graph", group="torch.compile")
def test_the_schedule_is_no_part_of_the_graph():
    run, _ = record(mlp, (16, 6), compiled, steps=11, every=5)
    assert graphs() == 1
    reference, _ = record(mlp, (16, 6), steps=11, every=5)
    assert set(run.frame().step) == {0, 5, 10}
    assert_same(run, reference, 1e-5)


@pytest.mark.works_under("compiled parts of a model", group="torch.compile")
def test_a_compiled_part_of_a_model_called_twice():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
            self.part = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
            self.called = [self.part]

        def forward(self, x):
            return self.last(self.called[0](self.called[0](self.first(x))))

    def wrap(model):
        model.called = [compiled(model.part)]
        return model

    run, _ = record(Whole, (16, 6), wrap)
    reference, _ = record(Whole, (16, 6))
    assert_same(run, reference, 1e-6)
    assert set(run.frame(layer="part.0", place="grad_output").call) == {0, 1}

    def two_forwards(model, optimizer, data):
        for x, y in data:
            losses = [F.cross_entropy(model(x), y), F.cross_entropy(model(2 * x), y)]
            for loss in losses:
                loss.backward()
            optimizer.step()

    run, _ = record(Whole, (16, 6), wrap, loop=two_forwards)
    assert run.frame(layer="part.0", place="grad_output").empty  # which call's it is cannot be told
    assert "several forwards" in run.layers.set_index("name").why["part.0"]


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU())
        self.last = nn.Linear(8, 3)
        self.called = [self.block]

    def forward(self, x):
        return self.last(checkpoint(self.called[0], self.first(x), use_reentrant=False))


@pytest.mark.works_under("checkpointing inside and around", group="torch.compile")
@pytest.mark.parametrize("where", ["inside", "around"])
def test_recomputation_is_counted_once(where):
    def wrap(model):
        if where == "inside":
            return compiled(model)
        model.called = [compiled(model.block)]
        return model

    run, _ = record(Checkpointed, (16, 6), wrap)
    reference, _ = record(Checkpointed, (16, 6))
    assert_same(run, reference, 1e-5)


def test_an_overwritten_input_is_not_shown():
    class Doubles(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return x.mul_(2) * self.weight

    run, _ = record(lambda: nn.Sequential(nn.Linear(6, 8), Doubles(), nn.Linear(8, 3)), (16, 6), compiled)
    assert run.frame(layer="1", place="input").empty
    assert not run.frame(layer="1", place="output").empty
    assert run.layers.set_index("name").why["1"] == "input: the layer writes into it"


def test_eval_and_inference_between_steps():
    def loop(model, optimizer, data):
        for x, y in data:
            model.train()
            F.cross_entropy(model(x), y).backward()
            model.eval()
            with torch.no_grad():
                model(x)
            with torch.inference_mode():
                model(x)
            optimizer.step()

    run, _ = record(mlp, (16, 6), compiled, loop=loop)
    reference, _ = record(mlp, (16, 6), loop=loop)
    assert_same(run, reference, 1e-5)
    assert set(run.frame().phase) == {"train", "eval"}


@pytest.mark.works_under(
    "layers inside cond, vmap and other higher-order operators; outputs in dataclasses",
    group="torch.compile",
    verdict="not observed, listed why",
)
def test_where_no_operator_may_stand_the_inventory_says_so():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.mapped, self.branch, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = torch.vmap(self.mapped)(x)
            return self.last(torch.cond(x.sum() > 0, lambda x: self.branch(x), lambda x: self.branch(x) + 1, (x,)))

    run, _ = record(Mapped, (16, 6), compiled)
    layers = run.layers.set_index("name")
    assert layers.observed.to_dict() == {"mapped": False, "branch": False, "last": True}
    assert layers.why["mapped"] == "the layer ran inside a torch.func transform"
    assert layers.why["branch"] == "it ran inside cond inside torch.compile"


def test_structures():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x, more):
            return {"a": x * self.weight, "b": (more + 1, [x * 2])}

    @dataclasses.dataclass
    class Boxed:
        x: torch.Tensor

    class Boxes(nn.Linear):
        def forward(self, x):
            return Boxed(super().forward(x))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.several, self.boxes = Several(), Boxes(6, 3)

        def forward(self, x):
            made = self.several(x, more=x + 1)
            return self.boxes(made["a"] + made["b"][0] + made["b"][1][0]).x

    run, _ = record(Model, (16, 6), compiled)
    reference, _ = record(Model, (16, 6))
    part, whole = (one.frame(layer="several") for one in (run, reference))
    assert set(part.place) == set(whole.place)
    assert set(run.frame(layer="boxes").place) == {"input", "weight"}
    assert run.layers.set_index("name").why["boxes"].startswith("output: no plain tensor")


def test_many_blocks_compiled_one_by_one_do_not_reach_the_limit_on_recompilations():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)

        def forward(self, x):
            return x + self.linear(self.norm(x))

    def wrap(model):
        for block in model:
            block.compile(backend="aot_eager", fullgraph=True)
        return model

    make = lambda: nn.Sequential(*(Block() for _ in range(10)))  # noqa: E731
    run, _ = record(make, (16, 6), wrap)
    reference, _ = record(make, (16, 6))
    assert_same(run, reference, 1e-5)
    assert graphs() == 10  # each belongs to its block


def test_another_instance_of_the_class_is_not_taken_for_the_model():
    model, other = Residual(), Residual()
    call, call_other = compiled(model), compiled(other)
    x = torch.randn(8, 3, 6, 6)
    with bnprobe.attach(model, s.Moments()) as probe:
        call(x), call_other(1000 * x)
    assert probe.run.frame(place="input", statistic="max").value.max() < 100


def test_detached_the_graph_is_dropped_and_attaching_again_works():
    model = Residual()
    call, x = compiled(model), torch.randn(4, 3, 6, 6)
    for _ in range(9):  # more often than dynamo compiles a function again
        with bnprobe.attach(model, s.Moments()) as probe:
            call(x)
            taps = weakref.ref(probe._taps._compiled)
        assert probe.run.layers.observed.all()
        gc.collect()
        assert taps() is None
    made = graphs()
    call(x), call(x)
    assert graphs() == made + 1


def test_detached_in_the_middle_of_a_step():
    model = mlp()
    loss = compiled(model)(torch.randn(16, 6)).square().mean()
    with bnprobe.attach(model, s.Moments(), s.Gradients()) as probe:
        loss = compiled(model)(torch.randn(16, 6)).square().mean()
    loss.backward()  # this graph's operators know nobody any more
    assert probe.run.frame(place="grad_output").empty
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_failing_statistic_stops_nobody():
    class Bad(s.Statistic):
        reads_all = True

        def applies(self, site, place):
            return True

        def update(self, state, seen):
            raise RuntimeError("boom")

        def merge(self, a, b):
            return a

        def finish(self, states):
            return {}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        run, _ = record(mlp, (16, 6), compiled, measured=(Bad(),))
    assert (run.layers.why == "RuntimeError: boom").all()


def test_copies_and_pickles_of_a_compiled_model_are_plain():
    model = mlp()
    call, x = compiled(model), torch.randn(16, 6)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    with bnprobe.attach(model, s.Moments()) as probe:
        call(x)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            copied(1000 * x)
            assert {name: set(vars(module)) for name, module in copied.named_modules()} == before
    assert probe.run.frame(layer="0", place="input", statistic="max").value.max() < 100
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_an_exported_program_holds_nothing_of_ours():
    model = mlp().eval()
    with bnprobe.attach(model, s.Moments()):
        program = torch.export.export(model, (torch.randn(4, 6),))
    assert not [node for node in program.graph.nodes if "bnprobe" in str(node.target)]
