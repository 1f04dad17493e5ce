"""What theory says about singular values and gradients of random networks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import quad

from bnprobe.errors import ArgumentError

__all__ = [
    "MarchenkoPastur",
    "gradient_growth_of_linear",
    "gradient_growth_of_relu",
    "gradient_growth_of_wide_batches",
    "largest_of_gaussian_product",
    "quarter_circle",
    "spread",
]

Function = Callable[[float], float]
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class MarchenkoPastur:
    r"""Singular values of a large random matrix with independent entries of mean 0 (Marchenko & Pastur 1967).

    With :math:`q = \min(m, n) / \max(m, n)`, :math:`\sigma^2 = \max(m, n)` times the variance of an entry, and
    :math:`s_\pm = \sigma (1 \pm \sqrt q)`, the density of the :math:`\min(m, n)` values is

    .. math:: p(s) = \frac{\sqrt{(s_+^2 - s^2)(s^2 - s_-^2)}}{\pi q \sigma^2 s}, \qquad s_- \le s \le s_+.

    Attributes:
        outputs: m.
        inputs: n.
        variance: of an entry.

    Raises:
        ArgumentError: a size or the variance is not positive.
    """

    outputs: int
    inputs: int
    variance: float

    def __post_init__(self) -> None:
        if min(self.outputs, self.inputs) < 1 or not self.variance > 0:
            raise ArgumentError(
                f"outputs, inputs and variance must be positive; got {self.outputs}, {self.inputs}, {self.variance}"
            )

    @property
    def ratio(self) -> float:
        """The smaller size over the larger one, q."""
        return min(self.outputs, self.inputs) / max(self.outputs, self.inputs)

    @property
    def scale(self) -> float:
        """Root of the larger size times the variance of an entry, sigma."""
        return math.sqrt(max(self.outputs, self.inputs) * self.variance)

    @property
    def support(self) -> tuple[float, float]:
        """The least and the largest value."""
        root = math.sqrt(self.ratio)
        return self.scale * (1 - root), self.scale * (1 + root)

    def density(self, s: ArrayLike) -> _Array:
        """Density at ``s``; 0 outside of the support."""
        at = np.asarray(s, np.float64)
        low, high = self.support
        inside = (at >= low) & (at <= high) & (at >= 0)
        if low == 0:  # the s in the root and the s below it, of which one may be 0, are the same
            height = np.sqrt(np.clip(high**2 - at**2, 0, None))
        else:
            height = np.sqrt(np.clip((high**2 - at**2) * (at**2 - low**2), 0, None)) / np.where(inside, at, 1.0)
        density: _Array = np.where(inside, height / (math.pi * self.ratio * self.scale**2), 0.0)
        return density

    def cumulative(self, s: ArrayLike) -> _Array:
        r"""Share of values up to ``s``.

        Exact, by the substitution :math:`s^2 = \sigma^2 (1 + q + 2 \sqrt q \cos\phi)`.
        """
        q, root = self.ratio, math.sqrt(self.ratio)
        square = (np.clip(np.asarray(s, np.float64), 0, None) / self.scale) ** 2
        phi = np.arccos(np.clip((square - 1 - q) / (2 * root), -1, 1))
        turned = np.arctan2((1 - root) * np.sin(phi / 2), (1 + root) * np.cos(phi / 2))
        above = (2 / math.pi) * (-np.sin(phi) / (2 * root) + (1 + q) * phi / (4 * q) - (1 - q) / (2 * q) * turned)
        share: _Array = 1 - above
        return share


def quarter_circle(scale: float = 1.0) -> MarchenkoPastur:
    r"""Singular values of a large square matrix, on :math:`[0, 2 \sigma]`.

    Args:
        scale: root of the size times the variance of an entry, sigma; 1 keeps the mean square of a vector.

    Raises:
        ArgumentError: ``scale`` is not positive.
    """
    if not scale > 0:
        raise ArgumentError(f"scale must be positive; got {scale!r}")
    return MarchenkoPastur(1, 1, scale**2)


def spread(depth: int, derivative: Function | None = None, *, scale: float = 1.0, orthogonal: bool = False) -> float:
    r"""Normalized spread of the squared singular values of a deep random network's Jacobian, of one sample.

    .. math:: \frac{\mathrm{Var}(s^2)}{E(s^2)^2} = L \left(\frac{\mu_2}{\mu_1^2} - 1 - s_1\right), \qquad
        \mu_k = E[\phi'(\sqrt{q} z)^{2k}], \quad z \sim N(0, 1)

    with :math:`s_1 = -1` for Gaussian weights and 0 for orthogonal ones (Pennington, Schoenholz & Ganguli 2017). Wide
    layers, values before the nonlinearity Gaussian with one variance q. Batch normalization with its statistics held
    fixed scales s, and leaves the spread.

    Args:
        depth: L, pairs of a weight layer and a nonlinearity.
        derivative: of the nonlinearity; None for a linear network. One with jumps at 0 is integrated from both sides.
        scale: standard deviation before the nonlinearity, the root of q.
        orthogonal: whether weights are orthogonal rather than Gaussian.
    """
    if derivative is None:
        ratio = 1.0
    else:
        slope = derivative
        first = _mean(lambda z: slope(scale * z) ** 2)
        ratio = _mean(lambda z: slope(scale * z) ** 4) / first**2
    return depth * (ratio - 1 + (0.0 if orthogonal else 1.0))


def largest_of_gaussian_product(depth: int) -> float:
    r"""Largest singular value of a product of L square Gaussian matrices with entries of variance 1/n.

    .. math:: s_{max} = \sqrt{(L + 1)^{L + 1} / L^L}

    For large n (Pennington, Schoenholz & Ganguli 2017).
    """
    return math.sqrt((depth + 1) ** (depth + 1) / depth**depth)


def gradient_growth_of_relu(batch: int) -> float:
    r"""Growth of the squared gradient norm per layer, backwards: batch norm, ReLU, Gaussian weights, at batch size B.

    .. math:: R = \frac{1}{B - 3} \left[ \frac{B - 1 + J_0(c)}{1 - J_1(c)} - 1 \right], \qquad c = -\frac{1}{B - 1}

    with the arc-cosine kernels :math:`J_1(c) = (\sqrt{1 - c^2} + (\pi - \arccos c) c) / \pi` and
    :math:`J_0(c) = (\pi - \arccos c) / \pi` (Yang et al. 2019, theorem 8; scale 1, shift 0, wide layers, far from both
    ends). Goes to pi / (pi - 1) for large batches.

    Raises:
        ArgumentError: the batch has fewer than 4 members; the rate is infinite at 3.
    """
    _require_four(batch)
    c = -1 / (batch - 1)
    angle = math.pi - math.acos(c)
    zeroth, first = angle / math.pi, (math.sqrt(1 - c**2) + angle * c) / math.pi
    return ((batch - 1 + zeroth) / (1 - first) - 1) / (batch - 3)


def gradient_growth_of_linear(batch: int) -> float:
    """As :func:`gradient_growth_of_relu` without a nonlinearity: (B - 2) / (B - 3).

    Raises:
        ArgumentError: the batch has fewer than 4 members; the rate is infinite at 3.
    """
    _require_four(batch)
    return (batch - 2) / (batch - 3)


def gradient_growth_of_wide_batches(function: Function, derivative: Function) -> float:
    r"""As :func:`gradient_growth_of_relu` for any nonlinearity, in the limit of large batches.

    .. math:: R = \frac{E[\phi'(z)^2]}{\mathrm{Var}[\phi(z)]}, \qquad z \sim N(0, 1)

    (Yang et al. 2019, theorem 9). At least 1, and 1 for linear functions only (Poincaré's inequality).
    """
    mean = _mean(function)
    return _mean(lambda z: derivative(z) ** 2) / _mean(lambda z: (function(z) - mean) ** 2)


def _require_four(batch: int) -> None:
    if batch < 4:
        raise ArgumentError(f"batch must be at least 4, as the rate is infinite at 3; got {batch!r}")


def _mean(function: Callable[[float], Any]) -> float:
    """Over a standard normal variable; 12 standard deviations hold all but 1e-32 of it."""

    def weighted(z: float) -> float:
        return float(function(z)) * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    return float(sum(quad(weighted, *ends, limit=200)[0] for ends in ((-12.0, 0.0), (0.0, 12.0))))
