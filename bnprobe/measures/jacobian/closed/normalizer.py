"""Means and variances of groups of values, with bounds of their rounding."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bnprobe.measures.jacobian.closed.union import EPS, Block

__all__ = ["Normalizer", "gain", "normalizer", "one_gain"]

_TINY = torch.finfo(torch.float64).tiny


class Normalizer(NamedTuple):
    """What normalization does to groups of m values, in double precision.

    Attributes:
        values: ``[..., m]``, the values less their mean (or as they are, where no mean is taken off).
        scale: ``[...]``, sigma = sqrt(variance + eps).
        kept: ``[...]``, eps / sigma^2, the share of a change of the group's spread that gets through.
        rounding: ``[...]``, bound of the relative error of sigma^2.
        direction_rounding: ``[...]``, bound of the error of the values' direction, a unit vector.
    """

    values: Tensor
    scale: Tensor
    kept: Tensor
    rounding: Tensor
    direction_rounding: Tensor


def normalizer(x: Tensor, eps: float, *, centred: bool = True) -> Normalizer:
    """Mean and biased variance over the last axis (the mean square, where not ``centred``).

    Values are taken relative to the group's first, so that a constant has variance 0 exactly and an offset costs no
    digits; then the corrected two-pass formula (Chan, Golub & LeVeque 1983). What is left is the rounding of a sum of
    m terms in pieces, (4 + log2 m) units, and of the first subtraction.
    """
    x = x.double()
    units = EPS * (4 + math.log2(x.shape[-1]))
    if centred:
        shifted = x - x[..., :1]
        mean = shifted.mean(-1, keepdim=True)
        x = shifted - mean
        variance = (x.square().mean(-1) - x.mean(-1).square()).clamp_min(0)
        spread = variance.sqrt()
        distance = mean.abs().squeeze(-1)
        error = units * variance + EPS * spread * distance
        direction = EPS * (4 + distance / spread.clamp_min(_TINY))
    else:
        variance = x.square().mean(-1)
        error = units * variance
        direction = torch.full_like(variance, 4 * EPS)
    square = variance + eps
    return Normalizer(x, square.sqrt(), eps / square, (error + _TINY) / square + EPS, direction)


def gain(gamma: Tensor, square: Tensor) -> Block:
    """``|gamma| / sqrt(square)`` of numbers that are given, ``[r]``: the same in every sample."""
    values = (gamma.abs() / square.sqrt())[None]
    return Block(values, 4 * EPS * values)


def one_gain(gamma: Tensor, group: Normalizer, *, centred: bool = True) -> list[Block]:
    """Blocks of groups ``[N, r]`` with one gamma each ``[r]``.

    |gamma| / sigma for every direction but two: along the values themselves it is eps / sigma^2 times that, and a
    shift of the group (where a mean is taken off) has no effect. Of a constant group, whose values have no direction,
    the formula gives |gamma| / sigma twice over, as it must.
    """
    m = group.values.shape[-1]
    large = gamma.abs() / group.scale
    if centred and m == 1:
        return [Block(torch.zeros_like(large), torch.zeros_like(large))]
    small = large * group.kept
    return [
        Block(large, large * (group.rounding / 2 + 2 * EPS), m - 1 - centred),
        Block(small, small * (1.5 * group.rounding + 5 * EPS)),
    ]
