"""The space that block Lanczos steps span, and what its Ritz values say."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.measures.jacobian.bounds import upper_bounds
from bnprobe.measures.jacobian.operator import Operator

__all__ = ["Krylov", "Ritz", "refine"]

# A random unit vector has a component of at least 1 / (8 sqrt(n)) along any direction, but for one in ten; all of a
# block of b miss it with probability 10^-b (after Halko, Martinsson & Tropp 2011, lemma 4.1).
_MISSED = 8.0
_BLOCKS = 12  # ours: more vectors than these cost more than the steps that they save
_BOTH_ENDS = 768  # ours: the smallest values need many
_WEAK = 0.03  # of the largest eigenvalue: shorter columns have lost digits, and are orthogonalized once more


@dataclass(frozen=True)
class Ritz:
    """Ritz values and vectors of JᵀJ on the host, in double precision.

    Attributes:
        theta: ``[N, p]``, descending: the roots of the Ritz values.
        vectors: ``[N, p, p]``, in columns, in terms of the space's basis.
        residual: ``[N, b, p]``: the residual of each, in terms of the next block.
        beyond: ``[N]``: what the singular values outside the space are at most; infinite where that is not known.
        exhausted: ``[N]``: whether there is nothing but rounding outside the space.
        steps: taken so far.
    """

    theta: Tensor
    vectors: Tensor
    residual: Tensor
    beyond: Tensor
    exhausted: Tensor
    steps: int

    def unconverged(self, largest: int, smallest: int, tolerance: float) -> tuple[float, float, float]:
        """Error bounds in units of ``tolerance`` times the largest value: the worst of all samples.

        Returns:
            That of the largest values, that of the smallest ones, and that of the largest ones if no copies hide.
        """
        unit = tolerance * self.theta[:, 0].clamp(min=torch.finfo(torch.float64).tiny / tolerance)

        def worst(error: Tensor) -> float:
            error = torch.minimum(error, self.beyond[:, None]).masked_fill(self.exhausted[:, None], 0.0)
            return float((error / unit[:, None]).max()) if error.numel() else 0.0

        count = min(largest + self.residual.shape[1], self.theta.shape[1] - 1)
        theta = self.theta[:, :count]
        residual = self.residual[:, :, :count] / _positive(theta)[:, None]
        gram = residual.mT @ residual
        top = [self.top_error(theta, gram, hiding)[:, :largest] for hiding in (True, False)]
        count = min(smallest + self.residual.shape[1], self.theta.shape[1] - 1)
        residual = self.residual[:, :, -count:].flip(2)
        bottom = self.bottom_error(self.theta[:, -count:].flip(1), residual.mT @ residual)[:, :smallest]
        return worst(top[0]), worst(bottom), worst(top[1])

    def top_error(self, theta: Tensor, gram: Tensor, hiding: bool = True) -> Tensor:
        r"""How far above ``theta`` ``[N, K]`` the K largest values may be, for ``gram`` of their residuals.

        A block of b columns shows b of the copies of a value, and b of many values that a polynomial as high as the
        steps taken cannot tell apart. Where b Ritz values are that close, there may be more of them.

        Args:
            theta: descending, of this space or of one nearby.
            gram: scalar products of the residuals :math:`J^T u - \theta v`.
            hiding: whether hidden ones are reckoned with.
        """
        count = theta.shape[1]
        rest = self.theta[:, count] + self.residual[:, :, count].norm(dim=1) / _positive(self.theta)[:, count]
        squares = self.theta**2
        crowded = squares[:, :count] - self._window_end(squares, count) <= self._unresolved * squares[:, :count]
        level = theta + 2 * gram.diagonal(dim1=1, dim2=2).sqrt()
        hidden = torch.where((crowded & hiding).to(theta.device), level, -math.inf)
        return upper_bounds(theta, gram, rest.to(theta.device), hidden) - theta

    def bottom_error(self, theta: Tensor, gram: Tensor) -> Tensor:
        r"""How far below ``theta`` ``[N, K]``, ascending, the K smallest values may be; 0 is as low as they go.

        As :meth:`top_error`, for residuals :math:`J^T J v - \theta^2 v`: polynomials see squares, and hidden small
        values may be lower than those seen by as much as they cannot tell apart.
        """
        count = theta.shape[1]
        place = -1 - count
        rest = self.residual[:, :, place].norm(dim=1) - self.theta[:, place] ** 2
        squares = self.theta.flip(1) ** 2
        apart = self._unresolved * squares[:, -1:]
        crowded = self._window_end(squares, count) - squares[:, :count] <= apart
        hidden = torch.where(crowded, apart - squares[:, :count], -math.inf)
        upper = upper_bounds(-(theta**2), gram, rest.to(theta.device), hidden.to(theta.device))
        rounded = 32 * torch.finfo(torch.float64).eps * squares[:, -1:].to(theta.device)
        return theta - torch.minimum((-upper - rounded).clamp(min=0).sqrt(), theta)

    @property
    def _unresolved(self) -> float:
        # Ours: of random spectra with more close values than columns, none hid at more than 0.1 / d^2 after d steps.
        return 1 / self.steps**2

    def _window_end(self, ordered: Tensor, count: int) -> Tensor:
        """Of each of the first ``count``, the value as many places on as a block has columns, less one."""
        places = torch.arange(count) + self.residual.shape[1] - 1
        return ordered[:, places.clamp(max=ordered.shape[1] - 1)]


def _positive(theta: Tensor) -> Tensor:
    return torch.maximum(theta, 1e-20 * theta[:, :1]).clamp(min=1e-100)


def _unit(outputs: Tensor) -> Tensor:
    """``[N, 1, 1]`` to divide J by: 1, unless powers of it would leave the range of single precision."""
    norm = outputs.double().norm(dim=1).amax(1)
    usual = (norm == 0) | ((norm > 1e-6) & (norm < 1e6))
    return torch.where(usual, 1.0, norm)[:, None, None]


def _qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    q, r = torch.linalg.qr(matrix)
    return q, r


class Krylov:
    """Orthonormal vectors that block Lanczos steps add to, of an operator with no fewer outputs than inputs.

    The vectors lie in the rows of ``basis`` ``[N, p + b, n]``; the last b are not yet multiplied. ``projected``
    ``[N, p, p]`` is JᵀJ on the first p.

    Args:
        operator: N Jacobians ``[m, n]``, m >= n.
        width: columns of a block, b.
        memory: bytes for the vectors.
        generator: of random vectors; None: one of its own, with a fixed seed.
        wanted: how many of the largest and of the smallest values; a restart keeps their vectors.
    """

    def __init__(
        self,
        operator: Operator,
        width: int,
        memory: int,
        generator: torch.Generator | None = None,
        *,
        wanted: tuple[int, int],
    ) -> None:
        self.operator, self.width, self.steps, self._both_ends = operator, width, 0, wanted[1] > 0
        self.dtype = operator.dtype if operator.dtype in (torch.float32, torch.float64) else torch.float32
        self._generator = generator or torch.Generator(operator.device).manual_seed(0)
        n = operator.shape[1]
        fitting = memory // max(1, operator.samples * n * torch.finfo(self.dtype).bits // 8)
        least = 4 * (max(wanted) + width)
        self._most = max(least, min(fitting, max(_BLOCKS * width, _BOTH_ENDS if self._both_ends else 0)))
        self._basis = self._empty(width, n)
        self._projected = self._empty(0, 0)
        self.used, self._restarted = 0, False
        self._fresh = torch.ones(operator.samples, dtype=torch.bool, device=operator.device)
        self._beyond = torch.full((operator.samples,), math.inf, dtype=torch.float64)
        self._exhausted = torch.zeros(operator.samples, dtype=torch.bool)
        self._coupling = self._empty(width, width)
        self._unit: Tensor | None = None
        self._scaled = False
        self._noise = torch.finfo(operator.dtype).eps * (4 + math.sqrt(max(operator.shape)))
        self._scale = torch.zeros(operator.samples, dtype=self.dtype, device=operator.device)
        self._basis[:] = torch.linalg.qr(self._random()).Q.mT

    def has_room(self, spared: int) -> bool:
        """Whether one more block fits into all n directions, with ``spared`` left over."""
        return self.used + 2 * self.width + spared <= self.operator.shape[1]

    def step(self) -> None:
        """Multiplies the last block, and adds what is new as the next one."""
        p, b = self.used, self.width
        if p + 2 * b > self._most:
            self._restart()
            p = self.used
        self._grow(p + 2 * b)
        basis = self._basis[:, : p + b]
        outputs = self._multiply(basis[:, p:].mT)
        if self._unit is None:
            self._unit = _unit(outputs)
            self._scaled = bool((self._unit != 1).any())
        self._look_beyond(outputs)
        if self._scaled:
            outputs = (outputs / self._unit).to(self.dtype)
        new = self._multiply_back(outputs).mT
        if self._scaled:
            new = (new / self._unit).to(self.dtype)
        self._scale = torch.maximum(self._scale, new.norm(dim=2).amax(1))
        coefficients = torch.zeros_like(self._projected[:, : p + b, p : p + b])
        # All that lies along the others lies along the last two blocks, but for rounding (or, after a restart, along
        # any): with these taken out first, the projection on all of them is a second one, and twice is enough
        # (Parlett 1998, section 6.9).
        near = 0 if self._restarted else max(0, p - b)
        for start in (near, 0):
            along = basis[:, start:] @ new.mT
            new = torch.baddbmm(new, along.mT, basis[:, start:], alpha=-1)
            coefficients[:, start:] += along
        self._restarted = False
        self._projected[:, : p + b, p : p + b] = coefficients
        self._projected[:, p : p + b, : p + b] = coefficients.mT
        self.used = p + b
        self.steps += 1
        self._basis[:, p + b : p + 2 * b] = self._orthonormal(new, basis).mT

    def ritz(self) -> Ritz:
        """Ritz values and vectors of what is spanned.

        Raises:
            NotMeasuredError: there are entries that are not finite.
        """
        b, projected = self.width, self._projected[:, : self.used, : self.used].double().cpu()
        if not torch.isfinite(projected).all():
            raise NotMeasuredError("the Jacobian has entries that are not finite; it has no singular values")
        squares, vectors = torch.linalg.eigh(projected)
        vectors = vectors.flip(2)
        assert self._unit is not None
        unit = self._unit.cpu()
        residual = self._coupling.double().cpu() @ vectors[:, -b:] * unit**2
        theta = squares.flip(1).clamp(min=0).sqrt() * unit[:, 0]
        return Ritz(theta, vectors, residual, self._beyond.clone(), self._exhausted.clone(), self.steps)

    def singular_values(self) -> Tensor:
        """Those of J on all that is spanned: ``[N, p]``, descending, in double precision."""
        parts = torch.split(self._basis[:, : self.used], self.width, dim=1)
        values: Tensor = torch.linalg.svdvals(torch.cat([self._multiply(part.mT).double() for part in parts], 2))
        return values

    def combine(self, vectors: Tensor) -> Tensor:
        """From ``[N, p, K]`` in terms of the basis to vectors in the rows of ``[N, K, n]``."""
        return vectors.mT.to(self._basis) @ self._basis[:, : vectors.shape[1]]

    def _random(self) -> Tensor:
        shape = (self.operator.samples, self.operator.shape[1], self.width)
        drawn = torch.randn(shape, generator=self._generator, device=self._generator.device, dtype=self.dtype)
        return drawn.to(self.operator.device)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(self.operator.samples, *shape, dtype=self.dtype, device=self.operator.device)

    def _multiply(self, v: Tensor) -> Tensor:
        return self.operator.matmat(v.to(self.operator.dtype)).to(self.dtype)

    def _multiply_back(self, u: Tensor) -> Tensor:
        return self.operator.rmatmat(u.to(self.operator.dtype)).to(self.dtype)

    def _look_beyond(self, outputs: Tensor) -> None:
        """A block of random vectors, outside of all that the others span, shows how large J is there."""
        if not self.used or not bool(self._fresh.any()):
            return
        assert self._unit is not None
        norm = outputs.double().norm(dim=1).amax(1)
        n = self.operator.shape[1] - self.used
        zero = self._noise * self._scale.double().sqrt() * self._unit[:, 0, 0]
        fresh = self._fresh.cpu()
        beyond = torch.where(fresh, (_MISSED * math.sqrt(n) * norm).cpu(), math.inf)
        # What was outside of a smaller space bounds what is outside of a larger one.
        self._beyond = torch.minimum(self._beyond, beyond)
        self._exhausted |= fresh & (norm <= zero).cpu()

    def _orthonormal(self, new: Tensor, basis: Tensor) -> Tensor:
        """An orthonormal block ``[N, n, b]`` for ``new`` ``[N, b, n]``; random directions where that has none left."""
        block, coupling = _qr(new.mT)
        length = coupling.diagonal(dim1=1, dim2=2).abs()
        scale = self._scale[:, None]
        none = length <= 4 * self._noise * scale
        self._coupling, self._fresh = coupling, none.all(1)
        if not bool((length < _WEAK * scale).any()) and not bool(none.any()):
            return block
        coupling = coupling.masked_fill(none[:, :, None], 0.0)
        block = torch.where(none[:, None], self._random(), block)
        order = none.long().argsort(dim=1, stable=True)  # QR leaves the first columns as they are
        block = block.gather(2, order[:, None].expand_as(block))
        coupling = coupling.gather(1, order[:, :, None].expand_as(coupling))
        for _ in range(2):
            block = torch.baddbmm(block, basis.mT, basis @ block, alpha=-1)
            block, turned = _qr(block)
            coupling = turned @ coupling
        self._coupling = coupling
        return block

    def _restart(self) -> None:
        """Keeps half as many Ritz vectors as there may be, and the next block (Wu & Simon 2000)."""
        assert self._unit is not None
        ritz, p, b = self.ritz(), self.used, self.width
        bottom = self._most // 4 if self._both_ends else 0
        kept = [*range(self._most // 2 - bottom), *range(p - bottom, p)]
        vectors, following = self.combine(ritz.vectors[:, :, kept]), self._basis[:, p : p + b].clone()
        self.used, self._restarted = len(kept), True
        self._basis[:, : self.used] = vectors
        self._basis[:, self.used : self.used + b] = following
        self._projected[:, : self.used, : self.used] = torch.diag_embed(
            (ritz.theta / self._unit[:, 0].cpu())[:, kept] ** 2
        ).to(self._projected)

    def _grow(self, count: int) -> None:
        have = self._basis.shape[1]
        if count > have or self._projected.shape[1] < count:
            room = min(max(2 * have, count), max(self._most, count))
            basis, projected = self._empty(room, self.operator.shape[1]), self._empty(room, room)
            basis[:, :have] = self._basis
            size = self._projected.shape[1]
            projected[:, :size, :size] = self._projected
            self._basis, self._projected = basis, projected


def refine(operator: Operator, vectors: Tensor) -> tuple[Tensor, Tensor]:
    r"""A Rayleigh-Ritz step of J itself, in double precision.

    Args:
        operator: N Jacobians ``[m, n]``.
        vectors: nearly orthonormal rows ``[N, K, n]``.

    Returns:
        Singular values of J on their span, ``[N, K]``, descending, and the scalar products of the residuals
        :math:`J^T u - \theta v`, ``[N, K, K]``.
    """
    inputs = vectors.to(operator.dtype)
    outputs = operator.matmat(inputs.mT).double()
    inputs = inputs.double()
    lower = torch.linalg.cholesky(inputs @ inputs.mT)
    inputs = torch.linalg.solve_triangular(lower, inputs, upper=False)
    outputs = torch.linalg.solve_triangular(lower, outputs.mT, upper=False).mT
    left, small = torch.linalg.qr(outputs)
    u, theta, v = torch.linalg.svd(small)
    left, right = left @ u, v @ inputs
    residual = operator.rmatmat(left.to(operator.dtype)).double().mT - theta[:, :, None] * right
    return theta, residual @ residual.mT
