"""Batch normalization, by running statistics and by the batch's own."""

import torch
from torch import Tensor, nn

from bnprobe.measures.jacobian.closed.normalizer import gain, normalizer, one_gain
from bnprobe.measures.jacobian.closed.union import Block, numel_of, union
from bnprobe.measures.jacobian.values import SingularValues

__all__ = ["batch_norm"]


def batch_norm(
    module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, x: Tensor, per: str | None
) -> SingularValues | None:
    r"""Singular values of one batch norm.

    By running statistics a diagonal, |gamma| / sqrt(v + eps) in every channel. By the batch's own, of one channel
    with m values, biased variance s^2 and sigma^2 = s^2 + eps,

    .. math:: J = \frac{\gamma}{\sigma} (I - 11^T / m - \hat x \hat x^T / m)

    with the singular values 0 (once), |gamma| eps / sigma^3 (once) and |gamma| / sigma (m - 2 times; of a constant
    channel m - 1 times, as the second is the same). The samples of the batch interact: it is one Jacobian. With
    ``per="sample"`` the batch's statistics are held fixed, and each sample has the diagonal |gamma| / sigma.
    """
    channels, positions = x.shape[1], numel_of(x) // x.shape[1]
    if channels != module.num_features:
        return None
    gamma = torch.ones(channels, device=x.device) if module.weight is None else module.weight.detach()
    gamma = gamma.double()
    inputs = numel_of(x)
    if not module.training and module.running_mean is not None and module.running_var is not None:
        values, error, _ = gain(gamma, module.running_var.double() + module.eps)
        return union([Block(values, error, positions)], (inputs, inputs), len(x))
    m = len(x) * positions
    if m < 2:
        return None  # the layer itself refuses
    batch = normalizer(x.detach().transpose(0, 1).reshape(1, channels, m), module.eps)
    blocks = one_gain(gamma, batch)
    if per == "sample":
        return union([blocks[0]._replace(times=positions)], (inputs, inputs), len(x))
    return union(blocks, (x.numel(), x.numel()), 1, coupled=True)
