"""The naive twin: the whole Jacobian of a double-precision copy, by torch's own function, and its SVD."""

import copy

import numpy as np
import torch


def jacobian(function, x):
    """``[outputs, inputs]`` of a function of one tensor."""
    matrix = torch.autograd.functional.jacobian(lambda y: function(y.clone()), x)  # some write into it
    return matrix.reshape(-1, x.numel())


def in_double(model):
    return copy.deepcopy(model).double()


def singular_values(function, x, per_sample):
    """``[N, r]`` of each sample's own block, or ``[1, r]`` of everything."""
    matrix = jacobian(function, x.double())
    if not per_sample:
        return torch.linalg.svdvals(matrix)[None].numpy()
    blocks = matrix.reshape(len(x), -1, len(x), x[0].numel())
    return np.stack([torch.linalg.svdvals(blocks[i, :, i]).numpy() for i in range(len(x))])


def rounding_of(values):
    """What the twin itself may be off."""
    return 64 * np.finfo(np.float64).eps * max(float(values.max()), np.finfo(np.float64).tiny)
