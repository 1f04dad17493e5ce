"""The Hessian's extreme eigenvalues: how sharp the loss is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.measures.gradients import LossGradients, derivatives, flat, gradients_of, loss_gradients
from bnprobe.measures.jacobian.bounds import rounding
from bnprobe.measures.loss import Loss

__all__ = ["HessianEigenvalues", "hessian_eigenvalues"]

Array = NDArray[np.float64]
Which: TypeAlias = Literal["largest", "smallest", "magnitude"]

_ARPACK = {"largest": "LA", "smallest": "SA", "magnitude": "LM"}
_SMALL = 64  # of so many parameters the whole matrix costs less than a Krylov space
_UNLIKE = 0.1  # ours: difference quotients are rough, across kinks above all; what is hidden is as large as the rest
_HIDDEN = "a custom function, of the model or of the loss, hides from autograd how its backward depends on its inputs"
_TOLERANCE = 1e-4  # ours: beyond what any reading of a curvature needs, above the rounding of single precision


@dataclass(frozen=True)
class HessianEigenvalues:
    """Some eigenvalues of the Hessian of a loss in the parameters that train.

    Attributes:
        values: ``[k]``, in the order that was asked for; NaN where Lanczos did not find it.
        error: ``[k]``: an eigenvalue of the Hessian, as the model's dtype computes it, lies within this of each value.
        parameters: number of parameters, n.
        method: ``Lanczos`` or ``dense``.
        products: how many products of the Hessian with a vector it took.
    """

    values: Array
    error: Array
    parameters: int
    method: str
    products: int

    def frame(self) -> pd.DataFrame:
        """One row a value."""
        return pd.DataFrame({"value": self.values, "error": self.error})


def hessian_eigenvalues(
    model: nn.Module,
    loss: Loss | None,
    batch: Any,
    k: int = 1,
    *,
    which: Which = "largest",
    tolerance: float = _TOLERANCE,
    products: int | None = None,
    seed: int = 0,
) -> HessianEigenvalues:
    r"""Extreme eigenvalues of :math:`\nabla^2 L(w)` on one batch, in all parameters that train.

    The largest is the sharpness of the loss: gradient descent on the quadratic that touches it diverges at learning
    rates above two over it. Santurkar et al. (2018) argue that batch norm makes the loss smoother. Yao et al.
    (PyHessian, 2019), who measured such spectra, find that it does not necessarily, above all not in shallow networks.
    So measure both, at the depth in question.

    Lanczos is ARPACK's, through :func:`scipy.sparse.linalg.eigsh`; the product with a vector differentiates the graph
    of the gradient once more, through batch norm in train mode too. Vectors lie in the host's memory in double
    precision: 8 n bytes for each of at least 20, for n parameters. Each value's residual :math:`\|Hv - \theta v\|` is
    computed afterwards: a symmetric matrix has an eigenvalue within it of :math:`\theta`. Which rank that eigenvalue
    has, no residual tells: one whose vector is orthogonal to all that was seen is missed, from a random start with
    probability zero; of an eigenvalue that occurs several times some copies may be missing.

    Args:
        model: any module, in the mode in which it is to be measured; it is left as it was. The loss is given it with
            its wrappers (``DistributedDataParallel``, ``torch.compile``) taken off.
        loss: ``(model, batch) -> scalar``. None: cross entropy, where the batch is ``(x, y)`` with class labels y.
        batch: what the loss is given; tensors in it are copied.
        k: how many; default 1.
        which: ``largest`` (from the top down), ``smallest`` (the most negative ones, from the bottom up) or
            ``magnitude`` (by absolute value, as PyHessian's power iteration). Default ``largest``, the sharpness.
        tolerance: Lanczos ends where it estimates every residual below this share of its value; default 1e-4, ours.
        products: stop after about so many products with what has converged till then; default 10 n at most, scipy's.
        seed: of the vector at which Lanczos starts.

    Raises:
        ArgumentError: an argument is not usable.
        NotMeasuredError: the loss is not one number with a gradient; it has no second derivatives, or such that are not
            finite; or a custom function hides some: they are no symmetric matrix, or a difference quotient disagrees.
    """
    if which not in get_args(Which):
        raise ArgumentError(f"which must be one of {', '.join(get_args(Which))}; got {which!r}")
    with loss_gradients(model, loss, batch) as gradients:
        operator = _Hessian(gradients)
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= operator.size:
            raise ArgumentError(f"k must be an int from 1 to the number of parameters, {operator.size}; got {k!r}")
        operator.check(seed)
        if operator.size <= _SMALL or k >= operator.size - 1:
            values, vectors = np.linalg.eigh(operator.whole())
            method = "dense"
        else:
            values, vectors = _lanczos(operator, k, _ARPACK[which], tolerance, products, seed)
            method = "Lanczos"
        order = _order(values, which)[:k]
        values, vectors = values[order], vectors[:, order]
        residual = np.array([np.linalg.norm(operator(v) - t * v) for t, v in zip(values, vectors.T, strict=True)])
        # Of the products themselves, in the dtype of the model.
        error = residual + operator.rounding * max(np.abs(values).max(initial=0.0), operator.scale)
    lost = np.full(k - len(values), np.nan)
    return HessianEigenvalues(
        np.concatenate([values, lost]), np.concatenate([error, lost]), operator.size, method, operator.products
    )


class _Hessian:
    """Products of the Hessian with vectors, in double precision on the host; the gradient's graph is kept."""

    def __init__(self, gradients: LossGradients) -> None:
        self._all, self._parameters = gradients, gradients.parameters
        self._eps = max(torch.finfo(one.dtype).eps for one in self._parameters)
        loss = gradients.loss()
        if not bool(loss.isfinite()):
            raise NotMeasuredError(f"the loss is {float(loss.detach())}: it has no Hessian")
        found = gradients_of(loss, self._parameters, again=True)
        self._gradients = [one for one in found if one is not None and one.requires_grad]
        self._depends = [one is not None and one.requires_grad for one in found]
        self.size = sum(one.numel() * (2 if one.is_complex() else 1) for one in self._parameters)
        self.rounding = max(rounding(one.dtype, (1, 1)) for one in self._parameters)
        self.scale, self.products = 0.0, 0

    def __call__(self, vector: Array) -> Array:
        """``H v``."""
        self.products += 1
        if not self._gradients:  # the loss is linear in its parameters
            return np.zeros(self.size)
        seeds = [one for one, used in zip(self._parts(vector), self._depends, strict=True) if used]
        with derivatives():
            try:
                found = torch.autograd.grad(
                    self._gradients, self._parameters, seeds, retain_graph=True, allow_unused=True
                )
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise NotMeasuredError(f"the loss has no second derivatives: {error}") from error
        product: Array = flat(found, self._parameters).cpu().double().numpy()
        if not np.isfinite(product).all():
            raise NotMeasuredError("the loss has second derivatives that are not finite")
        return product

    def check(self, seed: int) -> None:
        """Whether it is symmetric, and where there are custom functions, the derivative of the gradient at all.

        Raises:
            NotMeasuredError: it is not.
        """
        u, v = np.random.default_rng(seed).standard_normal((2, self.size))
        left, right = self(u), self(v)
        size = np.linalg.norm(u) * np.linalg.norm(right) + np.linalg.norm(left) * np.linalg.norm(v)
        self.scale = float(size / 2 / np.linalg.norm(u) / np.linalg.norm(v))
        # Of an n-term sum of products rounded at random; what a custom function hides is as large as the sum itself.
        if abs(left @ v - u @ right) > 64 * self._eps * size:
            raise NotMeasuredError(f"the second derivatives are no symmetric matrix: {_HIDDEN}")
        if self._all.custom:
            quotient = self._quotient(v)
            if np.linalg.norm(quotient - right) > _UNLIKE * max(np.linalg.norm(quotient), np.linalg.norm(right)):
                raise NotMeasuredError(f"the gradient changes otherwise than by the second derivatives: {_HIDDEN}")

    def _quotient(self, vector: Array) -> Array:
        """The product as a difference quotient: what no function can hide, but only roughly."""
        weights = self._all.weights
        length = math.sqrt(sum(float(one.double().abs().square().sum()) for one in weights)) or 1.0
        step = self._eps ** (1 / 3) * length / float(np.linalg.norm(vector))
        ends = []
        for sign in (1, -1):
            moved = zip(weights, self._parts(sign * step * vector), strict=True)
            self._all.put([one + part for one, part in moved])
            ends.append(flat(self._all.of()[1], self._parameters).cpu().double().numpy())
        self._all.put(weights)
        quotient: Array = (ends[0] - ends[1]) / (2 * step)
        return quotient

    def whole(self) -> Array:
        """The matrix."""
        matrix = np.array([self(unit) for unit in np.eye(self.size)], np.float64)
        symmetric: Array = (matrix + matrix.T) / 2
        return symmetric

    def _parts(self, vector: Array) -> list[Tensor]:
        parts, start = [], 0
        for one in self._parameters:
            width = one.numel() * (2 if one.is_complex() else 1)
            part = torch.from_numpy(np.ascontiguousarray(vector[start : start + width], np.float64))
            real = part.reshape(*one.shape, 2) if one.is_complex() else part.reshape(one.shape)
            parts.append((torch.view_as_complex(real) if one.is_complex() else real).to(one.dtype).to(one.device))
            start += width
        return parts


def _lanczos(
    operator: _Hessian, k: int, which: str, tolerance: float, products: int | None, seed: int
) -> tuple[Array, Array]:
    start = np.random.default_rng(seed).standard_normal(operator.size)
    if not operator(start).any():
        return np.zeros(k), np.eye(operator.size, k)  # to map a random vector to 0 it has to map all there
    matvec: Callable[[Array], Array] = operator
    matrix = LinearOperator((operator.size, operator.size), matvec=matvec, dtype=np.float64)
    width = min(operator.size, max(2 * k + 1, 20))
    restarts = None if products is None else max(1, -(-(products - width) // max(1, width - k)))
    try:
        found: tuple[Array, Array] = eigsh(matrix, k, which=which, v0=start, ncv=width, tol=tolerance, maxiter=restarts)
    except ArpackNoConvergence as stopped:
        return stopped.eigenvalues, stopped.eigenvectors
    return found


def _order(values: Array, which: Which) -> NDArray[np.intp]:
    if which == "smallest":
        return np.argsort(values)
    return np.argsort(-values) if which == "largest" else np.argsort(-np.abs(values))
