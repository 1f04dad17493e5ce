"""What users do today for the singular values of a Jacobian, each as somebody who knows torch and scipy writes it."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor, nn
from torch.func import jacrev, jvp, linearize, vjp, vmap

__all__ = ["Way", "arpack", "functional", "functional_vectorized", "jacrev_loop", "jacrev_once", "jacrev_vmapped"]
__all__ += ["arpack_each", "linearized", "lowrank", "weight_svd"]

Way: TypeAlias = Callable[[nn.Module, Tensor], Tensor]  # a model and its input to values [N, k]
Vector: TypeAlias = NDArray[np.floating]

_CHUNK = 128  # unit vectors that go through at once: 64 to 256 are equally quick on the convolutions here
# The loosest of scipy's tolerances (relative, on squares) that kept every value within 1e-6 of the largest here.
_TOLERANCE = 1e-3


def functional(model: nn.Module, x: Tensor) -> Tensor:
    """``torch.autograd.functional.jacobian`` of the whole batch; it moves running statistics."""
    matrix = torch.autograd.functional.jacobian(model, x)
    return _svdvals(matrix.reshape(-1, x.numel()))[None]


def functional_vectorized(model: nn.Module, x: Tensor) -> Tensor:
    """The same with ``vectorize=True``, which torch calls experimental."""
    matrix = torch.autograd.functional.jacobian(model, x, vectorize=True)
    return _svdvals(matrix.reshape(-1, x.numel()))[None]


def jacrev_once(model: nn.Module, x: Tensor) -> Tensor:
    """``torch.func.jacrev`` of one sample, in chunks (all rows at once would take gigabytes)."""
    return _svdvals(_matrix(jacrev(_one(model), chunk_size=_CHUNK)(x[0]), x))[None]


def jacrev_loop(model: nn.Module, x: Tensor) -> Tensor:
    """``torch.func.jacrev``, one sample after the other."""
    derivative = jacrev(_one(model))
    return torch.stack([_svdvals(_matrix(derivative(sample), x)) for sample in x])


def jacrev_vmapped(model: nn.Module, x: Tensor) -> Tensor:
    """``vmap(jacrev)`` over the samples, and one call of ``svdvals`` for all."""
    matrices = vmap(jacrev(_one(model)))(x)
    return _svdvals(matrices.detach().reshape(len(x), -1, x[0].numel()))


def linearized(model: nn.Module, x: Tensor) -> Tensor:
    """``torch.func.linearize`` once, then unit vectors in chunks under vmap; for fewer inputs than outputs."""
    _, push = linearize(_one(model), x[0])
    units = torch.eye(x[0].numel()).split(_CHUNK)
    with torch.no_grad():
        rows = [vmap(push)(some.view(-1, *x.shape[1:])).flatten(1) for some in units]
    return _svdvals(torch.cat(rows))[None]


def arpack(model: nn.Module, x: Tensor, k: int = 10) -> Tensor:
    """``scipy.sparse.linalg.svds`` over products of the first sample's Jacobian: ``torch.func.jvp``, and one ``vjp``.

    (``linearize`` would save jvp its forward, and take longer to trace than all products together.)
    """
    function = _one(model)
    y, pull = vjp(function, x[0])

    def multiply(v: Vector) -> Vector:
        return jvp(function, (x[0],), (torch.from_numpy(v).view(x.shape[1:]),))[1].detach().numpy().ravel()

    def multiply_back(u: Vector) -> Vector:
        return pull(torch.from_numpy(u).view(y.shape))[0].detach().numpy().ravel()

    operator = LinearOperator((y.numel(), x[0].numel()), matvec=multiply, rmatvec=multiply_back, dtype=x.numpy().dtype)
    values = svds(operator, k, return_singular_vectors=False, tol=_TOLERANCE, rng=np.random.default_rng(0))
    return torch.from_numpy(np.sort(values)[::-1].copy())[None]


def arpack_each(model: nn.Module, x: Tensor, k: int = 10) -> Tensor:
    """:func:`arpack` for one sample after the other."""
    return torch.cat([arpack(model, sample[None], k) for sample in x])


def lowrank(model: nn.Module, x: Tensor, k: int = 10) -> Tensor:
    """``torch.svd_lowrank`` (two sweeps of a random subspace, its default) of the matrix that ``jacrev`` gives."""
    matrix = _matrix(jacrev(_one(model), chunk_size=_CHUNK)(x[0]), x)
    return torch.svd_lowrank(matrix, k + 6)[1][None, :k]


def weight_svd(model: nn.Module, x: Tensor) -> Tensor:
    """``torch.linalg.svdvals`` of a linear layer's weight: nothing else is left to do."""
    assert isinstance(model, nn.Linear)
    return torch.linalg.svdvals(model.weight.detach()).expand(len(x), -1)


def _one(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model as a function of one sample."""
    return lambda sample: model(sample[None])[0]


def _matrix(jacobian: Tensor, x: Tensor) -> Tensor:
    return jacobian.detach().reshape(-1, x[0].numel())


def _svdvals(matrix: Tensor) -> Tensor:
    """The tall way round, in which LAPACK is several times quicker."""
    return torch.linalg.svdvals(matrix.mT if matrix.shape[-2] < matrix.shape[-1] else matrix)
