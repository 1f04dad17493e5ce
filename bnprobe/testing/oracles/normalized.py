r"""Normalization by the batch's or the sample's own statistics, in double precision, with its derivatives.

One row x of m values with elementwise scale :math:`\gamma` and shift :math:`\beta`:

.. math:: \hat x = (x - \mu) / \sigma, \quad \sigma^2 = s^2 + \epsilon, \quad y = \gamma (r \hat x + d) + \beta

with r = 1 and d = 0 but for batch renormalization (Ioffe 2017), where they are constants to the gradient. Root mean
square norm has no :math:`\mu`. Everything is written out in elementwise operations and sums: neither torch's
normalization functions nor autograd has a part in it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Normalized", "normalize"]


@dataclass(frozen=True)
class Normalized:
    """Rows of one batch, normalized; all ``[R, m]`` or ``[R, 1]``, double precision.

    Attributes:
        x_hat: normalized values, before r and d.
        y: output.
        mean: 0 where the layer does not centre.
        variance: biased; of root mean square norm, the mean square.
        sigma: root of variance + eps.
        gamma: scale of each value.
        r: factor of batch renormalization, else 1.
        d: shift of batch renormalization, else 0.
        centred: whether the mean is subtracted.
    """

    x_hat: Tensor
    y: Tensor
    mean: Tensor
    variance: Tensor
    sigma: Tensor
    gamma: Tensor
    r: Tensor
    d: Tensor
    centred: bool

    def project(self, h: Tensor) -> Tensor:
        r"""Rows of :math:`h - \bar h - \hat x \overline{\hat x h}`: what of a gradient passes."""
        passed = h - self.x_hat * _mean(self.x_hat * h)
        return passed - _mean(h) if self.centred else passed

    def gradient(self, g: Tensor) -> Tensor:
        """Of the input, for the gradient g at the output."""
        return self.project(self.r * self.gamma * g) / self.sigma

    def gamma_gradient(self, g: Tensor) -> Tensor:
        """Of each value's scale; the parameter's is its sum over the values that share it."""
        return g * (self.r * self.x_hat + self.d)

    def second(self, g: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Gradients of :math:`\langle v, \mathrm{gradient}(g) \rangle` with respect to x, g and each value's scale.

        With :math:`P h` the projection, :math:`h = r \gamma g` and :math:`F = \langle v, P h \rangle / \sigma`:

        .. math:: \partial F / \partial x = -\frac{1}{m \sigma} \left(F \hat x
            + \frac{1}{\sigma} P [v \langle h, \hat x \rangle + h \langle v, \hat x \rangle]\right)

        for :math:`\partial \hat x / \partial x = P / \sigma` and :math:`\partial \sigma / \partial x = \hat x / m`.
        Not for batch renormalization, whose r depends on x but is not differentiated.
        """
        m = g.shape[1]
        h = self.gamma * g
        passed = self.project(v) / self.sigma
        total = (v * self.project(h)).sum(1, keepdim=True) / self.sigma
        mixed = v * _sum(h * self.x_hat) + h * _sum(v * self.x_hat)
        of_x = -(total * self.x_hat + self.project(mixed) / self.sigma) / (m * self.sigma)
        return of_x, self.gamma * passed, g * passed


def normalize(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    *,
    centred: bool = True,
    renorm: tuple[Tensor, Tensor, float, float] | None = None,
) -> Normalized:
    """Normalize rows by their own statistics.

    Args:
        x: ``[R, m]``, double precision.
        gamma: scale of each value, ``[R, m]`` or what broadcasts to it.
        beta: shift of each value.
        eps: added to the variance.
        centred: False for root mean square norm.
        renorm: running mean and standard deviation ``[R, 1]``, largest r and largest d, of batch renormalization.
    """
    mean = _mean(x) if centred else torch.zeros_like(_mean(x))
    variance = _mean((x - mean) ** 2)
    sigma = (variance + eps).sqrt()
    x_hat = (x - mean) / sigma
    r, d = torch.ones_like(sigma), torch.zeros_like(sigma)
    if renorm is not None:
        running_mean, running_sigma, r_max, d_max = renorm
        r = (sigma / running_sigma).clamp(1 / r_max, r_max)
        d = ((mean - running_mean) / running_sigma).clamp(-d_max, d_max)
    return Normalized(x_hat, gamma * (r * x_hat + d) + beta, mean, variance, sigma, gamma, r, d, centred)


def _sum(x: Tensor) -> Tensor:
    return x.sum(1, keepdim=True)


def _mean(x: Tensor) -> Tensor:
    return _sum(x) / max(x.shape[1], 1)
