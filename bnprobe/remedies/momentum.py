"""The momentum of running statistics that are updated several times a step."""

import math

from bnprobe.errors import ArgumentError

__all__ = ["momentum_for"]


def momentum_for(updates_per_step: float, momentum: float = 0.1) -> float:
    r"""The momentum with which k updates weigh the past as one update would: :math:`1 - (1 - m)^{1/k}`.

    Running statistics are updated by every forward in training mode. Gradient accumulation, several forwards a step
    (siamese networks, adversarial training) and checkpoints that run layers again update them k times between two steps
    of the optimizer, and so forget k times as fast: k updates with m leave :math:`(1-m)^k` of the past.

    Source: Ioffe and Szegedy 2015, section 3.1 (moving averages); the k-th root is arithmetic.

    Args:
        updates_per_step: k; may be below 1 where statistics are updated less often than weights.
        momentum: m of one update a step, in PyTorch's sense (the weight of the new value). Default 0.1, PyTorch's.

    Raises:
        ArgumentError: k is not positive, or m is not from 0 to 1.
    """
    if not 0 < updates_per_step < math.inf:
        raise ArgumentError(f"updates_per_step must be a positive number; got {updates_per_step!r}")
    if momentum is None or not 0 <= momentum <= 1:
        raise ArgumentError(f"momentum must be from 0 to 1 (None averages over all updates); got {momentum!r}")
    if momentum == 1:
        return 1.0
    return -math.expm1(math.log1p(-momentum) / updates_per_step)
