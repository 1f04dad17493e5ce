"""Group norm stands where batch norm stood, and never with groups of one value."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnprobe.errors import ArgumentError, SelectionError
from bnprobe.remedies import to_group_norm
from tests.cases import cnn, mlp


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(32)
        self.again, self.kept = self.norm, [self.norm]  # a list that PyTorch does not look into

    def forward(self, x):
        return self.again(self.kept[0](x)[:, :, ::2, ::2])


class Doubled(nn.BatchNorm1d):
    def forward(self, x):
        return 2 * super().forward(x)


def count(channels, size=None, groups=None, norm=nn.BatchNorm2d):
    shape = (2, channels) if norm is nn.BatchNorm1d else (2, channels, size or 1, 1)
    batch = None if size is None else torch.randn(shape)
    return to_group_norm(nn.Sequential(norm(channels)), groups, batch=batch)[0].num_groups


@given(st.integers(1, 96), st.integers(1, 40))
def test_as_many_groups_as_have_16_values(channels, size):
    if channels * size < 2:
        return
    found = count(channels, size)
    right = [g for g in range(1, 33) if channels % g == 0 and channels // g * size >= 16]
    assert found == (right[-1] if right else 1)


def test_without_a_batch_the_worst_is_assumed():
    assert (count(64), count(64, 1), count(64, 16), count(512), count(512, 4)) == (4, 4, 32, 32, 32)
    assert count(12, norm=nn.BatchNorm1d) == count(12, 1, norm=nn.BatchNorm1d) == 1


def test_outputs_are_those_of_group_norm():
    model = cnn().train()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    model[1].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(4, 3, 9, 9)
    new = to_group_norm(model, 4, batch=(x, None), layers="1")
    norm = new[1]
    assert norm.training
    assert [one.requires_grad for one in norm.parameters()] == [True, False]
    inside = model[0](x)
    grouped = inside.reshape(4, 4, -1)
    expected = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = expected.reshape_as(inside) * model[1].weight.reshape(-1, 1, 1) + model[1].bias.reshape(-1, 1, 1)
    torch.testing.assert_close(norm(new[0](x)), expected)
    one_by_one = torch.cat([new(one[None]) for one in x])
    torch.testing.assert_close(new(x), one_by_one)  # no sample depends on others
    torch.testing.assert_close(new.eval()(x), one_by_one)
    assert model.training
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert norm.weight is not model[1].weight


def test_dtype_and_what_there_is_of_affine():
    plain = to_group_norm(nn.Sequential(nn.BatchNorm1d(32, affine=False, eps=0.1)).double())[0]
    assert (plain.affine, plain.eps, list(plain.parameters())) == (False, 0.1, [])
    half = to_group_norm(nn.Sequential(nn.BatchNorm1d(32)).half().eval())[0]
    assert half.weight.dtype is torch.float16
    assert not half.training
    assert isinstance(to_group_norm(nn.SyncBatchNorm(32)), nn.GroupNorm)


def test_a_layer_stays_one_wherever_it_is_referred_to():
    model = Shared()
    new = to_group_norm(model, batch=torch.randn(2, 32, 4, 4))
    assert isinstance(new.norm, nn.GroupNorm)
    assert new.norm is new.again is new.kept[0]
    assert new.norm.num_groups == 8  # the second call has four positions
    assert isinstance(model.kept[0], nn.BatchNorm2d)


def test_degenerate_groups_are_refused():
    with pytest.raises(ArgumentError, match=r"groups=12 leaves groups of one value in '1': without more than one posi"):
        to_group_norm(mlp(), 12)
    with pytest.raises(ArgumentError, match=r"groups=12 leaves groups of one value in '1': the output would be beta"):
        to_group_norm(mlp(), 12, batch=torch.randn(3, 6))
    assert count(8, 2, groups=8) == 8
    for groups in (5, 0):
        with pytest.raises(ArgumentError, match=rf"groups must divide .* '1' has 12, got {groups}"):
            to_group_norm(mlp(), groups)
    with pytest.raises(
        SelectionError, match=r"can be converted: '0': one value a sample has no variance; batch= shows"
    ):
        to_group_norm(nn.Sequential(nn.BatchNorm1d(1)))
    with pytest.raises(SelectionError, match=r"can be converted: '0': one value a sample has no variance$"):
        to_group_norm(nn.Sequential(nn.BatchNorm1d(1)), batch=torch.randn(3, 1))


def test_what_cannot_be_converted_is_said():
    model = nn.Sequential(nn.BatchNorm1d(32), Doubled(32), nn.BatchNorm1d(32), nn.BatchNorm1d(32))
    model[2].register_forward_hook(lambda *_: None)
    nn.utils.parametrize.register_parametrization(model[3], "weight", nn.Identity())
    told = "'1': Doubled has a forward of its own; '2': it has hooks; '3': it has parametrizations"
    with pytest.warns(UserWarning, match=told):
        new = to_group_norm(model)
    assert [isinstance(one, nn.GroupNorm) for one in new] == [True, False, False, False]
    with pytest.raises(SelectionError, match="no batch norm layer in Linear"):
        to_group_norm(nn.Linear(2, 2))


def test_the_example_leaves_no_trace():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(32))
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    to_group_norm(model, batch=torch.ones(2, 32, 4, 4))
    assert all(torch.equal(state[name], one) for name, one in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert model[0].training
