r"""Singular values of a normalization layer's Jacobian, in closed form.

A row of m values with one scale :math:`\gamma` has, by its own statistics (every eps),

.. math:: J = \frac{r \gamma}{\sigma} (I - 11^T / m - \hat x \hat x^T / m)

with the singular values 0 (once), :math:`|r \gamma| \epsilon / \sigma^3` (once) and :math:`|r \gamma| / \sigma`
(m - 2 times; of a constant row m - 1 times); root mean square norm lacks the first. By running statistics all are
:math:`|\gamma| / \sigma`. Where the scale varies within a row there is no closed form: the values are those of
:math:`\mathrm{diag}(\gamma)` times the matrix above, and for eps = 0 they interlace with the scales (Cauchy).
"""

import torch
from torch import Tensor

from bnprobe.testing.oracles.fixed import Fixed
from bnprobe.testing.oracles.normalized import Normalized
from bnprobe.testing.oracles.reference import Reference

__all__ = ["singular_values", "singular_values_of_rows"]


def singular_values(reference: Reference) -> Tensor:
    """All singular values of the whole batch's Jacobian, in descending order."""
    return singular_values_of_rows(reference).reshape(-1).sort(descending=True).values


def singular_values_of_rows(reference: Reference) -> Tensor:
    """Those of each row of values that share statistics ``[R, m]``, in descending order."""
    values = reference.values
    gamma = values.gamma.expand_as(values.x_hat)
    if isinstance(values, Fixed):
        return (gamma / values.sigma).abs().sort(1, descending=True).values
    one_scale = bool((gamma == gamma[:, :1]).all())
    found = _closed(values, gamma[:, :1], reference.settings.eps) if one_scale else _of_matrices(values, gamma)
    return found.sort(1, descending=True).values


def _closed(values: Normalized, gamma: Tensor, eps: float) -> Tensor:
    m = values.x_hat.shape[1]
    gain = (values.r * gamma).abs() / values.sigma
    damped = gain * eps / values.sigma**2
    lost = 1 if values.centred else 0
    zeros = torch.zeros_like(gain).expand(-1, lost)
    if m <= lost:
        return zeros[:, :m]
    return torch.cat([gain.expand(-1, m - 1 - lost), damped, zeros], 1)


def _of_matrices(values: Normalized, gamma: Tensor) -> Tensor:
    """One singular value decomposition a row."""
    m = values.x_hat.shape[1]
    x_hat = values.x_hat
    matrix = torch.eye(m, dtype=torch.float64) - x_hat[:, :, None] * x_hat[:, None, :] / m
    if values.centred:
        matrix = matrix - 1 / m
    scale = values.r * gamma / values.sigma
    values_: Tensor = torch.linalg.svdvals(scale[:, :, None] * matrix)
    return values_
