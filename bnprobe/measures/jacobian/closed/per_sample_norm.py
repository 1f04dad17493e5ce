"""Layer norm, RMS norm, group norm and instance norm: each sample has its own statistics."""

from typing import Any

import torch
from torch import Tensor, nn

from bnprobe.measures.jacobian.closed.damped import damped
from bnprobe.measures.jacobian.closed.normalizer import Normalizer, gain, normalizer, one_gain
from bnprobe.measures.jacobian.closed.union import EPS, Block, numel_of, union
from bnprobe.measures.jacobian.values import SingularValues

__all__ = ["group_norm", "instance_norm", "layer_norm"]

_LARGEST = 4096  # a layer norm of more features with unequal gammas would need a larger decomposition


def layer_norm(module: nn.LayerNorm | nn.RMSNorm, x: Tensor) -> SingularValues | None:
    r"""Of each position with d values, in the directions :math:`a = 1/\sqrt d` and :math:`b = \hat x / |\hat x|`.

    .. math:: J = \mathrm{diag}(\gamma) \frac{1}{\sigma} (I - a a^T - (1 - \epsilon / \sigma^2) b b^T)

    and without :math:`a a^T` for RMS norm. With gammas of one size this is batch norm's closed form; else the
    singular value decomposition of :math:`\mathrm{diag}(\gamma)(I - a a^T)` serves all positions, and of each
    position a rank-one change remains, see :func:`damped`.
    """
    axes = len(module.normalized_shape)
    if x.dim() <= axes or tuple(x.shape[-axes:]) != tuple(module.normalized_shape):
        return None
    centred, size = isinstance(module, nn.LayerNorm), x.shape[-axes:].numel()
    eps = module.eps
    if eps is None:  # RMS norm's default: that of the precision in which it is computed
        eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
    group = normalizer(x.detach().reshape(len(x), -1, size), eps, centred=centred)
    inputs = numel_of(x)
    sizes = _sizes(module.weight, size, x)
    if bool((sizes == sizes[0]).all()):
        return union(one_gain(sizes[:1], group, centred=centred), (inputs, inputs), len(x))
    if size > _LARGEST:
        return None
    bases = torch.diag(sizes)
    if centred:
        bases = bases - sizes[:, None] / size
    direction = _direction(group)
    return union([_damped_block(bases[None], sizes.max(), direction, group)], (inputs, inputs), len(x))


def group_norm(module: nn.GroupNorm, x: Tensor) -> SingularValues | None:
    """Layer norm's form over the channels of each group and all positions.

    Within a channel gamma is one number, so all directions but two (a shift of the channel, and its own values) have
    |gamma| / sigma; in these two of every channel lies all the rest, a matrix of twice the group's channels.
    """
    if x.dim() < 2 or x.shape[1] != module.num_channels:
        return None
    inputs, groups = numel_of(x), module.num_groups
    inside = module.num_channels // groups
    positions = inputs // module.num_channels
    sizes = _sizes(module.weight, module.num_channels, x).view(groups, inside)
    group = normalizer(x.detach().reshape(len(x), groups, -1), module.eps)
    if bool((sizes == sizes[:, :1]).all()):
        return union(one_gain(sizes[:, 0], group), (inputs, inputs), len(x))
    if inside > _LARGEST // 2:
        return None
    largest = sizes.amax(1)
    values = _direction(group).view(len(x), groups, inside, positions)
    bases = torch.diag_embed(sizes) - sizes[:, :, None] / inside
    if positions == 1:
        return union([_damped_block(bases, largest, values.squeeze(-1), group)], (inputs, inputs), len(x))
    mean = values.mean(-1)
    own = torch.linalg.vector_norm(values - mean[..., None], dim=-1)
    zero = torch.zeros_like(bases)
    bases = torch.cat([torch.cat([bases, zero], 2), torch.cat([zero, torch.diag_embed(sizes)], 2)], 1)
    direction = torch.cat([mean * positions**0.5, own], -1)
    rest = sizes / group.scale[..., None]
    rounding = group.rounding[..., None] / 2 + 2 * EPS
    blocks = [
        _damped_block(bases, largest, direction, group),
        Block(rest.flatten(1), (rest * rounding).flatten(1), positions - 2),
    ]
    return union(blocks, (inputs, inputs), len(x))


def instance_norm(module: Any, x: Tensor) -> SingularValues | None:
    """Batch norm's forms, with the statistics of each channel of each sample; m is the number of positions."""
    channels, positions = x.shape[1], numel_of(x) // x.shape[1]
    if channels != module.num_features:
        return None
    inputs = numel_of(x)
    sizes = _sizes(module.weight, channels, x)
    if not module.training and module.track_running_stats and module.running_var is not None:
        values, error, _ = gain(sizes, module.running_var.double() + module.eps)
        return union([Block(values, error, positions)], (inputs, inputs), len(x))
    if positions < 2:
        return None  # the layer itself refuses
    group = normalizer(x.detach().reshape(len(x), channels, positions), module.eps)
    return union(one_gain(sizes, group), (inputs, inputs), len(x))


def _sizes(gamma: Tensor | None, count: int, x: Tensor) -> Tensor:
    """``|gamma|``; its signs are an orthogonal factor from the left, which singular values do not see."""
    if gamma is None:
        return torch.ones(count, dtype=torch.float64, device=x.device)
    return gamma.detach().double().abs().flatten()


def _direction(group: Normalizer) -> Tensor:
    """Unit vectors along the normalized values; zero for a constant, where ``kept`` is 1 and it does not matter."""
    norm = torch.linalg.vector_norm(group.values, dim=-1, keepdim=True)
    return torch.where(norm > 0, group.values / norm, 0.0)


def _damped_block(bases: Tensor, largest: Tensor, direction: Tensor, group: Normalizer) -> Block:
    """Singular values of each base ``[G, d, d]`` with one direction damped, ``[N, L, d]``, over sigma.

    *Error.* That of :func:`damped`, and how the matrix changes with the errors of sigma, of eps / sigma^2 and of the
    direction, times the base's norm, which is at most ``largest``, the largest ``|gamma|``.
    """
    count, d = bases.shape[:2]

    def flat(one: Tensor) -> Tensor:
        return one.reshape(-1, count)

    values, error = damped(bases, direction.reshape(-1, count, d), flat(group.kept))
    drift = flat(group.kept * (group.rounding + EPS) + 2 * group.direction_rounding) * largest
    scale, rounding = flat(group.scale)[..., None], flat(group.rounding)[..., None]
    error = (error + drift[..., None] + values * (rounding / 2 + 2 * EPS)) / scale
    samples = len(direction)
    return Block((values / scale).reshape(samples, -1), error.reshape(samples, -1))
