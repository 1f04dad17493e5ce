"""Gradients that a ``torch.amp.GradScaler`` has scaled: by how much, and which steps it skipped."""

import sys

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

__all__ = ["SCALED", "Scaling", "stepped_by_a_scaler"]

SCALED = "grad_output: multiplied by a GradScaler's scale; attach(scaler=...) undoes it"

_FRAMES = 16  # between an optimizer's hook and the scaler's step: PyTorch's own wrappers, a scheduler's
_STEPS = {torch.amp.GradScaler.step.__code__, torch.amp.GradScaler._maybe_opt_step.__code__}


class Scaling:
    """What a gradient scaler does, read without waiting for the device.

    Args:
        scaler: the scaler of the training loop.
        optimizer: the optimizer whose step ends a step, where the probe has one.
    """

    def __init__(self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer | None) -> None:
        self._scaler, self._optimizer = scaler, optimizer
        # There is no hook on a scaler, and whether a step was skipped is on the device. But it notes which optimizers
        # it has been told to step, in a dictionary that each `update()` replaces.
        self._round = self._settled = scaler._per_optimizer_states

    def undo(self, gradient: Tensor) -> Tensor:
        """The gradient of the loss as the user wrote it, float32 or wider: unscaled halves would vanish."""
        scale = self._scaler._scale
        if scale is None or not self._scaler.is_enabled():
            return gradient
        wide = gradient if gradient.dtype == torch.float64 else gradient.float()
        return wide / scale.to(gradient.device, non_blocking=gradient.device.type != "cpu")

    def stepped(self) -> None:
        """The optimizer has stepped."""
        self._settled = self._scaler._per_optimizer_states

    def skipped(self) -> bool:
        """Whether the scaler was told to step the optimizer and did not; asked again, of what came since."""
        before, self._round = self._round, self._scaler._per_optimizer_states
        for states in (before, self._round):
            told = id(self._optimizer) in states and states[id(self._optimizer)]["stage"] is OptState.STEPPED
            if told and states is not self._settled:
                self._settled = states
                return True
        return False


def stepped_by_a_scaler() -> bool:
    """Whether the optimizer's step that is running was called by a gradient scaler."""
    frame = sys._getframe(1)
    for _ in range(_FRAMES):
        if frame.f_code in _STEPS:
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False
