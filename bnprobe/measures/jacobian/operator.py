"""A Jacobian as an operator: products with blocks of vectors from either side, for all samples at once."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import combinations, islice
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bnprobe.errors import NotMeasuredError
from bnprobe.hooks.segments import Segment

__all__ = ["Operator", "SegmentOperator"]


class Operator(Protocol):
    """N linear maps of one shape.

    Attributes:
        samples: how many, N.
        shape: (outputs m, inputs n) of each.
        dtype, device: of the vectors.
    """

    samples: int
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    def matmat(self, v: Tensor) -> Tensor:
        """``J v``: ``[N, n, b]`` to ``[N, m, b]``."""

    def rmatmat(self, u: Tensor) -> Tensor:
        """``J^T u``: ``[N, m, b]`` to ``[N, n, b]``."""


class SegmentOperator:
    """The Jacobian of a piece of a model's forward; its graph is kept for as long as this lives.

    Products from the left go back through the graph (``autograd.grad`` under vmap; one by one where a function of the
    model cannot be vmapped). Products from the right differentiate the backward pass, which is linear in the vector
    that enters it, once more (J. Townsend, *A new trick for calculating Jacobian vector products*, 2017). Where that
    cannot be had, or where custom functions are in the graph and a random pair of vectors shows that their backward
    passes hide something from autograd, forward mode is taken.

    Args:
        segment: the piece.
        begin: called before each forward: it must make all of them alike (buffers, random numbers).
        per_sample: the first axis of all inputs and outputs counts samples that do not interact: N Jacobians. Else
            one, of everything.

    Raises:
        NotMeasuredError: a tensor is complex or empty; or no output depends on an input.
    """

    def __init__(self, segment: Segment, begin: Callable[[], None], per_sample: bool = False) -> None:
        self._segment, self._begin = segment, begin
        with _plain(segment.inputs[0].device):
            self._leaves = [one.detach().clone().requires_grad_() for one in segment.inputs]
            inputs = [leaf.clone() for leaf in self._leaves]  # a layer may write into what it is given
        begin()
        self._outputs = [one for one in segment(inputs) if one.requires_grad]
        self._check()
        first = self._leaves[0]
        every = [*self._leaves, *self._outputs]
        self.dtype, self.device = first.dtype, first.device
        for one in every:
            self.dtype = torch.promote_types(self.dtype, one.dtype)
        lengths = {one.shape[0] if one.dim() else 0 for one in every}
        self.batch = lengths.pop() if len(lengths) == 1 else 0  # 0: the first axis does not count samples
        self._vmapped = True
        self._transposed: tuple[list[Tensor], list[Tensor]] | None = None
        self._forward_mode = False
        self.split(per_sample)

    def split(self, per_sample: bool) -> None:
        """Look at it as one Jacobian a sample, or as one of everything."""
        self.samples = self.batch if per_sample else 1
        outputs, inputs = (sum(one.numel() for one in some) for some in (self._outputs, self._leaves))
        self.shape = (outputs // self.samples, inputs // self.samples)

    def interacts(self) -> bool:
        """Whether an output of one sample depends on the input of another.

        Measured: a random vector at the outputs of some samples must have an exactly zero product with the inputs of
        all others, for so many choices of samples that each is once among them without any other one. Subsets of half
        of k vectors, one subset a sample, do that with the least k (Sperner 1928).
        """
        if self.batch <= 1:
            return self.batch == 0
        count = next(k for k in range(2, self.batch + 2) if math.comb(k, k // 2) >= self.batch)
        subsets = torch.tensor(list(islice(combinations(range(count), count // 2), self.batch)))
        among = torch.zeros(self.batch, count, dtype=torch.bool).scatter_(1, subsets, True).T.to(self.device)
        self.split(True)
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(1, self.batch, self.shape[0], generator=generator).to(self.device, self.dtype)
        reached = (self.rows(u * among[:, :, None]) != 0).any(-1)
        return bool((reached & ~among).any())

    def rmatmat(self, u: Tensor) -> Tensor:
        """``J^T u``: ``[N, m, b]`` to ``[N, n, b]``."""
        return self.rows(u.permute(2, 0, 1)).permute(1, 2, 0)

    def matmat(self, v: Tensor) -> Tensor:
        """``J v``: ``[N, n, b]`` to ``[N, m, b]``.

        Raises:
            NotMeasuredError: the model has no derivatives that give it.
        """
        return self.columns(v.permute(2, 0, 1)).permute(1, 2, 0)

    def rows(self, u: Tensor) -> Tensor:
        """``u^T J`` as ``[b, N, m]`` to ``[b, N, n]``."""
        return self._joined(self._pull(self._outputs, self._leaves, self._parts(u, self._outputs)), self._leaves)

    def columns(self, v: Tensor) -> Tensor:
        """``J v`` as ``[b, N, n]`` to ``[b, N, m]``."""
        if not self._forward_mode and self._transposed is None:
            self._differentiate_twice()
        if self._transposed is None:
            return self._push(v)
        seeds, gradients = self._transposed
        wanted = [one for one, gradient in zip(self._parts(v, self._leaves), self._graded, strict=True) if gradient]
        return self._joined(self._pull(gradients, seeds, wanted), self._outputs)

    def _check(self) -> None:
        if not self._outputs:
            raise NotMeasuredError("no output depends on the input through operations that have derivatives")
        for one in (*self._leaves, *self._outputs):
            if one.numel() == 0:
                raise NotMeasuredError(f"a tensor of shape {tuple(one.shape)} holds no values")
        graph, leaves = _graph(self._outputs), {id(one) for one in self._leaves}
        if not any(id(getattr(node, "variable", None)) in leaves for node in graph):
            raise NotMeasuredError("{1} does not depend on {0}".format(*self._segment.names))
        pooled = any("MaxPool" in node.name() for node in graph)
        if pooled and not all(bool(one.detach().isfinite().all()) for one in self._outputs):
            # A window of nothing but padding: torch (2.13) writes its gradient outside of the tensor.
            raise NotMeasuredError("the output of max pooling has values that are not finite")
        self._custom = any(isinstance(node, torch.autograd.function.BackwardCFunction) for node in graph)

    def _differentiate_twice(self) -> None:
        """Make the graph of the backward pass; find out whether its derivative is the Jacobian."""
        try:
            seeds = [torch.zeros_like(one).requires_grad_() for one in self._outputs]
            with _plain(self.device):
                found = torch.autograd.grad(
                    self._outputs, self._leaves, seeds, create_graph=True, retain_graph=True, allow_unused=True
                )
            self._graded = [one is not None and one.requires_grad for one in found]
            self._transposed = (seeds, [one for one in found if one is not None and one.requires_grad])
            sound = bool(self._transposed[1]) and (not self._custom or self._is_adjoint())
        except (RuntimeError, NotMeasuredError):
            sound = False
        if sound:
            return
        self._transposed, self._forward_mode = None, True
        try:
            sound = self._is_adjoint()
        except RuntimeError as error:
            raise NotMeasuredError(f"the model has neither second nor forward derivatives: {error}") from error
        if not sound:
            raise NotMeasuredError("the model's derivatives contradict one another: a custom function has a wrong one")

    def _is_adjoint(self) -> bool:
        """Whether ``<u, J v>`` is ``<J^T u, v>`` for a random pair."""
        (m, n), generator = self.shape, torch.Generator().manual_seed(1)
        u = torch.randn(1, self.samples, m, generator=generator).to(self.device, self.dtype)
        v = torch.randn(1, self.samples, n, generator=generator).to(self.device, self.dtype)
        back, forth = self.rows(u).double().cpu(), self.columns(v).double().cpu()
        u, v = u.double().cpu(), v.double().cpu()
        gap = ((u * forth).sum() - (back * v).sum()).abs()
        # Of an n-term sum of products rounded at random; a wrong derivative is off by the sum itself.
        size = u.norm() * forth.norm() + back.norm() * v.norm()
        return bool(gap <= 64 * torch.finfo(self._roughest()).eps * size) or not bool(gap.isfinite())

    def _roughest(self) -> torch.dtype:
        return max((one.dtype for one in (*self._leaves, *self._outputs)), key=lambda dtype: torch.finfo(dtype).eps)

    def _push(self, v: Tensor) -> Tensor:
        """``J v`` in forward mode, one vector at a time: each is a forward."""
        rows = []
        for one in zip(*self._parts(v, self._leaves), strict=True):
            self._begin()
            with _plain(self.device), forward_ad.dual_level():
                make: Any = forward_ad.make_dual
                unpack: Any = forward_ad.unpack_dual
                duals = [make(leaf, t) for leaf, t in zip(self._leaves, one, strict=True)]
                outputs = [unpack(output) for output in self._segment([dual.clone() for dual in duals])]
                tangents = [
                    torch.zeros_like(primal) if tangent is None else tangent
                    for primal, tangent in outputs
                    if primal.requires_grad
                ]
            rows.append(self._joined([tangent[None] for tangent in tangents], self._outputs))
        return torch.cat(rows)

    def _pull(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], u: Sequence[Tensor]) -> list[Tensor]:
        """Gradients ``[b, ...]`` of ``outputs`` for each vector of a block."""

        def gradients(seeds: Sequence[Tensor], batched: bool) -> list[Tensor]:
            found = torch.autograd.grad(
                outputs, inputs, seeds, retain_graph=True, allow_unused=True, is_grads_batched=batched
            )
            shape = (len(u[0]),) if batched else ()
            return [
                one.new_zeros(*shape, *one.shape) if gradient is None else gradient
                for one, gradient in zip(inputs, found, strict=True)
            ]

        with _plain(self.device):
            if self._vmapped and len(u[0]) > 1:
                try:
                    return gradients(u, batched=True)
                except RuntimeError as error:
                    if isinstance(error, torch.OutOfMemoryError):
                        raise
                    self._vmapped = False  # a function that knows no vmap
            try:
                every = [gradients([one[i] for one in u], batched=False) for i in range(len(u[0]))]
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise NotMeasuredError(f"autograd cannot differentiate it: {error}") from error
        return [torch.stack(one) for one in zip(*every, strict=True)]

    def _parts(self, block: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """A block ``[b, N, size]`` as one tensor ``[b, *shape]`` for each of ``like``."""
        sizes = [one.numel() // self.samples for one in like]
        return [
            part.reshape(len(block), *one.shape).to(one.dtype)
            for part, one in zip(torch.split(block, sizes, -1), like, strict=True)
        ]

    def _joined(self, parts: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
        """The other way round."""
        flat = [part.reshape(len(part), self.samples, -1).to(self.dtype) for part in parts]
        assert len(flat) == len(like)
        return (flat[0] if len(flat) == 1 else torch.cat(flat, -1)).detach()


def _graph(outputs: Sequence[Tensor]) -> list[Any]:
    """Every node of the graph of some tensors."""
    found: dict[Any, None] = {}
    waiting = [one.grad_fn for one in outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = None
            waiting.extend(following for following, _ in node.next_functions)
    return list(found)


def _plain(device: torch.device) -> ExitStack:
    """Derivatives are taken in their own precision, whatever the user's modes are."""
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.enable_grad())
    stack.enter_context(torch.autocast(device.type, enabled=False))
    return stack
