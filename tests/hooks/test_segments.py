"""Pieces of a forward are cut where they are asked for, and nothing stays on the model."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.modules import module as module_hooks

import bnprobe
from bnprobe.errors import ArgumentError, NotMeasuredError, SelectionError
from bnprobe.hooks.segments import capture, cut, find_layer, outputs_of, whole
from bnprobe.hooks.tensors import tensors_in, with_tensors
from tests.cases import CASES

Pair = namedtuple("Pair", "a b")


@dataclass
class Box:
    value: torch.Tensor
    count: int = 1


class Branches(nn.Module):
    """A residual branch, a concatenation, a layer with two inputs and keyword arguments, a shared layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 3)
        self.two, self.act = nn.Bilinear(4, 4, 4), nn.ReLU(inplace=True)
        self.unused = nn.Linear(4, 4)

    def forward(self, x, scale=None):
        h = self.a(x)
        h = x + self.act(self.b(h)) + self.a(h)
        h = h if scale is None else h * scale
        return {"logits": self.c(torch.cat([h, self.two(h, x)], 1)), "hidden": h}


def gradient(segment, inputs):
    leaves = [one.detach().clone().requires_grad_() for one in inputs]
    outputs = segment([one.clone() for one in leaves])
    return torch.autograd.grad(outputs[0].sum(), leaves, allow_unused=True)


def test_a_layer_alone_is_given_what_the_forward_gives_it():
    model, x = Branches(), torch.randn(5, 4)
    segment = cut(model, x, "b")
    torch.testing.assert_close(segment.inputs[0], model.a(x))
    torch.testing.assert_close(segment(segment.inputs)[0], model.b(model.a(x)))


def test_a_segment_holds_everything_between_two_layers():
    model, x = Branches(), torch.randn(5, 4)
    segment = cut(model, x, ("b", "c"))

    def by_hand(h):
        after = x + torch.relu(model.b(h)) + model.a(h.detach())  # what went another way is constant
        return model.c(torch.cat([after, model.two(after, x)], 1))

    leaf = model.a(x).detach().requires_grad_()
    torch.testing.assert_close(segment(segment.inputs)[0], by_hand(leaf))
    torch.testing.assert_close(gradient(segment, segment.inputs)[0], torch.autograd.grad(by_hand(leaf).sum(), leaf)[0])


def test_several_inputs_and_the_first_call_of_a_shared_layer():
    model, x = Branches(), torch.randn(5, 4)
    two = cut(model, x, "two")
    assert [tuple(one.shape) for one in two.inputs] == [(5, 4), (5, 4)]
    torch.testing.assert_close(cut(model, x, "a").inputs[0], x)


def test_keyword_arguments_and_dictionaries_are_inputs():
    model, x = Branches(), torch.randn(5, 4)
    segment = whole(model, {"x": x, "scale": torch.tensor(2.0)})
    assert [one.shape for one in segment.inputs] == [(5, 4), ()]
    assert len(segment(segment.inputs)) == 1  # of a mapping the first


def test_one_tensor_passed_twice_is_one_input():
    attention = nn.MultiheadAttention(4, 2, batch_first=True)

    class Self(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x)[0]

    segment = cut(Self(), torch.randn(2, 3, 4), "attention")
    assert len(segment.inputs) == 1
    assert len(segment(segment.inputs)) == 1  # the weights are left out


def test_masks_are_no_inputs():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Bilinear(4, 4, 2)

        def forward(self, x):
            return self.inner(x, torch.ones_like(x))

    assert len(cut(Masked(), torch.randn(2, 4), "inner").inputs) == 1


def test_token_numbers_have_a_jacobian_from_the_first_layer_on():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))
    tokens = torch.tensor([[1, 2], [3, 4]])
    with pytest.raises(NotMeasuredError, match="the model's input is int64: not differentiable; choose a layer"):
        cut(model, tokens, None)
    with pytest.raises(NotMeasuredError, match="the input of '0' is int64: not differentiable"):
        cut(model, tokens, "0")
    assert cut(model, tokens, "1").inputs[0].shape == (2, 2, 4)


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("aa", SelectionError, "there is no 'aa'; near names: a"),
        ("unused", NotMeasuredError, "'unused' is not called in this forward"),
        (("c", "b"), NotMeasuredError, "in this forward the output of 'b' does not come after the input of 'c'"),
        (("a", "unused"), NotMeasuredError, "after the input of 'a'"),
        (3, ArgumentError, "layer must be None, a layer's name or a pair of names; got 3"),
        (("a", "b", "c"), ArgumentError, "pair of names"),
    ],
)
def test_what_cannot_be_cut_is_said(layer, error, message):
    model, x = Branches(), torch.randn(5, 4)
    with pytest.raises(error, match=message):
        segment = cut(model, x, layer)
        segment(segment.inputs)


def test_integer_outputs_are_no_outputs():
    with pytest.raises(NotMeasuredError, match="its output is int64: not differentiable"):
        outputs_of(nn.Identity(), torch.arange(3))


@pytest.mark.parametrize("name", CASES)
def test_no_hook_stays(name, no_hooks_left):
    make, shape = CASES[name]
    model, x = make(), torch.randn(shape)
    names = [key for key, one in model.named_modules() if key]
    capture(model, x, {key: find_layer(model, key) for key in names})
    segment = cut(model, x, (names[0], names[-1]))
    segment(segment.inputs)
    model.forward = None
    with pytest.raises(TypeError):
        capture(model, x, {names[0]: find_layer(model, names[0])})
    for one in model.modules():
        assert not one._forward_hooks
        assert not one._forward_pre_hooks


def test_an_attached_probe_hears_nothing():
    model, x = CASES["mlp"][0](), torch.randn(16, 6)
    with bnprobe.attach(model) as probe:
        model(x)
        before = list(module_hooks._global_forward_hooks)
        bnprobe.spectrum(model, x, "1")
        bnprobe.spectrum(model, x, k=2)
        assert list(module_hooks._global_forward_hooks) == before
        model(x)
    assert probe.run.steps.tolist() == [0, 1]


def test_wrappers_and_second_names_are_looked_through():
    inner = nn.Linear(2, 2)
    model = nn.Sequential(inner, nn.Sequential(inner))
    assert find_layer(model, "1.0") is inner
    assert find_layer(nn.DataParallel(model), "0") is inner


def test_structures_keep_their_kinds():
    tensor = torch.ones(2)
    value = [Pair(tensor, 1), {"x": Box(tensor), "n": None}, (tensor, "s")]
    twice = with_tensors(value, lambda one: one * 2)
    assert [type(one) for one in twice] == [Pair, dict, tuple]
    assert isinstance(twice[1]["x"], Box)
    assert all(torch.equal(one, tensor * 2) for _, one in tensors_in(twice))
    assert all(one is tensor for _, one in tensors_in(value))
