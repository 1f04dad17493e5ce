"""Passes in which every normalization is seen, and done as a law wants it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bnprobe.errors import NotMeasuredError
from bnprobe.measures.scale_invariance.normalizations import Normalization, normalization

__all__ = ["AsWritten", "Divided", "Listening", "Relative", "Seen", "grown_by"]

_TINY = {torch.float64: 1e-100}  # eps that no variance notices; its inverse square root squared stays finite
_TINY_ELSE = 1e-30
_ALIKE = 0.01  # relative difference of variances of the same input in two passes: rounding, of half precision too
_SAMPLED = 4096  # values of a channel from which the growth of x-hat is measured (ours)


@dataclass(frozen=True, eq=False)
class Seen:
    """One normalization of a pass.

    Attributes:
        family: as in :class:`Normalization`.
        variances: ``[R, K]``, of its input in this pass.
        eps: of the call.
        gate: ``[R, K]`` ones, by which x-hat was multiplied, with gradient.
        measured: ``[R, K]``, r as measured: by how much x-hat grows where the input is not divided.
    """

    family: str
    variances: Tensor
    eps: float
    gate: Tensor | None = None
    measured: Tensor | None = None


class Listening(TorchFunctionMode, ABC):
    """Inside, each normalization by statistics of the batch itself goes through :meth:`_do`.

    Attributes:
        seen: the normalizations of the forward, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Seen] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """A normalization, or whatever else was called."""
        kwargs = kwargs or {}
        call = normalization(func, args, kwargs)
        if call is None:
            output = func(*args, **kwargs)
            if "max_pool" in getattr(func, "__name__", ""):
                _check_pooled(output)
            return output
        again = self._recomputed(call)
        output, seen = self._do(call, len(self.seen) if again is None else again)
        if again is None:
            self.seen.append(seen)
        return output

    @abstractmethod
    def _do(self, call: Normalization, index: int) -> tuple[Tensor, Seen]:
        """The output of the how many-eth normalization of this forward."""

    def _recomputed(self, call: Normalization) -> int | None:
        """Which one it is where a checkpoint runs its layers again inside of the backward pass."""
        if torch._C._current_graph_task_id() == -1:
            return None
        variances = call.variances()
        alike = {
            index: float(((one.variances - variances) / (variances + one.eps)).abs().max())
            for index, one in enumerate(self.seen)
            if one.family == call.family and one.variances.shape == variances.shape
        }
        nearest = min(alike, key=lambda index: alike[index], default=-1)
        if nearest < 0 or not alike[nearest] <= _ALIKE:
            raise NotMeasuredError("a checkpoint runs its layers again on another input")
        return nearest


class AsWritten(Listening):
    """As the user wrote it; x-hat of each group has a gate, whose gradient is :math:`<dL/dx-hat, x-hat>`.

    Args:
        base: the normalizations of an earlier pass at the same parameters.
    """

    def __init__(self, base: Sequence[Seen]) -> None:
        super().__init__()
        self._base = base

    def _do(self, call: Normalization, index: int) -> tuple[Tensor, Seen]:
        if index < len(self.seen):
            one = self.seen[index]
            return call.gained(_required(one.gate)), one
        variances = _same(self._base, index, call)
        gate = torch.ones_like(variances, requires_grad=True)
        return call.gained(gate), Seen(call.family, variances, call.eps, gate=gate)


class Relative(Listening):
    r"""With an epsilon that is a share of the variance: the same values, and scale-invariant to the last digit.

    x-hat is :math:`\sqrt{\rho} (x - \mu) / s` with :math:`\rho = s^2 / (s^2 + \epsilon)` held fixed.

    Args:
        base: the normalizations of an earlier pass, whose rho are taken; None: this pass's own.
        signs: by index, ``[1, K]`` of 1 and -1: which groups are expected with their signs changed.
    """

    def __init__(self, base: Sequence[Seen] | None = None, signs: dict[int, Tensor] | None = None) -> None:
        super().__init__()
        self._base, self._signs = base, signs or {}

    def _do(self, call: Normalization, index: int) -> tuple[Tensor, Seen]:
        before = None if self._base is None else _same(self._base, index, call)
        variances = before if before is not None and self._signs else call.variances()  # with signs nobody looks at it
        before = variances if self._base is None else _same(self._base, index, call, variances)
        gain = (before / (before + call.eps)).sqrt()
        if index in self._signs:
            gain = gain * self._signs[index].to(gain)
        return call.gained(gain, _TINY.get(call.x.dtype, _TINY_ELSE)), Seen(call.family, variances, call.eps)


class Divided(Listening):
    """Each group's input divided by how much larger it is than in an earlier pass.

    Where it was only scaled, this is the earlier pass again. It is the same as an epsilon that grows by the square of
    the factor. What not dividing would make of x-hat is measured.

    Args:
        base: the normalizations of the earlier pass.
    """

    def __init__(self, base: Sequence[Seen]) -> None:
        super().__init__()
        self._base = base

    def _do(self, call: Normalization, index: int) -> tuple[Tensor, Seen]:
        now = call.variances()
        ratio = grown_by(_same(self._base, index, call, now), now)
        divided = replace(call, x=call.x / call.spread(ratio).to(call.x.dtype))
        output = divided.output()
        return output, Seen(call.family, now, call.eps, measured=_grown(call, output))


def _grown(call: Normalization, divided: Tensor) -> Tensor:
    """The factor that, in the least squares sense, makes the output for the divided input that for the input.

    Of batch norm a few samples tell it.
    """
    with torch.no_grad():
        reference, grown = divided.detach(), call.output().detach()
        if call.family == "batch":
            some = max(2, _SAMPLED * reference.shape[1] // reference.numel() * len(reference))
            reference, grown = reference[:some], grown[:some]
        wide = torch.promote_types(reference.dtype, torch.float32)
        reference, grown = (call.without_beta(one.to(wide)) for one in (reference, grown))
        return call.sums(reference * grown) / call.sums(reference.square())


def grown_by(before: Tensor, now: Tensor) -> Tensor:
    """Factors by which a standard deviation grew; 1 where there was or is none."""
    ratio = (now / before).sqrt()
    return torch.where((before > 0) & (now > 0) & ratio.isfinite(), ratio, 1.0)


def _same(base: Sequence[Seen], index: int, call: Normalization, now: Tensor | None = None) -> Tensor:
    """The variances of the same normalization in an earlier pass."""
    before = base[index] if index < len(base) else None
    if before is None or before.family != call.family or (now is not None and before.variances.shape != now.shape):
        raise NotMeasuredError("the model normalizes something else when its parameters are scaled")
    return before.variances


def _required(gate: Tensor | None) -> Tensor:
    if gate is None:
        raise AssertionError("a pass as written has gates")
    return gate


def _check_pooled(output: Any) -> None:
    """A window of nothing but padding: torch (2.13) writes its gradient outside of the tensor."""
    pooled = output[0] if isinstance(output, tuple) else output
    if isinstance(pooled, Tensor) and pooled.device.type == "cpu" and not bool(pooled.detach().isfinite().all()):
        raise NotMeasuredError("the output of max pooling has values that are not finite")
