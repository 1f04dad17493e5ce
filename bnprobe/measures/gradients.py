"""Gradients of a loss at weights that a measurement sets, each time as if the forward were the first."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.hooks.outputs import order_of_entry
from bnprobe.hooks.segments import plain_forward
from bnprobe.hooks.sites import unwrap
from bnprobe.hooks.tensors import with_tensors
from bnprobe.measures.loss import Loss, checked_loss, loss_or_cross_entropy
from bnprobe.measures.untouched import Origin, untouched

__all__ = ["LossGradients", "derivatives", "flat", "gradients_of", "loss_gradients"]

_KINDS = ("cpu", "cuda", "xpu", "mps")
_GROUP_NORM = (F.group_norm, torch.group_norm, torch.native_group_norm)


@contextmanager
def loss_gradients(model: nn.Module, loss: Loss | None, batch: Any) -> Iterator["LossGradients"]:
    """The gradients of a loss; afterwards all is as before: model, random streams, a module whose method the loss is.

    Raises:
        ArgumentError: the model is no module, no parameter of it trains, or the loss is missing.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    root, loss = unwrap(model), loss_or_cross_entropy(loss, batch)
    owner = loss if isinstance(loss, nn.Module) else getattr(loss, "__self__", None)  # of a method
    others = [owner] if isinstance(owner, nn.Module) else []
    with untouched(root, *others) as origin, torch.inference_mode(False):
        made = LossGradients(root, loss, batch, origin)
        try:
            yield made
        finally:
            torch.clear_autocast_cache()  # what a user's autocast keeps of weights may be of ours


class LossGradients:
    """The gradients of a loss in the parameters that train, at weights that may be set; inside of ``untouched``.

    Every forward begins with the same buffers, the same random numbers and its own copy of the batch's tensors. The
    loss is given the model with its wrappers taken off: those wait for other processes.

    Args:
        root: the model, wrappers taken off.
        loss: ``(model, batch) -> scalar``.
        batch: its second argument.
        origin: the state at which every forward begins.

    Attributes:
        root: the model.
        parameters: those that train, each once.
        weights: their values at the beginning.
        custom: whether there are custom functions in the graph of the loss; known after the first forward.
    """

    def __init__(self, root: nn.Module, loss: Loss, batch: Any, origin: Origin) -> None:
        self.root = root
        self.parameters = [one for one in root.parameters() if one.requires_grad]
        if not self.parameters:
            raise ArgumentError("no parameter of the model requires a gradient")
        self.weights = [one.detach().clone() for one in self.parameters]
        self._loss, self._batch, self._origin = loss, batch, origin
        self._graph: frozenset[str] | None = None
        self.custom = False

    def loss(self) -> Tensor:
        """The loss with its graph.

        Raises:
            NotMeasuredError: it is not one number with a gradient, or hides parameters.
        """
        self._begin()
        found = self._forward()
        if self._graph is None:
            nodes = list(_nodes(found))
            self._graph = frozenset(node.name() for node in nodes)
            if any("CheckpointFunction" in name for name in self._graph):
                raise NotMeasuredError(
                    "reentrant activation checkpointing hides the parameters inside of it from autograd; "
                    "checkpoint(..., use_reentrant=False) does not"
                )
            self.custom = any(isinstance(node, torch.autograd.function.BackwardCFunction) for node in nodes)
            return self.loss() if self._group_norm else found
        return found

    def of(self, parameters: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor | None]]:
        """The loss in double precision, and its gradients as autograd gives them; NaN where they cannot be had.

        Args:
            parameters: some of ``parameters``; None for all. The backward pass ends where it has reached them.
        """
        wanted = self.parameters if parameters is None else parameters
        loss = self.loss()
        if self._pooling and not bool(loss.isfinite()):
            # A window of nothing but padding: torch (2.13) writes its gradient outside of the tensor.
            return _wide(loss.detach()), [torch.full_like(one, torch.nan) for one in wanted]
        return _wide(loss.detach()), gradients_of(loss, wanted)

    def order_of(self, layers: Mapping[str, nn.Module]) -> list[str]:
        """Names of layers in the order in which a forward enters them; those that it does not enter are missing."""
        self._begin()
        return order_of_entry(layers, self._forward)[1]

    def put(self, weights: Sequence[Tensor], parameters: Sequence[Tensor] | None = None) -> None:
        """Set weights: of all parameters, or of some."""
        wanted = self.parameters if parameters is None else parameters
        for parameter, value in zip(wanted, weights, strict=True):
            parameter.data.copy_(value)

    def nudged(self) -> list[Tensor]:
        """The weights of the beginning, each moved by one rounding, up or down at random but always alike.

        What this does to a result tells what rounding does to it: to be off by as much as if the weights had been
        rounded is what a sum of rounded products cannot avoid.
        """
        generators: dict[torch.device, torch.Generator] = {}
        moved = []
        for weight in self.weights:
            generator = generators.setdefault(weight.device, torch.Generator(weight.device).manual_seed(0))
            up = torch.randint(2, weight.shape, generator=generator, device=weight.device, dtype=torch.int8)
            share = max(_autocast_rounding(), torch.finfo(weight.dtype).eps)
            moved.append(torch.where(up.bool(), weight * (1 + share), weight * (1 - share)))
        return moved

    @property
    def rounding(self) -> float:
        """One rounding of the coarsest dtype that weights are used in."""
        return max(_autocast_rounding(), *(torch.finfo(one.dtype).eps for one in self.weights))

    def _begin(self) -> None:
        self._origin.rewind()
        torch.clear_autocast_cache()  # it may hold casts of other weights

    def _forward(self) -> Tensor:
        with plain_forward(self.root), _ContiguousGroupNorm() if self._group_norm else ExitStack():
            return checked_loss(self._loss(self.root, with_tensors(self._batch, _own)))

    @property
    def _group_norm(self) -> bool:
        return any("GroupNorm" in name for name in self._graph or ())

    @property
    def _pooling(self) -> bool:
        return any("MaxPool" in name for name in self._graph or ())


def gradients_of(loss: Tensor, parameters: Sequence[Tensor], again: bool = False) -> list[Tensor | None]:
    """Gradients of a loss, outside of autocast; with graphs of their own, to be differentiated again, if asked for.

    Raises:
        NotMeasuredError: autograd cannot differentiate it.
    """
    with derivatives():
        try:
            return list(torch.autograd.grad(loss, parameters, create_graph=again, allow_unused=True))
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise NotMeasuredError(f"autograd cannot differentiate the loss: {error}") from error


def flat(found: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """Gradients one behind the other, as real numbers in double precision; zeros where there is none."""
    parts = []
    for gradient, parameter in zip(found, parameters, strict=True):
        dense = torch.zeros_like(parameter) if gradient is None else gradient.detach()
        dense = dense if dense.layout is torch.strided else dense.to_dense()
        real = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
        parts.append(_wide(real).reshape(-1))
    return torch.cat(parts)


def _wide(tensor: Tensor) -> Tensor:
    """In double precision, where the device has it."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


@contextmanager
def derivatives() -> Iterator[None]:
    """Derivatives are taken in their own precision, whatever the user's modes are."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in _KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


class _ContiguousGroupNorm(TorchFunctionMode):
    """Gives group norms contiguous inputs.

    On CPUs torch (2.13) crashes where the input is channels last and its own gradient is not wanted.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _GROUP_NORM:
            if args:
                args = (args[0].contiguous(), *args[1:])
            else:
                kwargs = {**kwargs, "input": kwargs["input"].contiguous()}
        return func(*args, **(kwargs or {}))


def _autocast_rounding() -> float:
    kinds = [kind for kind in _KINDS if torch.is_autocast_enabled(kind)]
    return max((torch.finfo(torch.get_autocast_dtype(kind)).eps for kind in kinds), default=0.0)


def _own(tensor: Tensor) -> Tensor:
    """A copy for one forward, which may write into it."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _nodes(loss: Tensor) -> Iterator[Any]:
    """The nodes of a graph."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(following for following, _ in node.next_functions)
