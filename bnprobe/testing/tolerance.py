r"""How far a correct layer may be from the law, from its arithmetic alone.

All bounds are first-order worst cases for any order of summation (Higham 2002, chapters 3 and 4; Chan, Golub & LeVeque
1983 for the variance). For a row of m values let u be the unit roundoff in which its statistics are computed and

.. math:: \kappa = (\max|x| + |\mu|) / \sigma, \qquad E = (m + 8) (1 + \kappa) u

A sum of m values is off by at most m u times the sum of their sizes; so the mean by :math:`m u \max|x|`, which is
:math:`E \sigma`, and the variance, computed by two passes or by updating, by :math:`E \sigma^2`. One pass,
:math:`\overline{x^2} - \bar x^2`, would be off by :math:`\kappa^2 u`: no layer has to be. Then

* :math:`\hat x` by :math:`E (1 + |\hat x|)`, and y by :math:`|\gamma|` times that and 4 u for its own operations;
* :math:`\partial L / \partial x` by :math:`6 E (1 + |\hat x|) \max|\gamma g| / \sigma`: six terms, each at most that;
* :math:`\partial L / \partial \gamma` by :math:`2 E \sum |g| (1 + |\hat x|)`, :math:`\partial L / \partial \beta` by
  :math:`n u \sum |g|`;
* with :math:`h = \gamma g`, the gradient of :math:`\langle v, \partial L / \partial x \rangle` to x by
  :math:`20 E (1 + |\hat x|) (|v| |h|_2 + |h| |v|_2 + |v|_2 |h|_2) / \sigma^2`, :math:`|\cdot|_2` the root of the mean
  square: five terms of at most four factors that are off by E each. To g it is linear in v, and to gamma in v and g,
  with twice the operations of :math:`\partial L / \partial x`.

Numbers below the smallest normal one may be flushed to zero. What is rounded to a narrower dtype at the end may be off
by that dtype's u of its size more.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bnprobe.testing.oracles.fixed import Fixed
from bnprobe.testing.oracles.reference import Reference, wide

__all__ = ["Tolerance", "roundoff", "statistics_dtype", "tolerance_of"]


def roundoff(dtype: torch.dtype) -> float:
    """Unit roundoff, half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which statistics of values of this dtype are to be computed: single precision at least."""
    return dtype if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Tolerance:
    """How far each quantity of one batch may be off.

    Attributes:
        reference: what the law gives.
        dtype: of the layer's input.
    """

    reference: Reference
    dtype: torch.dtype

    @property
    def u(self) -> float:
        """Unit roundoff of the statistics."""
        return roundoff(statistics_dtype(self.dtype))

    @property
    def out(self) -> float:
        """Unit roundoff of what the layer returns."""
        return roundoff(self.dtype)

    @property
    def terms(self) -> int:
        """Values in a row; by running statistics nothing is summed."""
        return 1 if isinstance(self.reference.values, Fixed) else self.reference.values.x_hat.shape[1]

    @property
    def condition(self) -> Tensor:
        """Kappa of each row, ``[R, 1]``."""
        values = self.reference.values
        size = (values.x_hat * values.sigma + values.mean).abs()
        if size.shape[1] == 0:
            return torch.zeros_like(values.sigma)
        return (size.amax(1, keepdim=True) + values.mean.abs()) / values.sigma

    @property
    def statistics(self) -> Tensor:
        """E of each row, ``[R, 1]``."""
        return (self.terms + 8) * (1 + self.condition) * self.u

    @property
    def x_hat(self) -> Tensor:
        """Of normalized values, in rows."""
        values = self.reference.values
        flushed = torch.finfo(self.dtype).tiny / values.sigma
        return self.statistics * self._stretch * (1 + values.x_hat.abs()) + flushed

    @property
    def output(self) -> Tensor:
        """Of the output, in the input's shape."""
        values = self.reference.values
        gamma = values.gamma.abs()
        size = values.y.abs() + (gamma * self._stretch * values.x_hat.abs())
        return self.reference.rows.join(gamma * self.x_hat + (4 * self.u + 2 * self.out) * size) + self._tiny

    def input_gradient(self, g: Tensor) -> Tensor:
        """Of the gradient of the input, in its shape."""
        values = self.reference.values
        scaled = (values.gamma * self._stretch * self.reference.rows.split(wide(g))).abs()
        largest = scaled.amax(1, keepdim=True) if scaled.shape[1] else scaled.sum(1, keepdim=True)
        error = 6 * self.statistics + 4 * self.out
        return self.reference.rows.join(error * (1 + values.x_hat.abs()) * largest / values.sigma) + self._tiny

    def gamma_gradient(self, g: Tensor) -> Tensor:
        """Of the gradient of gamma."""
        values = self.reference.values
        scaled = values.x_hat if isinstance(values, Fixed) else values.r * values.x_hat + values.d
        each = self.reference.rows.split(wide(g)).abs() * (1 + torch.maximum(values.x_hat.abs(), scaled.abs()))
        terms = self.reference.rows.join((2 * self.statistics * self._stretch + self._summed(g)) * each)
        return self.reference.per_parameter(terms) + self._tiny

    def beta_gradient(self, g: Tensor) -> Tensor:
        """Of the gradient of beta."""
        return self.reference.per_parameter(wide(g).abs()) * self._summed(g) + self._tiny

    def second(self, g: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the gradients of ``<v, dL/dx>`` to x and g, in the input's shape, and to gamma."""
        values, split, join = self.reference.values, self.reference.rows.split, self.reference.rows.join
        mine, h = split(wide(v)).abs(), (values.gamma * split(wide(g))).abs()
        of_v, of_h = (one.square().mean(1, keepdim=True).sqrt() for one in (mine, h))
        size = (1 + values.x_hat.abs()) * (mine * of_h + h * of_v + of_v * of_h) / values.sigma**2
        to_x = join((20 * self.statistics + 4 * self.out) * size) + self._tiny
        to_g = 2 * self.input_gradient(v)
        passed = (12 * self.statistics + 4 * self.out) * (1 + values.x_hat.abs()) * mine.amax(1, keepdim=True)
        summed = self._summed(g) * (2 + values.x_hat.abs()) * mine.amax(1, keepdim=True)
        terms = join(split(wide(g)).abs() * (passed + summed) / values.sigma)
        return to_x, to_g, self.reference.per_parameter(terms) + self._tiny

    @property
    def why(self) -> str:
        """The derivation, with the numbers of this batch."""
        condition = float(self.condition.max()) if self.condition.numel() else 0.0
        name = str(statistics_dtype(self.dtype)).removeprefix("torch.")
        return (
            f"E = (m + 8) (1 + kappa) u with m = {self.terms} values a row, kappa = (max|x| + |mean|) / sigma "
            f"up to {condition:.3g}, u = {self.u:.1g} ({name})"
        )

    @property
    def _stretch(self) -> Tensor:
        """What batch renormalization multiplies by, 1 elsewhere; an error of its d is one of x_hat."""
        values = self.reference.values
        return torch.ones_like(values.sigma) if isinstance(values, Fixed) else values.r.clamp(min=1)

    @property
    def _tiny(self) -> float:
        return 4 * torch.finfo(self.dtype).tiny

    def _summed(self, g: Tensor) -> float:
        """Of a sum over all values of one parameter, in the dtype of statistics."""
        parameters = 1
        for axis in self.reference.settings.parameter_axes(g.ndim):
            parameters *= g.shape[axis]
        return (g.numel() // max(parameters, 1) + 8) * self.u + 2 * self.out


def tolerance_of(reference: Reference, dtype: torch.dtype) -> Tolerance:
    """Tolerances of a batch of this dtype."""
    return Tolerance(reference, dtype)
