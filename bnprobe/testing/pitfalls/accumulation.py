"""Gradient accumulation and batch norm."""

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from bnprobe.errors import ArgumentError
from bnprobe.testing.pitfalls.chance import require_distribution
from bnprobe.testing.pitfalls.layer import Make, layer_of
from bnprobe.testing.pitfalls.registry import RATE, pitfall
from bnprobe.testing.properties.broken import compare, require

__all__ = ["accumulation"]


@pitfall("layer")
def accumulation(
    make: Make,
    *,
    parts: int = 4,
    samples: int = 4,
    repeats: int = 128,
    channels: int = 4,
    seed: int = 0,
    rate: float = RATE,
) -> None:
    r"""Gradients accumulated over k parts are not those of a batch k times as large: each part is normalized by itself.

    What differs between the parts is gone: their outputs all have mean 0, where in the large batch F = MSB / MSW of
    their means is that of the data. The buffers are updated k times. Broken by a layer that carries statistics from one
    part to the next.

    Null law: with independent Gaussian values F of the large batch's outputs has the F distribution with k - 1 and
    k (m - 1) degrees of freedom, whatever scale and shift the layer applies; tested by Kolmogorov and Smirnov's exact
    test over repeats and channels. That of the parts' outputs is 0 up to rounding.

    Args:
        make: ``channels -> module``, a batch norm.
        parts: k.
        samples: m of a part.
        repeats: large batches.
        channels: how many.
        seed: of the values.
        rate: how often chance alone may fail a sound layer.

    Raises:
        LawBrokenError: the layer does otherwise.
        ArgumentError: fewer than two parts or samples.
    """
    if parts < 2 or samples < 2:
        raise ArgumentError(f"parts and samples must be at least 2; got {parts} and {samples}")
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(repeats, parts, samples, channels, generator=draws, dtype=torch.float64)
    layer = layer_of(make, channels)
    whole = torch.stack([layer.train(one.reshape(-1, channels)).reshape(one.shape) for one in x])
    freedom = (parts - 1, parts * (samples - 1))
    why = f"F with {freedom[0]} and {freedom[1]} degrees of freedom"
    require_distribution("F of the large batch's outputs", _f(whole), stats.f(*freedom), rate, why)
    counted = layer.parts.batches
    before = 0 if counted is None else int(counted)
    split = torch.stack([torch.stack([layer.train(part) for part in one]) for one in x])
    means = split.mean(2)
    size = float(x.abs().max()) / float(x.var(2, correction=0).min()) ** 0.5
    compare("mean of a part's outputs", means, torch.zeros_like(means), layer.rounding(samples, 1 + size), "rounding")
    if (counted := layer.parts.batches) is not None:
        want = before + repeats * parts
        require(int(counted) == want, f"the counter of batches is {int(counted)} where {want} parts were seen")


def _f(outputs: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """Of each repeat and channel, from ``[R, k, m, C]``."""
    samples = outputs.shape[2]
    of_means = samples * outputs.mean(2).var(1)
    return (of_means / outputs.var(2).mean(1)).numpy()
