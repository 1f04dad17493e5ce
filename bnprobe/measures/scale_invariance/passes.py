"""Forward and backward passes at other parameters than the model's own, none of which is written to."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnprobe.errors import NotMeasuredError
from bnprobe.hooks.segments import plain_forward
from bnprobe.hooks.tensors import with_tensors
from bnprobe.measures.loss import Loss, checked_loss
from bnprobe.measures.scale_invariance.held import Held
from bnprobe.measures.scale_invariance.listening import Listening, Seen
from bnprobe.measures.untouched import Origin

__all__ = ["Change", "Pass", "Passes"]


_REENTRANT = "a reentrant checkpoint has no gradients to give; one with use_reentrant=False has"


@dataclass(frozen=True, eq=False)
class Change:
    """What a pass does to one parameter: ``factor * w + shift``, each ``[C]`` or None."""

    factor: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Pass:
    """What came of a pass.

    Attributes:
        loss: the scalar, on its device.
        gradients: by place among the parameters; None where none arrives, or none was asked for.
        gates: gradients of the gates, by place among the normalizations.
        seen: the normalizations.
    """

    loss: Tensor
    gradients: list[Tensor | None]
    gates: list[Tensor | None]
    seen: list[Seen]


class Passes:
    """Runs the loss at other parameters, each time from the same random state; inside of ``untouched``.

    Args:
        model: as the user gave it.
        root: the same without wrappers.
        loss: ``(model, batch) -> scalar``.
        batch: handed to the loss.
        held: the parameters.
        origin: the state to start from.
        dtype: to compute in; None: as the model is.

    Attributes:
        count: passes so far; those without a backward count as a half.
    """

    def __init__(
        self,
        model: nn.Module,
        root: nn.Module,
        loss: Loss,
        batch: Any,
        held: Sequence[Held],
        origin: Origin,
        dtype: torch.dtype | None,
    ) -> None:
        self._model, self._root, self._loss, self._batch = model, root, loss, batch
        self._held, self._origin, self._dtype = held, origin, dtype
        self.count = 0.0

    def own(self, index: int) -> Tensor:
        """A parameter's values, in the precision of the passes."""
        return self._convert(self._held[index].tensor.detach())

    def run(self, listening: Listening, changes: Mapping[int, Change] | None = None, backward: bool = True) -> Pass:
        """One pass.

        Args:
            listening: what is done to normalizations.
            changes: by place among the parameters.
            backward: whether gradients are wanted.

        Raises:
            NotMeasuredError: the loss is no finite number with a gradient; a checkpoint is reentrant.
        """
        self.count += 1 if backward else 0.5
        changes = changes or {}
        self._origin.rewind()
        leaves = [self._leaf(index, changes.get(index)) for index in range(len(self._held))]
        with ExitStack() as stack:
            stack.enter_context(plain_forward(self._root))
            if type(self._model).__name__ == "DistributedDataParallel":
                stack.enter_context(self._model.no_sync())  # type: ignore[operator]  # gradients are ours alone
            self._put(leaves)
            with listening:
                value = checked_loss(self._loss(self._model, self._copied()))
                _require_finite(value)
                gates = [one.gate for one in listening.seen]
                wanted = [*leaves, *gates] if backward else []
                found = _backward(value, [one for one in wanted if one is not None and one.requires_grad])
        gradients = [found.get(id(one)) for one in leaves]
        return Pass(value.detach(), gradients, [found.get(id(one)) for one in gates], list(listening.seen))

    def _leaf(self, index: int, change: Change | None) -> Tensor | None:
        held = self._held[index]
        if held.why:
            return None
        with torch.inference_mode(False), torch.no_grad():
            values = self.own(index).clone()
            if change is not None and change.factor is not None:
                values = values * held.spread(change.factor).to(values)
            if change is not None and change.shift is not None:
                values = values + held.spread(change.shift).to(values)
        return nn.Parameter(values)

    def _put(self, leaves: Sequence[Tensor | None]) -> None:
        """Exchange what the modules hold; the origin puts it back."""
        twins = {id(held.tensor): leaf for held, leaf in zip(self._held, leaves, strict=True) if leaf is not None}

        def twin(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return twins[id(value)] if id(value) in twins else self._convert(value)

        for module in self._root.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                for table in (module._parameters, module._buffers, module.__dict__):
                    _replace(table, twin)

    def _copied(self) -> Any:
        """The batch, as a layer or the loss may write into it."""

        def copy(tensor: Tensor) -> Tensor:
            with torch.inference_mode(False):
                return self._convert(tensor.detach().clone())

        return with_tensors(self._batch, copy)

    def _convert(self, tensor: Tensor) -> Tensor:
        if self._dtype is None or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        return tensor.detach().to(self._dtype.to_complex() if tensor.is_complex() else self._dtype)


def _replace(held: Any, twin: Any, depth: int = 2) -> None:
    """Exchange the tensors in a dictionary or list, and in those that it holds, as a recurrent layer's weights are."""
    items = list(held.items()) if isinstance(held, dict) else list(enumerate(held))
    for key, value in items:
        if isinstance(value, Tensor):
            other = twin(value)
            if other is not value:
                held[key] = other
        elif depth and isinstance(value, dict | list) and key not in ("_parameters", "_buffers", "_modules"):
            _replace(value, twin, depth - 1)


def _require_finite(value: Tensor) -> None:
    if not bool(value.detach().isfinite()):
        raise NotMeasuredError(f"the loss is {float(value.detach())}")


def _backward(value: Tensor, wanted: list[Tensor]) -> dict[int, Tensor]:
    """Gradients of what is wanted, by identity; modes stay on, so that a checkpoint's layers are seen again."""
    if not wanted:
        return {}
    one = (torch.ones_like(value),)
    try:
        found = torch.autograd.graph._engine_run_backward(
            (value,), one, False, False, tuple(wanted), allow_unreachable=True, accumulate_grad=False
        )
    except RuntimeError as error:
        if "Checkpointing is not compatible" in str(error):
            raise NotMeasuredError(_REENTRANT) from None
        raise
    if any(gradient is None for gradient in found) and _reentrant(value):
        raise NotMeasuredError(_REENTRANT)
    return {id(leaf): got.detach() for leaf, got in zip(wanted, found, strict=True) if got is not None}


def _reentrant(value: Tensor) -> bool:
    """Whether a reentrant checkpoint hides parameters from the graph."""
    seen, waiting = {value.grad_fn}, [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        after = [parent for parent, _ in node.next_functions if parent is not None and parent not in seen]
        seen.update(after)
        waiting.extend(after)
    return False
