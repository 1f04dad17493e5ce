"""Internal covariate shift as Santurkar et al. measure it: how the layers before move a layer's gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnprobe.errors import NotMeasuredError
from bnprobe.hooks.sites import LayerChoice, find_sites, named_layers
from bnprobe.measures.gradients import LossGradients, flat, loss_gradients
from bnprobe.measures.loss import Loss
from bnprobe.measures.next_weights import check_optimizers, next_weights
from bnprobe.measures.owners import Owner, owners

__all__ = ["GradientShifts", "gradient_shift", "shifts_of"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class GradientShifts:
    """How far the gradient of each layer moves when the layers before it are updated.

    Attributes:
        layers: L names, in the order in which a forward enters the layers.
        l2: ``[L]``, norm of G - G'.
        cosine: ``[L]``, of the angle between G and G'; NaN where one of them is zero.
        norm: ``[L]``, of G, the gradient at the weights as they are.
        shifted_norm: ``[L]``, of G', the gradient with the layers before updated.
        error: ``[L]``, what rounding makes of ``l2``, estimated, see :func:`gradient_shift`.
        cosine_error: ``[L]``, the same of ``cosine``.
        parameters: ``[L]``, how many numbers each layer's gradient has.
        why: by name, the reason why a layer was not measured.
    """

    layers: tuple[str, ...]
    l2: Array
    cosine: Array
    norm: Array
    shifted_norm: Array
    error: Array
    cosine_error: Array
    parameters: NDArray[np.int64]
    why: Mapping[str, str] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row a layer, in their order; those that were not measured at the end, with the reason."""
        columns = ("l2", "error", "cosine", "cosine_error", "norm", "shifted_norm", "parameters")
        measured = pd.DataFrame({"layer": list(self.layers), **{name: getattr(self, name) for name in columns}})
        missing = pd.DataFrame({"layer": list(self.why), "why": list(self.why.values())})
        table = (
            pd.concat([measured.assign(why=""), missing], ignore_index=True) if self.why else measured.assign(why="")
        )
        return table.astype({"parameters": "Int64"})


def gradient_shift(
    model: nn.Module, loss: Loss | None, batch: Any, optimizer: Any, layers: LayerChoice = None
) -> GradientShifts:
    r"""Change of each layer's gradient by the update of the layers before it (Santurkar et al. 2018, section 2.2).

    For layer i of k with weights :math:`W_1 \dots W_k` at step t and one batch (x, y) it compares

    .. math::
        G_i = \nabla_{W_i} L(W_1^t, \dots, W_k^t; x, y), \qquad
        G'_i = \nabla_{W_i} L(W_1^{t+1}, \dots, W_{i-1}^{t+1}, W_i^t, W_{i+1}^t, \dots, W_k^t; x, y),

    where t + 1 is after the optimizer's step with the gradients of this batch. The step is taken by a copy of the
    optimizer, with its momenta and weight decay as they are now; what a training loop does to gradients before the step
    (clipping, accumulation) is not done. Of the first layer G' is G by definition.

    *Layers* are modules with parameters of their own that train; gamma and beta of a norm layer are a layer. Their
    order is that in which a forward first enters them, a module that contains others before these. Parameters of
    modules that are not called as such (the projections of attention, parametrizations) belong to the module around
    them; shared ones to the layer that is entered first, and they change wherever they are used.

    *Cost*: k + 3 forwards, k + 2 backward passes, of which k end at their layer: half a pass each on average. Memory
    for about six copies of the parameters and one of the optimizer's state.

    *Error*: what becomes of G where each weight is moved by one rounding of its dtype, times the square root of two for
    G and G'. One draw, so an estimate and no bound. A shift below it is not told from rounding: then measure a model in
    double precision.

    Args:
        model: any module, in the mode in which it is to be measured; it is left as it was. The loss is given it with
            its wrappers (``DistributedDataParallel``, ``torch.compile``) taken off.
        loss: ``(model, batch) -> scalar``. None: cross entropy, where the batch is ``(x, y)`` with class labels y.
        batch: what the loss is given; tensors in it are copied for each forward.
        optimizer: that of the model, or several; any whose step needs gradients alone. It is left as it was.
        layers: which to measure, as for :func:`bnprobe.attach`; None for all. The others are updated all the same, and
            cost no pass.

    Raises:
        ArgumentError: an argument is not usable; the optimizer has no parameter of the model, needs a closure
            (``LBFGS``), or cannot be copied.
        SelectionError: no layer is chosen.
        NotMeasuredError: the loss is not one number with a gradient, or no chosen layer has one; the order of the
            layers is not known (scripted modules), or autograd does not see them (reentrant checkpointing).
    """
    chosen = None if layers is None else [site.name for site in find_sites(model, layers)]
    return shifts_of(model, loss, batch, optimizer, chosen)


def shifts_of(
    model: nn.Module, loss: Loss | None, batch: Any, optimizer: Any, chosen: Sequence[str] | None
) -> GradientShifts:
    """As :func:`gradient_shift`, of the layers of these names, or of all."""
    with loss_gradients(model, loss, batch) as gradients:
        optimizers = check_optimizers(optimizer, gradients.parameters)
        _, before = gradients.of()
        place = {id(one): index for index, one in enumerate(gradients.parameters)}
        layers, why = _layers(gradients, before)
        wanted = {one.name for one in layers} if chosen is None else set(chosen)
        gradients.put(gradients.nudged())
        _, nudged = gradients.of()
        gradients.put(gradients.weights)
        after = next_weights(optimizers, gradients.parameters, before)
        measured: dict[str, Tensor] = {}
        for layer in layers:
            at = [place[id(one)] for one in layer.parameters]
            known = [before[index] for index in at]
            if layer.name in wanted and all(one is None for one in known):
                why[layer.name] = "the loss does not depend on its parameters"
            elif layer.name in wanted:
                found = [known, gradients.of(layer.parameters)[1], [nudged[index] for index in at]]
                measured[layer.name] = _compared(*(flat(one, layer.parameters) for one in found))
            gradients.put([after[index] for index in at], layer.parameters)
    for name in wanted - {one.name for one in layers}:
        why.setdefault(name, "it has no parameters of its own that train")
    return _result(layers, measured, {name: why[name] for name in why if chosen is None or name in wanted})


def _layers(gradients: LossGradients, found: Sequence[Tensor | None]) -> tuple[list[Owner], dict[str, str]]:
    """Layers in the order of a forward, given the gradients of all parameters; and why others are none."""
    modules = dict(named_layers(gradients.root))
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule) and any(one.requires_grad for one in module.parameters()):
            raise NotMeasuredError(f"{name!r} is scripted: it calls its layers outside of Python, in an unknown order")
    callable_ = {name: one for name, one in modules.items() if not isinstance(one, torch.jit.ScriptModule)}
    pairs = zip(gradients.parameters, found, strict=True)
    used = {id(one) for one, gradient in pairs if gradient is not None}
    return owners(gradients.root, gradients.order_of(callable_), used)


def _compared(before: Tensor, after: Tensor, nudged: Tensor) -> Tensor:
    """Norms of G - G', G and G', their scalar product, and the norm of what rounding does to G."""
    norms = [one.norm() for one in (before - after, before, after)]
    return torch.stack([*norms, before @ after, (nudged - before).norm()])


def _result(layers: Sequence[Owner], measured: Mapping[str, Tensor], why: Mapping[str, str]) -> GradientShifts:
    if not measured:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in why.items())
        raise NotMeasuredError(f"no chosen layer has a gradient: {reasons}")
    l2, norm, shifted, product, off = torch.stack(list(measured.values())).cpu().double().numpy().T
    sizes = {one.name: sum(part.numel() for part in one.parameters) for one in layers}
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.where((norm > 0) & (shifted > 0), product / (norm * shifted), np.nan)
        turned = np.minimum(off * (1 / norm + 1 / shifted), 2.0)
    counts = np.array([sizes[name] for name in measured], np.int64)
    return GradientShifts(
        tuple(measured), l2, np.clip(cosine, -1, 1), norm, shifted, np.sqrt(2) * off, turned, counts, why
    )
