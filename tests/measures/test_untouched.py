"""Whatever happens inside, model and random streams are afterwards bitwise what they were."""

import copy
import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from bnprobe.errors import ArgumentError
from bnprobe.measures.untouched import untouched
from tests.cases import CASES


class Vandal(nn.Module):
    """Changes everything that a forward can reach."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.register_buffer("assigned", torch.arange(3.0))
        self.register_buffer("written", torch.arange(3.0))
        self.register_buffer("missing", None)
        self.plain = torch.ones(2)
        self.calls, self.history, self.table = 0, deque([1]), {"deep": [[1], {2}]}

    def forward(self, x):
        self.calls += 1
        self.history.append(x)
        self.table["deep"][0].append(3)
        self.table["new"] = x
        self.assigned = self.assigned + 1
        self.written.add_(1)
        self.missing = torch.zeros(1)
        self.plain.mul_(2)
        self.extra = x
        with torch.no_grad():
            self.inner[0].weight.add_(1)
            self.inner[0].bias.data = torch.zeros(3)
        self.inner[0].weight.requires_grad_(False)
        self.inner[1].eval()
        self.inner[0].register_forward_hook(lambda *_: None)
        np.random.rand(), random.random()  # noqa: NPY002
        return self.inner(x)


def state(model):
    """Everything, as values that compare."""
    found = {}
    for name, module in model.named_modules():
        tables = {"": module.__dict__, "p": module._parameters, "b": module._buffers}
        for kind, table in tables.items():
            for key, value in table.items():
                if isinstance(value, torch.Tensor):
                    grad = value.grad if value.is_leaf else None
                    found[name, kind, key] = (id(value), value.tolist(), value.requires_grad, id(grad), str(grad))
                else:
                    found[name, kind, key] = (id(value), repr(value) if isinstance(value, dict | deque) else value)
    return found


def streams():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002


@pytest.mark.parametrize("raises", [False, True])
def test_everything_is_put_back(raises):
    model, x = Vandal(), torch.randn(4, 3)
    model.inner(x).sum().backward()
    before, drawn = state(model), streams()
    buffer = model.assigned
    try:
        with untouched(model) as origin:
            for _ in range(2):
                model(x).sum().backward()
                model.zero_grad()
            origin.rewind()
            model(x)
            if raises:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert raises
    assert state(model) == before
    assert streams() == drawn
    assert model.assigned is buffer
    assert not hasattr(model, "extra")


def test_accumulated_gradients_are_put_back_even_when_written_to():
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    gradient, values = model.weight.grad, model.weight.grad.clone()
    with untouched(model):
        model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is gradient
    assert torch.equal(gradient, values)


class Scale(nn.Module):
    """Multiplies by a buffer that it has just written to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("by", torch.ones(1))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.by.add_(1)


def test_a_rewound_forward_is_the_same_forward():
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), Scale()), torch.randn(4, 3)
    with untouched(model) as origin:
        outputs, means = [], []
        for _ in range(3):
            origin.rewind()
            outputs.append(model(x))
            means.append(model[0].running_mean.clone())
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[1], outputs[2])
        assert torch.equal(means[0], means[2])
        assert model[2].calls == 1
        outputs[0].sum().backward()  # the graph of an earlier forward is still good
        torch.testing.assert_close(model[0].bias.grad, outputs[0].sign().abs().sum(0) * 4)


def test_a_graph_that_the_user_holds_stays_good():
    model, x = CASES["cnn"][0](), torch.randn(4, 3, 9, 9)
    loss = model(x).sum()
    with untouched(model):
        model(x)
    loss.backward()


def test_a_lazy_module_is_refused():
    with pytest.raises(ArgumentError, match="lazy module; run it once"), untouched(nn.LazyLinear(3)):
        pass


def test_a_copy_made_inside_is_independent():
    model = nn.BatchNorm1d(3)
    with untouched(model) as origin:
        origin.rewind()
        twin = copy.deepcopy(model)
        model(torch.randn(4, 3))
    twin.running_mean.add_(1)
    assert torch.equal(model.running_mean, torch.zeros(3))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_buffers_of_scripted_modules_are_put_back():
    model = torch.jit.script(nn.Sequential(nn.BatchNorm1d(4)).train())
    before = copy.deepcopy(dict(model.state_dict()))
    with untouched(model):
        model(torch.randn(8, 4))
        assert not torch.equal(before["0.running_mean"], model.state_dict()["0.running_mean"])
    torch.testing.assert_close(before, dict(model.state_dict()), rtol=0, atol=0)


def test_what_is_remembered_is_put_back_too():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    with untouched(model) as origin:
        origin.remember(vars(optimizer))
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 7.0
        assert optimizer.state
    assert not optimizer.state
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["params"][0] is model.weight
