"""Evaluation mode as one linear map with what stands before it."""

import torch
import torch.nn.functional as F

from bnprobe.testing.inputs import Inputs
from bnprobe.testing.likes import ACROSS_SAMPLES
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.properties.broken import compare
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch, tensor
from bnprobe.testing.strategies.batches import Shape
from bnprobe.testing.subject import Subject
from bnprobe.testing.tolerance import roundoff

__all__ = ["evaluation_folds_into_weights"]


def _plain(shape: Shape) -> bool:
    return tuple(shape) in (("N", "C"), ("N", "C", "H", "W"))


@law(
    likes=ACROSS_SAMPLES,
    needs=("running statistics",),
    u=Inputs(dtypes="widest", shapes=_plain),
)
def evaluation_folds_into_weights(subject: Subject, u: Batch) -> None:
    """In evaluation mode BN(Wu + b) = (kW)u + beta + k(b - r_mu) with k = gamma / sqrt(r_v + eps).

    Of a linear layer, and of a 3 by 3 convolution with zero padding, per output channel. Broken by an evaluation mode
    that uses the batch, by eps in another place than in training.
    """
    base = tensor(u, subject.device)
    channels, images = base.shape[1], base.ndim == 4
    generator = torch.Generator().manual_seed(u.seed)
    size = (channels, channels, 3, 3) if images else (channels, channels)
    weight, bias = (torch.randn(one, generator=generator).to(base) for one in (size, (channels,)))

    def apply(weight: torch.Tensor, bias: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return F.conv2d(value, weight, bias, padding=1) if images else F.linear(value, weight, bias)

    with torch.backends.cudnn.flags(allow_tf32=False):
        hidden = apply(weight, bias, base)
    one = subject.specimen(hidden, training=False, seed=u.seed)
    values, join = one.law.values, one.law.rows.join
    at = (slice(0, 1), slice(None), *[slice(0, 1)] * (base.ndim - 2))
    gain = join((values.gamma / values.sigma).expand_as(values.x_hat))[at].reshape(-1)
    shift = join((values.y - values.gamma * values.x_hat).expand_as(values.x_hat))[at].reshape(-1)
    mean = join(values.mean.expand_as(values.x_hat))[at].reshape(-1)
    folded = wide(weight) * gain.reshape(-1, *[1] * (weight.ndim - 1))
    want = apply(folded, shift + (wide(bias) - mean) * gain, wide(base))
    terms = apply(folded.abs(), (wide(bias).abs() * gain.abs()), wide(base).abs())
    bound = one.tolerance.output + (weight[0].numel() + 2) * roundoff(one.x.dtype) * terms
    compare("output", one.module(one.x), want, bound, f"and n u sum|W'u| of the sum, {one.tolerance.why}")
