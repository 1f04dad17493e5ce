"""What layers are given is told call by call, and nothing stays on the model."""

import pytest
import torch
from torch import nn

import bnprobe
from bnprobe.hooks.outputs import inputs_at
from tests.cases import Residual


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.inner = nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, tokens):
        return self.inner(input=self.embed(tokens))


def listen(model, names, run):
    seen = []
    layers = {name: model.get_submodule(name) for name in names}
    with inputs_at(layers, lambda *told: seen.append(told)):
        run()
    assert not any(module._forward_pre_hooks for module in model.modules())
    return seen


def test_every_call_is_told_in_order():
    model, x = Residual().eval(), torch.randn(2, 3, 6, 6)
    seen = listen(model, ["shared", "bn1"], lambda: model(x))
    assert [told[:2] for told in seen] == [("bn1", 0), ("shared", 0), ("shared", 1)]
    torch.testing.assert_close(seen[0][2], model.conv1(x))
    assert seen[1][2].requires_grad
    assert listen(model, ["shared"], lambda: model(x))[0][1] == 0  # counted anew


def test_keywords_count_and_token_numbers_do_not():
    model, tokens = Keywords(), torch.tensor([1, 2])
    seen = listen(model, ["embed", "inner"], lambda: model(tokens))
    assert [told[:2] for told in seen] == [("inner", 0)]


def test_the_input_is_what_other_hooks_leave():
    layer = nn.Linear(3, 2)
    handle = layer.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    seen = []
    with inputs_at({"": layer}, lambda *told: seen.append(told[2])):
        layer(torch.zeros(1, 3))
    handle.remove()
    assert seen[0].tolist() == [[1, 1, 1]]


def test_hooks_come_off_when_the_model_or_the_listener_raises():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        listen(model, ["0", "1"], lambda: model(torch.zeros(1, 3)))
    assert not any(module._forward_pre_hooks for module in model.modules())

    def refuse(*_):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"), inputs_at({"0": model[0]}, refuse):
        model[0](torch.zeros(1, 3))
    assert not model[0]._forward_pre_hooks


def test_a_probe_hears_nothing_and_a_compiled_model_is_heard():
    model = nn.Sequential(nn.Linear(3, 2))
    compiled = torch.compile(model, backend="eager")
    compiled(torch.zeros(1, 3))
    with bnprobe.attach(model) as probe:
        assert len(listen(model, ["0"], lambda: compiled(torch.zeros(1, 3)))) == 1
    assert probe.run.steps.size == 0
