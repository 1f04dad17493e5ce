import collections
import copy
import dataclasses
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from bnprobe.hooks.sites import find_sites
from bnprobe.hooks.taps import Taps
from bnprobe.hooks.tensors import tensors_in, why_unreadable
from tests.cases import CASES, Residual, cnn, mlp

pytestmark = pytest.mark.usefixtures("no_hooks_left")


class Recorder:
    """A listener that keeps copies, to be compared with what per-layer hooks see."""

    def __init__(self, awake=True):
        self.recording, self.inputs, self.outputs, self.gradients, self.forwards = awake, {}, {}, {}, []

    def forward_begins(self, training):
        self.forwards.append(training)

    def about_to_change(self, call, inputs):
        return [(one.place, one.tensor.detach().clone()) for one in inputs]

    def called(self, call, inputs, outputs, read_before):
        pairs = read_before if inputs is None else [(one.place, one.tensor.detach().clone()) for one in inputs]
        for place, tensor in pairs:
            self.inputs[call.site.name, call.index, place] = tensor
        for one in outputs:
            self.outputs[call.site.name, call.index, one.place] = one.tensor.detach().clone()

    def graded(self, call, place, gradient):
        self.gradients.setdefault((call.site.name, call.index, place), []).append(gradient.clone())


@pytest.fixture
def tapped():
    taken = []

    def tap(model, layers=None, awake=True):
        listener = Recorder(awake)
        taken.append(Taps(find_sites(model, layers), model, listener))
        return listener, taken[-1]

    yield tap
    for taps in taken:
        taps.remove()


@pytest.mark.parametrize("name", CASES)
def test_inputs_outputs_and_gradients_are_those_of_the_layers(name, tapped):
    make, shape = CASES[name]
    model, x = make(), torch.randn(shape)
    twin, expected, retained = copy.deepcopy(model), {}, {}
    for path, module in twin.named_modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # the twin is read after the fact

        def keep(module, args, output, path=path):
            tensor = output[0] if isinstance(output, tuple) else output
            index = sum(key[0] == path for key in expected)
            expected[path, index] = (args[0].detach().clone(), tensor.detach().clone())
            tensor.retain_grad()
            retained[path, index] = tensor

        module.register_forward_hook(keep)
    listener, _ = tapped(model)
    rng = torch.get_rng_state()
    model(x).square().sum().backward()
    torch.set_rng_state(rng)
    twin(x).square().sum().backward()
    assert listener.outputs
    for path, index, place in listener.outputs:
        if place == "output":
            torch.testing.assert_close(listener.outputs[path, index, place], expected[path, index][1], rtol=0, atol=0)
            torch.testing.assert_close(listener.inputs[path, index, "input"], expected[path, index][0], rtol=0, atol=0)
            (gradient,) = listener.gradients[path, index, "grad_output"]
            torch.testing.assert_close(gradient, retained[path, index].grad, rtol=1e-6, atol=1e-7)


def test_nothing_is_put_on_the_model(tapped):
    model = cnn()
    before = [dict(module.__dict__) for module in model.modules()]
    tapped(model)
    model(torch.randn(4, 3, 9, 9)).sum().backward()
    for module, was in zip(model.modules(), before, strict=True):
        assert module.__dict__.keys() == was.keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_copies_and_pickles_are_not_listened_to(tapped):
    model, x = mlp(), torch.randn(8, 6)
    listener, _ = tapped(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(x)
    assert not listener.outputs


def test_removed_twice_and_deaf_afterwards(tapped):
    model = mlp()
    listener, taps = tapped(model)
    output = model(torch.randn(8, 6))
    seen = len(listener.outputs)
    taps.remove()
    taps.remove()
    listener.recording = False
    output.sum().backward()
    model(torch.randn(8, 6))
    assert len(listener.outputs) == seen
    assert not listener.gradients


def test_asleep_it_reads_nothing(tapped):
    model = mlp()
    listener, _ = tapped(model, awake=False)
    model(torch.randn(8, 6)).sum().backward()
    assert not listener.outputs
    assert not listener.gradients
    assert listener.forwards == [True]


def test_calls_are_counted_within_one_forward(tapped):
    model = Residual()
    listener, _ = tapped(model)
    for _ in range(2):
        model(torch.randn(4, 3, 6, 6))
    assert {(name, index) for name, index, _ in listener.outputs if name == "shared"} == {("shared", 0), ("shared", 1)}


def test_a_layer_called_past_the_root_is_seen(tapped):
    model = mlp()
    listener, _ = tapped(model)
    for _ in range(3):
        model[0](torch.randn(8, 6))
    assert {key[:2] for key in listener.outputs} == {("0", 0)}


def test_after_a_forward_that_failed_the_next_counts_anew(tapped):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.fail = nn.Linear(3, 3), True

        def forward(self, x):
            x = self.first(x)
            if self.fail:
                raise RuntimeError("on purpose")
            return self.first(x)

    model = Fails()
    listener, _ = tapped(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        model(torch.randn(2, 3))
    model.fail = False
    model(torch.randn(2, 3))
    assert {key[1] for key in listener.outputs} == {0, 1}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_told_once_and_graded(reentrant, tapped):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh())

        def forward(self, x):
            return checkpoint(self.body, self.stem(x), use_reentrant=reentrant)

    model, x = Checkpointed(), torch.randn(4, 6)
    plain_listener, plain = tapped(model)
    model.body(model.stem(x)).sum().backward()
    plain.remove()
    counts = collections.Counter()
    listener, _ = tapped(model)
    called = listener.called
    listener.called = lambda call, *rest: (counts.update([call.site.name]), called(call, *rest))
    model(x).sum().backward()
    assert set(counts.values()) == {1}
    for key, gradients in plain_listener.gradients.items():
        assert len(listener.gradients[key]) == 1
        torch.testing.assert_close(listener.gradients[key], gradients)


def test_hooks_on_parameters_come_off_with_the_step(tapped):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.weight

    model = nn.Sequential(Constant())
    listener, taps = tapped(model)
    model(torch.zeros(1)).sum().backward()
    assert len(listener.gradients["0", 0, "grad_output"]) == 1
    taps.step_done()
    assert not model[0].weight._backward_hooks


def test_an_input_that_was_overwritten_in_between_is_no_longer_the_same(tapped):
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(x).add_(1))

    model = Overwrites()
    listener, taps = tapped(model)
    listener.called = lambda call, inputs, outputs, before: [
        (taps.remember(one.tensor, call.site.name), memories.append((call.site.name, inputs[0].memory)))
        for one in outputs
    ]
    memories = []
    model(torch.randn(2, 3))
    assert memories == [("a", None), ("b", None)]
    memories.clear()
    nn.Sequential.forward([model.a, model.b], torch.randn(2, 3))
    assert memories == [("a", None), ("b", "a")]


def test_functional_operations_are_looked_through_for_what_feeds_what(tapped):
    model = Residual()
    _, taps = tapped(model)
    model(torch.randn(2, 3, 6, 6))
    edges = {name: set(readers) for name, readers in taps.flow.edges.items()}
    assert edges == {
        "conv1": {"bn1"},
        "bn1": {"shared", "head"},
        "shared": {"bn2"},
        "bn2": {"head"},
    }


def test_an_in_place_activation_is_fed_by_the_layer_before(tapped):
    model = cnn()
    _, taps = tapped(model)
    model(torch.randn(2, 3, 6, 6))
    assert (taps.flow.edges["1"], taps.flow.edges["2"]) == (["2"], ["3"])


@dataclasses.dataclass
class Output:
    hidden: torch.Tensor
    extra: tuple


def test_tensors_are_found_in_structures():
    t = [torch.zeros(1) for _ in range(5)]
    structure = {"a": t[0], "b": [t[1], (t[2], None)], "c": Output(t[3], (t[4], "x"))}
    assert [path for path, _ in tensors_in(structure)] == ["a", "b.0", "b.1.0", "c.hidden", "c.extra.0"]
    packed = nn.utils.rnn.pack_sequence([torch.zeros(3, 2), torch.zeros(2, 2)])
    assert [path for path, _ in tensors_in(packed)] == ["data"]


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.zeros(2), ""),
        (torch.zeros(2, dtype=torch.bfloat16), ""),
        (torch.zeros(2, dtype=torch.int64), "int64 values"),
        (torch.zeros(2, dtype=torch.bool), "bool values"),
        (torch.zeros(2, dtype=torch.complex64), "complex64 values"),
        (torch.zeros(0, 3), "no values"),
        (torch.zeros(3, 0), "no values"),
        (torch.eye(2).to_sparse(), "sparse_coo layout"),
        (torch.zeros(2, device="meta"), "meta tensors hold no values"),
    ],
)
def test_why_a_tensor_is_not_read(tensor, why):
    assert why_unreadable(tensor) == why


def test_transformed_tensors_are_not_read(tapped):
    reasons = []
    model = nn.Sequential(nn.Linear(3, 3))
    listener, _ = tapped(model)
    listener.called = lambda call, inputs, outputs, before: reasons.append(why_unreadable(outputs[0].tensor))
    torch.func.vmap(model)(torch.randn(4, 3))
    assert reasons == ["the layer ran inside a torch.func transform"]


def test_inference_mode_and_no_grad(tapped):
    model, x = mlp().eval(), torch.randn(8, 6)
    listener, _ = tapped(model)
    with torch.inference_mode():
        model(x)
    with torch.no_grad():
        F.relu(model(x))
    assert ("0", 0, "output") in listener.outputs
    assert not listener.gradients
