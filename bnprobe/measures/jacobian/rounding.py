"""What rounding does to a Jacobian's entries: measured against the same piece of the model in another precision."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bnprobe.errors import BnprobeError
from bnprobe.hooks.segments import Segment
from bnprobe.measures.jacobian.operator import Operator, SegmentOperator

__all__ = ["convert", "difference", "rounding"]

# Twice the largest that a block of four vectors and one step of the power method have seen (ours: the tests hold it
# against the exact norm).
_VECTORS, _SAFETY = 4, 2.0
# Precisions that differ by more than this have seen different functions: other random numbers, another branch.
_SAME = 0.1


def rounding(
    operator: SegmentOperator, segment: Segment, begin: Callable[[], None], per_sample: bool, memory: int
) -> Tensor:
    """A bound on the 2-norm of the error that rounding makes in each Jacobian: ``[N]``, float64, on the host.

    By Weyl's theorem no singular value moves by more. It is measured, not proven: the operator's products with a few
    random vectors, and with what a step of the power method makes of these, are compared with the products in double
    precision at the same input (of a model that is in double precision: in single, scaled by the ratio of the two
    roundings). Where the model cannot be run in the other precision the bound is a rule of thumb,
    ``16 eps sqrt(n) |J|`` per leaf module, with the norm seen by random vectors.

    Args:
        operator: whose rounding.
        segment, begin, per_sample: what it was made of.
        memory: bytes that a second set of parameters may take.
    """
    dtypes = {one.dtype for one in segment.inputs}
    own = operator.dtype
    other = torch.float32 if own == torch.float64 else torch.float64
    scale = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps if own == torch.float64 else 1.0
    size = sum(one.numel() for one in (*segment.module.parameters(), *segment.module.buffers())) * other.itemsize
    if size <= memory and segment.inputs[0].device.type != "mps" and dtypes:
        def begin_converted() -> None:
            begin()
            convert(segment.module, other)

        try:
            reference = SegmentOperator(segment.to(other), begin_converted, per_sample)
            if reference.shape == operator.shape and reference.samples == operator.samples:
                error, norm = difference(operator, reference)
                if bool((error <= _SAME * norm).all()) or own not in (torch.float32, torch.float64):
                    return error * scale
        except (RuntimeError, TypeError, ValueError, AttributeError, BnprobeError):
            pass  # something in the model insists on its precision
        finally:
            begin()
    leaves = sum(1 for one in segment.module.modules() if not list(one.children()))
    u = _vectors(operator.samples, operator.shape[0]).to(operator.device, operator.dtype)
    norm = torch.linalg.matrix_norm(operator.rmatmat(u).double().cpu(), 2)
    eps = max(torch.finfo(one).eps for one in dtypes)
    return 16 * eps * leaves * operator.shape[1] ** 0.5 * norm


def difference(operator: Operator, reference: Operator) -> tuple[Tensor, Tensor]:
    """A bound on the 2-norm of the difference of two operators, and their norm as the same vectors saw it: ``[N]``."""

    def both(name: str, block: Tensor) -> tuple[Tensor, Tensor]:
        ours, theirs = (
            getattr(one, name)(block.to(one.device, one.dtype)).double().cpu() for one in (operator, reference)
        )
        return ours - theirs, torch.linalg.matrix_norm(theirs, 2)

    low = min(operator.dtype, reference.dtype, key=lambda dtype: torch.finfo(dtype).bits)
    left, norm = both("rmatmat", _vectors(operator.samples, operator.shape[0]).to(low))
    bound = torch.linalg.matrix_norm(left, 2)
    right = torch.linalg.qr(left + torch.finfo(torch.float64).tiny)[0]
    if bool(right.isfinite().all()):
        bound = torch.maximum(bound, torch.linalg.matrix_norm(both("matmat", right.to(low))[0], 2))
    return _SAFETY * bound, norm


def convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module floating-point tensors of another precision; to be undone by whoever holds its state."""
    twins: dict[int, Tensor] = {}

    def twin(tensor: Tensor) -> Tensor:
        if id(tensor) not in twins:
            changed = tensor.detach().to(dtype)
            twins[id(tensor)] = nn.Parameter(changed, False) if isinstance(tensor, nn.Parameter) else changed
        return twins[id(tensor)]

    for one in module.modules():
        for held in (one._parameters, one._buffers, one.__dict__):
            for name, tensor in list(held.items()):
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    held[name] = twin(tensor)
        if isinstance(one, nn.RNNBase):
            one._flat_weights = [getattr(one, name) for name in one._flat_weights_names]


def _vectors(samples: int, size: int) -> Tensor:
    """Orthonormal random blocks ``[N, size, q]``."""
    generator = torch.Generator().manual_seed(2)
    return torch.linalg.qr(
        torch.randn(samples, size, min(size, _VECTORS), generator=generator, dtype=torch.float64)
    )[0]
