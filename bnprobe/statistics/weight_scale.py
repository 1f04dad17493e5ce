"""Norm, effective learning rate and angular update of scale-invariant weights during training."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bnprobe.errors import ArgumentError, SelectionError
from bnprobe.hooks.sites import Site, find_sites, named_layers
from bnprobe.hooks.tensors import tensors_in
from bnprobe.measures.loss import Loss
from bnprobe.measures.scale_invariance import scale_invariance
from bnprobe.schedule import Schedule, as_schedule
from bnprobe.statistics.fixed_batch import beside, kept
from bnprobe.statistics.track import Track
from bnprobe.statistics.weight_reading import Slot, slots_of
from bnprobe.statistics.weight_tracker import Candidates, WeightTracker

__all__ = ["WeightScale"]


@dataclass(frozen=True, eq=False, repr=False)
class WeightScale(Track):
    r"""What weight decay and gradients do to the parameters whose length the loss does not see, update by update.

    A weight before a normalization layer can be scaled without changing the loss: what moves is its direction, by
    :math:`\eta/\|w\|^2` times the gradient that it would have at norm 1, and the norm only sets this rate (van
    Laarhoven 2017). Records have the place ``weight`` (of a parameter of another name ``weight.<name>``), the phase
    ``train`` and as ``count`` the parameter's number of entries:

    ===========================  ==================================================================================
    statistic                    meaning
    ===========================  ==================================================================================
    ``weight_norm``              :math:`\|w\|`, before the update
    ``weight_grad_norm``         :math:`\|g\|` of the gradient as the optimizer gets it: summed over micro-batches,
                                 clipped, a gradient scaler's scale undone, without the optimizer's weight decay
    ``weight_dot_grad``          :math:`\langle w, g\rangle`: 0 for a scale-invariant loss but for eps; its ``error``
                                 is the rounding of the sum, not that of the gradient itself
    ``weight_grad_cosine``       the same over both norms. Clipping by value, or a penalty on the weights inside of the
                                 loss, shows here
    ``effective_learning_rate``  :math:`\eta/\|w\|^2`, in which :math:`\eta` is the rate of this very update. The speed
                                 of gradient descent; an optimizer that divides gradients by their size (Adam) goes by
                                 :math:`\eta/\|w\|`
    ``angular_update``           angle between the weight before and after the update, in radians
    ``relative_update``          norm of the update over that of the weight
    ``equilibrium_norm``         the norm at which this update's gradient and weight decay would balance; under AdamW
                                 that at which its rates do, whatever the gradient
    ``equilibrium_angle``        root mean square of ``angular_update`` in equilibrium
    ===========================  ==================================================================================

    The last two are laws (:mod:`bnprobe.measures.norm_dynamics`) at the rates of this update: for ``torch.optim``'s
    ``SGD``, ``AdamW`` and ``Adam`` with decoupled decay, where there is weight decay. They are missing elsewhere:
    Adam with decay in the gradient, ``amsgrad``, any other class. The norm at balance follows single gradients; its
    fourth power is what to average.

    Which parameters: those named in ``parameters``; or, given ``batch``, those that :func:`bnprobe.scale_invariance`
    finds once, before the first update that is read; or else, of the layers that the probe listens to, those whose
    gradients were orthogonal to them at the first ``screen`` updates that were read. For the last, the root mean
    square cosine must not exceed ``tolerance`` nor a tenth of what it is by chance, :math:`1/\sqrt{n}` for n entries:
    a screening, which the inventory says beside each layer. It leaves out parameters of one axis: a gain before ReLU
    and another norm is scale-invariant for as long as its shift is 0, and drifts out of it. Records begin with the
    first update all the same.

    Without an optimizer there is no saying what the gradient at an update was: then the parameters must be found
    otherwise, and norm, angle and relative update are recorded from the second step on. Where ``step()`` is given a
    closure, gradients are read after it, of ``torch.optim``'s optimizers that call it once and leave gradients alone.
    In a job of several processes rank 0 reads; sharded weights are not read.

    It costs a few sums over the weights that are followed, and memory for one copy of them.

    Args:
        parameters: names as in ``named_parameters()``; None to find them.
        loss: ``(model, batch) -> scalar``, as for :func:`bnprobe.scale_invariance`; only with ``batch``.
        batch: on which to find the parameters. It is copied now, and moved to the model's device where it lies
            elsewhere.
        every: every so many steps, or a schedule. Default 1: it is cheap.
        screen: updates that the screening looks at. Default 10, ours: a parameter that is not scale-invariant passes
            with a chance of 1e-9, were its cosines random.
        tolerance: of the screening. Default 1e-3, ours: above what eps leaves where variances are above a hundredth.

    Raises:
        ArgumentError: an argument is not usable.
    """

    parameters: Collection[str] | None = None
    loss: Loss | None = None
    batch: Any = None
    every: int | Schedule = 1
    screen: int = 10
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        as_schedule(self.every)
        if isinstance(self.parameters, str) or (self.parameters is not None and not self.parameters):
            raise ArgumentError(f"parameters must be names of parameters, or None; got {self.parameters!r}")
        if self.parameters is not None:
            object.__setattr__(self, "parameters", tuple(self.parameters))
        if self.batch is None and self.loss is not None:
            raise ArgumentError("loss needs batch: on which to find scale-invariant parameters")
        if self.parameters is not None and self.batch is not None:
            raise ArgumentError("parameters and batch: the batch is for finding the parameters; give one of them")
        if self.batch is not None:
            if next(tensors_in(self.batch), None) is None:
                raise ArgumentError(f"batch must hold tensors; got {type(self.batch).__name__}")
            object.__setattr__(self, "batch", kept(self.batch))
        if not isinstance(self.screen, int) or isinstance(self.screen, bool) or self.screen < 1:
            raise ArgumentError(f"screen must be an int of at least 1; got {self.screen!r}")
        if not self.tolerance > 0:
            raise ArgumentError(f"tolerance must be positive; got {self.tolerance!r}")

    def __repr__(self) -> str:
        """Without the batch, which may be large, and is another on every rank."""
        every = getattr(self.every, "__qualname__", repr(self.every))
        found = "batch" if self.batch is not None else f"screen={self.screen}, tolerance={self.tolerance:g}"
        found = found if self.parameters is None else f"parameters={list(self.parameters)}"
        return f"WeightScale({found}, every={every})"

    def sites(self, root: nn.Module, listened: Sequence[Site]) -> list[Site]:
        """Layers that have a named parameter; without names, all with parameters that the probe listens to.

        Raises:
            SelectionError: the model has no parameter of a name.
        """
        if self.parameters is None:
            return [site for site in listened if next(slots_of([site]), None) is not None]
        layers = {self._slot(root, name).layer for name in self.parameters}
        return find_sites(root, lambda name, _: name in layers)

    def start(
        self, root: nn.Module, sites: Sequence[Site], optimizers: Sequence[torch.optim.Optimizer]
    ) -> WeightTracker:
        """What follows these layers' weights.

        Raises:
            ArgumentError: nothing says which parameters are scale-invariant, and no optimizer lets us see.
        """
        if self.parameters is None and self.batch is None and not optimizers:
            raise ArgumentError(
                "WeightScale() sees by the gradients of updates which parameters are scale-invariant, and so needs "
                "attach(optimizer=...); or give it parameters=, or loss= and batch="
            )
        return WeightTracker(root, self._candidates(root, sites), optimizers, self.due)

    def _candidates(self, root: nn.Module, sites: Sequence[Site]) -> Candidates:
        if self.parameters is not None:
            return Candidates([self._slot(root, name) for name in self.parameters])
        slots = list({id(slot.now): slot for slot in reversed(list(slots_of(sites)))}.values())[::-1]
        if self.batch is None:
            some = [slot for slot in slots if is_lazy(slot.now) or slot.now.dim() > 1]
            return Candidates(some, screen=self.screen, tolerance=self.tolerance)
        return Candidates(slots, search=self._search)

    def _search(self, root: nn.Module) -> Collection[str]:
        """Names of the parameters that are scale-invariant as whole tensors."""
        return scale_invariance(root, self.loss, beside(root, self.batch)).parameters

    def _slot(self, root: nn.Module, name: str) -> Slot:
        """Where the parameter of this name is kept; of one that has several names, any will do."""
        known: Mapping[str, Slot] = {
            slot.name: slot for layer in named_layers(root) for slot in slots_of([Site(*layer, family="other")])
        }
        if name in known:
            return known[name]
        shared = dict(root.named_parameters(remove_duplicate=False))
        for slot in known.values():
            if slot.now is shared.get(name, self):
                return slot
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"near names: {', '.join(near)}" if near else f"the model has {len(known)} parameters"
        raise SelectionError(f"parameters: {name!r} is no parameter of {type(root).__name__}; {hint}")
