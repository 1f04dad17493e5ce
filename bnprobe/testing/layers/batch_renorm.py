"""Batch renormalization."""

import torch
from torch import Tensor, nn

__all__ = ["BatchRenorm"]


class BatchRenorm(nn.Module):
    r"""Batch renormalization of ``[N, C, ...]`` (Ioffe 2017).

    .. math:: \hat x = \frac{x - \mu_B}{\sigma_B} r + d, \quad
        r = \mathrm{clip}(\sigma_B / \sigma, 1 / r_{max}, r_{max}), \quad
        d = \mathrm{clip}((\mu_B - \mu) / \sigma, \pm d_{max})

    r and d are constants to the gradient. Where neither is clipped the training forward is that of evaluation; with
    r_max = 1 and d_max = 0 it is batch norm. As in torch's batch norm the variance that normalizes is biased and the
    one that is kept is not; the paper keeps a standard deviation instead.

    Args:
        num_features: C.
        eps: added to variances.
        momentum: weight of the new batch.
        r_max: the paper ends its schedule at 3.
        d_max: the paper ends its schedule at 5.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, r_max: float = 3.0, d_max: float = 5.0
    ) -> None:
        super().__init__()
        self.eps, self.momentum, self.r_max, self.d_max = eps, momentum, r_max, d_max
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, and in training mode update the running statistics.

        Raises:
            ValueError: there is one value a channel in training mode.
        """
        shape, narrow = (1, -1, *[1] * (x.ndim - 2)), x.dtype
        x = x.to(torch.promote_types(narrow, self.running_mean.dtype))  # no statistics in half precision
        mean, sigma = self.running_mean, (self.running_var + self.eps).sqrt()
        if not self.training:
            x_hat = (x - mean.view(shape)) / sigma.view(shape)
        else:
            m = x.numel() // x.shape[1]
            if m < 2:
                raise ValueError(f"expected more than 1 value per channel in training mode; got {tuple(x.shape)}")
            axes = [0, *range(2, x.ndim)]
            batch_mean, batch_variance = x.mean(axes), x.var(axes, correction=0)
            batch_sigma = (batch_variance + self.eps).sqrt()
            r = (batch_sigma.detach() / sigma).clamp(1 / self.r_max, self.r_max)
            d = ((batch_mean.detach() - mean) / sigma).clamp(-self.d_max, self.d_max)
            x_hat = (x - batch_mean.view(shape)) / batch_sigma.view(shape) * r.view(shape) + d.view(shape)
            with torch.no_grad():
                self.running_mean.lerp_(batch_mean.detach(), self.momentum)
                self.running_var.lerp_(batch_variance.detach() * m / (m - 1), self.momentum)
                self.num_batches_tracked.add_(1)
        return (self.weight.view(shape) * x_hat + self.bias.view(shape)).to(narrow)
