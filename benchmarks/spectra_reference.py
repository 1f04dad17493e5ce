"""Singular values in double precision, by ways that share nothing with bnprobe's."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_array, hstack
from scipy.sparse.linalg import eigsh, svds
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["blocks", "channels", "dense", "jacobian", "sparse_ends"]

Options = Mapping[str, Any]

_CHUNK = 128


def dense(model: nn.Module, x: Tensor, options: Options) -> Tensor:
    """All values of the Jacobian of the whole batch, ``[1, k]``: every row by a backward pass, then the SVD."""
    if "layer" in options:
        model, x = _inside(model, x, options["layer"])
    return _ends(torch.linalg.svdvals(_tall(jacobian(model, x)))[None], options)


def blocks(model: nn.Module, x: Tensor, options: Options) -> Tensor:
    """Values of each sample's Jacobian, ``[N, k]``."""
    return torch.cat([dense(model, one[None], options) for one in x])


def channels(model: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor, options: Options) -> Tensor:
    """Of train-mode batch norm, channel by channel: they do not interact, and all at once do not fit."""
    found = []
    for channel in range(x.shape[1]):
        one = type(model)(1, model.eps).double()
        with torch.no_grad():
            one.weight.copy_(model.weight[channel])
        found.append(dense(one, x[:, channel : channel + 1], {}))
    return _ends(torch.cat(found, 1).sort(1, descending=True).values, options)


def sparse_ends(model: nn.Conv2d, x: Tensor, options: Options) -> Tensor:
    """Of a convolution, whose matrix is sparse: ARPACK to the last digit, for the smallest by inverting ``J^T J``."""
    rows = _sparse(model, x)
    largest, smallest = options["k"] if isinstance(options["k"], tuple) else (options["k"], 0)
    values = svds(rows, largest, return_singular_vectors=False, rng=np.random.default_rng(0))
    values = np.sort(values)[::-1]
    if smallest:
        squares = eigsh(csc_array(rows.T @ rows), smallest, sigma=0.0, return_eigenvectors=False)
        values = np.concatenate([values, np.sqrt(np.sort(squares)[::-1])])
    return torch.from_numpy(values.copy()).expand(len(x), -1)


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``[outputs, inputs]``, one backward pass a row, some of them together."""
    leaf = x.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the fused one is off by 1e-13 where the softmax is saturated
        y = function(leaf.clone()).flatten()
    chunks = torch.eye(y.numel(), dtype=x.dtype).split(_CHUNK)
    grads = [torch.autograd.grad(y, leaf, units, retain_graph=True, is_grads_batched=True)[0] for units in chunks]
    return torch.cat(grads).flatten(1)


def _sparse(model: nn.Conv2d, x: Tensor) -> csc_array:
    """Its matrix, from what it makes of unit inputs: one a channel and position, 1024 at a time."""
    shape, size = x.shape[1:], x[0].numel()
    parts = []
    with torch.no_grad():
        zero = model(torch.zeros_like(x[:1]))
        for first in range(0, size, 1024):
            count = min(1024, size - first)
            units = torch.zeros(count, size, dtype=x.dtype)
            units[torch.arange(count), first + torch.arange(count)] = 1
            images = (model(units.view(count, *shape)) - zero).flatten(1)
            parts.append(csc_array(images.T.numpy()))
    return csc_array(hstack(parts))


def _inside(model: nn.Module, x: Tensor, layer: str) -> tuple[nn.Module, Tensor]:
    """A layer and the input that it meets."""
    module, met = model.get_submodule(layer), []
    handle = module.register_forward_pre_hook(lambda _, args: met.append(args[0].detach().clone()))
    model(x)
    handle.remove()
    return module, met[0]


def _tall(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.shape[0] < matrix.shape[1] else matrix


def _ends(values: Tensor, options: Options) -> Tensor:
    k = options.get("k")
    if k is None:
        return values
    largest, smallest = k if isinstance(k, tuple) else (k, 0)
    return torch.cat([values[:, :largest], values[:, values.shape[1] - smallest :]], 1)
