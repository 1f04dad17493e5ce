"""Gram matrices in double precision: what singular values of matrices in single precision are best computed from."""

import torch
from torch import Tensor

__all__ = ["gram_of"]

_BLOCKED = 1024  # a symmetric product as large as this is computed by blocks of its lower half (ours)


def gram_of(matrix: Tensor) -> Tensor:
    """``A A^T`` in double precision: ``[N, r, L]`` to ``[N, r, r]``, its lower triangle at least, by blocks."""
    samples, short, long = matrix.shape
    gram = torch.zeros(samples, short, short, dtype=torch.float64, device=matrix.device)
    block = short if short < _BLOCKED else -(-short // 8)
    width = max(256, 2**24 // (samples * short))
    for left in range(0, long, width):
        part = matrix[:, :, left : left + width].double()
        for top in range(0, short, block):
            rows = slice(top, top + block)
            gram[:, rows, : top + block].baddbmm_(part[:, rows], part[:, : top + block].mT)
    return gram  # eigvalsh reads the lower triangle
