"""The kit's own layers against torch's, where the literature says that they are the same."""

import pytest
import torch
from torch import nn

from bnprobe.testing.layers import BatchRenorm, GhostBatchNorm


def test_one_ghost_batch_is_batch_norm():
    x = torch.randn(6, 3, 4)
    ghost, plain = GhostBatchNorm(3, 6), nn.BatchNorm1d(3)
    assert torch.equal(ghost(x), plain(x))
    assert torch.equal(ghost.norm.running_var, plain.running_var)
    assert torch.equal(ghost.eval()(x), plain.eval()(x))


def test_ghosts_are_normalized_alone_and_the_last_may_be_short():
    x = torch.randn(5, 3)
    ghost, plain = GhostBatchNorm(3, 2), nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        ghost(x)
    torch.testing.assert_close(ghost(x[:4])[2:], plain(x[2:4]))


def test_renormalization_without_room_is_batch_norm():
    x = torch.randn(6, 3, 4, requires_grad=True)
    renorm, plain = BatchRenorm(3, r_max=1.0, d_max=0.0), nn.BatchNorm1d(3)
    torch.testing.assert_close(renorm(x), plain(x))
    torch.testing.assert_close(renorm.running_var, plain.running_var)
    got, want = (torch.autograd.grad(layer(x).pow(3).sum(), x)[0] for layer in (renorm, plain))
    torch.testing.assert_close(got, want)


def test_renormalization_with_room_trains_as_it_evaluates():
    x = torch.randn(6, 3)
    renorm = BatchRenorm(3, r_max=1e3, d_max=1e3)
    renorm.eval()
    want = renorm(x)
    torch.testing.assert_close(renorm.train()(x), want)
    with pytest.raises(ValueError, match=r"expected more than 1 value per channel in training mode; got \(1, 3\)"):
        renorm(x[:1])
