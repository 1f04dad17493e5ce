"""Pointwise nonlinearities: the Jacobian is the diagonal of f'(x)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnprobe.measures.jacobian.closed.column_sums import column_sums
from bnprobe.measures.jacobian.closed.union import EPS, Block, union
from bnprobe.measures.jacobian.values import SingularValues

__all__ = ["KINKED", "SMOOTH", "pointwise"]

KINKED: frozenset[type[nn.Module]] = frozenset(
    {
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Threshold,
        nn.Hardsigmoid,
    }
)  # fmt: skip
SMOOTH: frozenset[type[nn.Module]] = frozenset(
    {
        nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign, nn.ELU,
        nn.CELU, nn.SELU, nn.Hardswish,
    }
)  # fmt: skip


def pointwise(module: nn.Module, x: Tensor) -> SingularValues | None:
    """``|f'(x)|``, sorted per sample.

    f' is autograd's, in double precision; at a kink it is what autograd takes there. A random slope (RReLU while
    training) has no closed form.

    *Error.* 8 roundings of ``1 + |f'|``: each of these derivatives is made of a few terms of size 1, up to a scale
    that the derivative itself has somewhere.
    """
    if isinstance(module, nn.RReLU) and module.training:
        return None
    forward = module.forward
    if isinstance(module, nn.PReLU):
        slope = module.weight.detach().double()

        def forward(z: Tensor) -> Tensor:
            return F.prelu(z, slope)

    derivative, _ = column_sums(forward, x.double())
    values = derivative.abs()
    size = 1 + values if type(module) in SMOOTH else torch.where(values == 1, 0.0, values)
    return union([Block(values, 8 * EPS * size)], (values.shape[1], values.shape[1]), len(x))
