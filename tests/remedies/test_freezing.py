"""Frozen layers stay in eval mode whatever is done to the model, and nothing else about them changes."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bnprobe.errors import ArgumentError, SelectionError
from bnprobe.remedies import freeze, is_frozen, unfreeze
from tests.cases import batches, cnn, mlp, train


class Activated(nn.BatchNorm1d):
    """As third parties have it: a batch norm with its activation inside."""

    def __init__(self, width):
        super().__init__(width)
        self.act = nn.RReLU()

    def forward(self, x):
        return self.act(super().forward(x))


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS = {
    "itself": lambda model: model,
    "copy": copy.deepcopy,
    "copy of a copy": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "shallow copies": lambda model: nn.Sequential(*(copy.copy(one) for one in model)),
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "pickle 0": lambda model: pickle.loads(pickle.dumps(model, protocol=0)),
    "torch.save": saved,
    "average": lambda model: AveragedModel(model).module,
    "double": lambda model: model.double().float(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm, Activated])
def test_it_stays_frozen(way, norm):
    model = mlp(norm=norm)
    keys = list(model.state_dict())
    assert freeze(model) is model
    model = WAYS[way](model).train()
    assert list(model.state_dict()) == keys
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, batches((16, 6), 3))
    after = copy.deepcopy(model.state_dict())
    changed = {name.rpartition(".")[2] for name in keys if not torch.equal(before[name], after[name])}
    assert changed == {"weight", "bias"}
    assert [one.training for one in model] == [True, False, True, True, False, True, True]
    assert all(isinstance(model[i], norm) and is_frozen(model[i]) for i in (1, 4))
    assert not is_frozen(model[0])
    unfreeze(model)
    assert [type(model[i]) for i in (1, 4)] == [norm, norm]
    assert model[1].training
    if norm is not nn.SyncBatchNorm:  # whose training needs a GPU
        model(torch.randn(9, 6))
        assert not torch.equal(model.state_dict()["1.running_mean"], after["1.running_mean"])


def test_the_same_output_as_in_eval_mode():
    model, x = cnn(), torch.randn(4, 3, 9, 9)
    model(x)
    expected = model.eval()(x)
    objects = [*model.parameters(), *model.buffers()]
    freeze(model.train())
    assert torch.equal(model(x), expected)
    assert all(a is b for a, b in zip(objects, [*model.parameters(), *model.buffers()], strict=True))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)
    compiled.train()
    assert torch.equal(compiled(x), expected)


def test_frozen_after_compiling_and_thawed():
    model, x = mlp(), torch.randn(8, 6)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    freeze(compiled)
    mean = model[1].running_mean.clone()
    compiled(x)
    assert torch.equal(model[1].running_mean, mean)
    unfreeze(compiled)
    compiled(x)
    assert not torch.equal(model[1].running_mean, mean)


def test_gamma_and_beta_by_option():
    model = mlp()
    model[1].bias.requires_grad_(False)
    freeze(model)
    assert [one.requires_grad for one in (*model[1].parameters(), *model[4].parameters())] == [True, False, True, True]
    freeze(model, affine=True)
    freeze(model, affine=True)  # again is nothing
    assert not any(one.requires_grad for i in (1, 4) for one in model[i].parameters())
    assert model[0].weight.requires_grad
    unfreeze(copy.deepcopy(model))
    unfreeze(model)
    assert [one.requires_grad for one in (*model[1].parameters(), *model[4].parameters())] == [True, False, True, True]
    assert not any("before" in name for name in model[1].__dict__)


def test_some_layers():
    model = freeze(mlp(), "4")
    assert [is_frozen(model[i]) for i in (1, 4)] == [False, True]
    model.eval()
    unfreeze(model)
    assert not model[4].training  # as the model


def test_a_layer_by_itself():
    layer = freeze(nn.BatchNorm1d(3))
    assert not layer.train().training
    assert repr(layer).startswith("FrozenBatchNorm1d(3, eps=1e-05")


def test_modules_inside_of_a_layer_have_the_mode_of_the_model():
    model = freeze(nn.Sequential(Activated(3)))
    assert model.train()[0].act.training
    assert not model.eval()[0].act.training


def test_nothing_to_freeze():
    without = nn.BatchNorm1d(3, track_running_stats=False)
    with pytest.raises(ArgumentError, match=r"'' keep no running statistics and normalize by the batch in every mode"):
        freeze(without)
    model = nn.Sequential(without, nn.BatchNorm1d(3))
    with pytest.raises(ArgumentError, match=r"'0' keep no .*: they cannot be frozen"):
        freeze(model, "0")
    assert not is_frozen(model[1])
    with pytest.warns(UserWarning, match=r"'0' keep no .*: they are left"):
        freeze(model)
    assert [is_frozen(one) for one in model] == [False, True]
    with pytest.raises(SelectionError, match="no batch norm layer in Linear"):
        freeze(nn.Linear(2, 2))
    with pytest.raises(SelectionError, match=r"no chosen batch norm layer is frozen by bnprobe\.remedies\.freeze"):
        unfreeze(mlp())
    with pytest.raises(ArgumentError, match="LazyBatchNorm1d; run the model once"):
        freeze(nn.Sequential(nn.LazyBatchNorm1d()))
