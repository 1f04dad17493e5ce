"""Normalization by running statistics, in double precision: a line for every channel, and its derivatives."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Fixed"]


@dataclass(frozen=True)
class Fixed:
    """Rows of one batch, normalized by statistics that do not depend on it.

    Attributes:
        x_hat: ``[R, m]``, with the running statistics.
        y: output.
        mean: ``[R, 1]``, running.
        variance: running.
        sigma: root of variance + eps.
        gamma: scale of each value.
    """

    x_hat: Tensor
    y: Tensor
    mean: Tensor
    variance: Tensor
    sigma: Tensor
    gamma: Tensor

    @classmethod
    def of(cls, x: Tensor, gamma: Tensor, beta: Tensor, eps: float, mean: Tensor, variance: Tensor) -> "Fixed":
        """Normalize rows ``[R, m]`` by ``[R, 1]`` statistics."""
        sigma = (variance + eps).sqrt()
        x_hat = (x - mean) / sigma
        return cls(x_hat, gamma * x_hat + beta, mean, variance, sigma, gamma)

    def gradient(self, g: Tensor) -> Tensor:
        """Of the input, for the gradient g at the output."""
        return self.gamma * g / self.sigma

    def gamma_gradient(self, g: Tensor) -> Tensor:
        """Of each value's scale."""
        return g * self.x_hat

    def second(self, g: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of ``<v, gradient(g)>`` with respect to x (none), g and each value's scale."""
        return torch.zeros_like(g), self.gamma * v / self.sigma, g * v / self.sigma
