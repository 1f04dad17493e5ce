"""What rounding does to a Jacobian: measured against the same piece of the model in another precision."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnprobe.errors import BnprobeError
from bnprobe.hooks.segments import Segment
from bnprobe.measures.jacobian.operator import Operator, SegmentOperator

__all__ = ["Reference", "convert"]

# Three times the largest that a block of four vectors and one step of the power method have seen (ours: in 2,500 random
# networks twice was too little once).
_VECTORS, _SAFETY = 4, 3.0
# Precisions that differ by more than this have seen different functions: other random numbers, another branch.
_SAME = 0.1
_COARSE = 1e-4  # of half precision even the same function may differ as much


class Reference:
    """The Jacobians of a piece of a model in another precision, to tell the rounding of those in its own.

    The other precision is double; of a model in double precision it is single, and the differences are scaled by the
    ratio of the two roundings.

    Args:
        operator: the Jacobians in the model's own precision.
        segment, begin: what it was made of.
        memory: bytes that a second set of parameters may take.
    """

    def __init__(self, operator: SegmentOperator, segment: Segment, begin: Callable[[], None], memory: int) -> None:
        own = operator.dtype
        other = torch.float32 if own == torch.float64 else torch.float64
        self._ratio = torch.finfo(own).eps / torch.finfo(other).eps if own == torch.float64 else 1.0
        kinds = {one.dtype for one in (*segment.inputs, *segment.module.parameters()) if one.is_floating_point()}
        self._eps = max(torch.finfo(one).eps for one in {own, *kinds})
        self._leaves = sum(1 for one in segment.module.modules() if not list(one.children()))
        self._operator = self._made(operator, segment, begin, other, memory)

    def written_out(self, matrix: Tensor, write: Callable[[SegmentOperator], Tensor]) -> Tensor | None:
        """What :meth:`rounding` measures, exactly, of small matrices ``[N, r, L]``: the norms of their errors, ``[N]``.

        Args:
            matrix: the Jacobians.
            write: writes the same ones out from an operator.

        Returns:
            The norms; None where the model does not run in the other precision.
        """
        if self._operator is None:
            return None
        difference = write(self._operator).double().sub_(matrix)  # in place: it is ours, and memory is what this costs
        size = torch.linalg.vector_norm(difference, dim=(1, 2), keepdim=True).clamp_min(1e-300)
        gram = difference.div_(size) @ difference.mT
        error = _host(torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0).sqrt() * size[:, 0, 0])
        norm = _host(torch.linalg.vector_norm(matrix, dim=(1, 2)))
        trusted = self._eps > _COARSE or bool((error <= _SAME * norm).all())
        return error * self._ratio if trusted else None

    def rounding(self, operator: Operator, chosen: slice = slice(None)) -> Tensor:
        """A bound on the 2-norm of the error that rounding makes in each Jacobian: ``[N]``, float64, on the host.

        By Weyl's theorem no singular value moves by more. It is measured, not proven: products with four random
        vectors from the left, and with what a step of the power method makes of their errors from the right, are
        compared; the bound is three times the largest norm of the differences. Where the model cannot run in the other
        precision it is a rule of thumb, ``16 eps sqrt(n) |J|`` for each leaf module, ``|J|`` as the vectors see it.

        Args:
            operator: the Jacobians in the model's own precision, or some of them.
            chosen: which samples of the reference they are.
        """
        low = torch.float32 if operator.dtype == torch.float64 else operator.dtype
        left = _vectors(operator.samples, operator.shape[0]).to(low)
        product = _host(operator.rmatmat(left.to(operator.device, operator.dtype)))
        if self._operator is not None:
            reference = _Part(self._operator, chosen)
            error = product - _host(reference.rmatmat(left))
            bound, norm = _norm(error), _norm(product)
            if bool((bound <= _SAME * norm).all()) or self._eps > _COARSE:
                right = torch.linalg.qr(error + torch.finfo(torch.float64).tiny)[0].to(low)
                try:
                    theirs = _host(reference.matmat(right))
                    ours = _host(operator.matmat(right.to(operator.device, operator.dtype)))
                    bound = torch.maximum(bound, _norm(ours - theirs))
                except BnprobeError:  # no derivatives from this side
                    bound = 2 * bound
                bound *= _SAFETY * self._ratio
                return bound
        return _norm(product) * (16 * self._eps * self._leaves * math.sqrt(operator.shape[1]))

    @staticmethod
    def _made(
        operator: SegmentOperator, segment: Segment, begin: Callable[[], None], dtype: torch.dtype, memory: int
    ) -> SegmentOperator | None:
        held = (*segment.module.parameters(), *segment.module.buffers())
        if sum(one.numel() for one in held) * dtype.itemsize > memory or operator.device.type == "mps":
            return None

        def begin_converted() -> None:
            begin()
            convert(segment.module, dtype)

        try:
            made = SegmentOperator(segment.to(dtype), begin_converted)
            made.split(operator.samples > 1)
        except Exception:  # something in the model insists on its precision, in whatever words
            return None
        same = made.shape == operator.shape and made.samples == operator.samples and made.dtype == dtype
        return made if same else None


class _Part:
    """Some of the samples of an operator."""

    def __init__(self, operator: SegmentOperator, chosen: slice) -> None:
        self._operator, self._chosen = operator, chosen

    def rmatmat(self, u: Tensor) -> Tensor:
        product: Tensor = self._operator.rmatmat(self._filled(u))[self._chosen]
        return product

    def matmat(self, v: Tensor) -> Tensor:
        product: Tensor = self._operator.matmat(self._filled(v))[self._chosen]
        return product

    def _filled(self, block: Tensor) -> Tensor:
        block = block.to(self._operator.device, self._operator.dtype)
        if len(block) == self._operator.samples:
            return block
        full = block.new_zeros(self._operator.samples, *block.shape[1:])
        full[self._chosen] = block
        return full


def convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module floating-point tensors of another precision; to be undone by whoever holds its state."""
    twins: dict[int, Tensor] = {}

    def twin(tensor: Tensor) -> Tensor:
        if id(tensor) not in twins:
            changed = tensor.detach().to(dtype)
            twins[id(tensor)] = nn.Parameter(changed, False) if isinstance(tensor, nn.Parameter) else changed
        return twins[id(tensor)]

    for one in module.modules():
        tables: tuple[dict[str, Any], ...] = (one._parameters, one._buffers, one.__dict__)
        for held in tables:
            for name, tensor in list(held.items()):
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    held[name] = twin(tensor)
        if isinstance(one, nn.RNNBase):
            one._flat_weights = [getattr(one, name) for name in one._flat_weights_names]


def _vectors(samples: int, size: int) -> Tensor:
    """Orthonormal random blocks ``[N, size, q]``."""
    generator = torch.Generator().manual_seed(2)
    block = torch.randn(samples, size, min(size, _VECTORS), generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(block)[0]
    return basis


def _host(block: Tensor) -> Tensor:
    return block.detach().cpu().double()


def _norm(block: Tensor) -> Tensor:
    """2-norms of thin matrices ``[N, size, q]``, from their Gram matrices: quicker than as many SVDs."""
    scale = torch.linalg.vector_norm(block, dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    unit = block / scale  # whose squares do not underflow
    largest: Tensor = torch.linalg.eigvalsh(unit.mT @ unit)[:, -1]
    norms: Tensor = largest.clamp_min(0).sqrt() * scale[:, 0, 0]
    return norms
