"""Weights before batch norm have no scale."""

from typing import Any

import torch
from torch import Tensor, nn

from bnprobe.hooks.sites import find_sites
from bnprobe.testing.models.model import Model, batch_norms, samples_of, with_batch_statistics
from bnprobe.testing.models.registry import model_law
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.properties.broken import NotApplicable, compare

__all__ = ["scale_invariant_weights"]

_TINY = 1e-30  # an eps that no variance of interest sees
_WEIGHTS = 16  # ours: as many weights, spread over the depth, as keep the check of a deep net under a few seconds
_FACTOR = 2.0  # a power of two: scaling by it rounds nothing


@model_law(at_most=2)
def scale_invariant_weights(model: Model, x: Any) -> None:
    """Doubling a scale-invariant weight, in training, is the same as a quarter of the eps of the batch norm behind it.

    Scale-invariant is a weight (with its bias) whose doubling changes no output where eps is 0; the batch norms behind
    it are those whose batch variance it makes four times as large. Exactly, for every eps: BN(2x; eps) = BN(x; eps /
    4). Broken by an eps that is added outside of the root, or twice; by a clamp on the variance.
    """
    module, batch = model.widest(x)
    if not any(one.dtype == torch.float64 for one in module.parameters()):
        raise NotApplicable("the model does not run in double precision")
    if samples_of(batch) < 2:
        return
    norms = with_batch_statistics(module)
    eps = {site.name: float(site.module.eps) for site in norms if isinstance(site.module.eps, float)}
    layers = [site for site in find_sites(module) if site.family in ("linear", "conv")]
    layers = layers[:: max(1, -(-len(layers) // _WEIGHTS))]
    found = False
    for site in layers:
        behind = _behind(model, batch, module, site.module)
        if not behind:
            continue
        found = True
        _set_eps(module, {name: eps[name] / _FACTOR**2 if name in behind else eps[name] for name in eps})
        want = _outputs(model, batch, module)
        _set_eps(module, eps)
        got = _scaled(model, batch, module, site.module)
        with_less = float(max((one.abs().max() for one in want if one.numel()), default=torch.zeros(())))
        # Both runs are the same operations on numbers that differ by powers of two.
        for one, other in zip(got, want, strict=True):
            why = "2^-30 of the largest: half of the digits of double precision are left to conditioning"
            compare(f"output with {site.name} doubled", one, other, 2.0**-30 * with_less, why)
    if not found:
        raise NotApplicable("no weight is scale-invariant")


def _outputs(model: Model, batch: Any, module: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return [wide(one).clone() for one in model.outputs(module, batch)]


def _scaled(model: Model, batch: Any, module: nn.Module, layer: nn.Module) -> list[Tensor]:
    """Outputs with a layer's own parameters doubled; afterwards they are as before."""
    own = list(layer.parameters(recurse=False))
    with torch.no_grad():
        for one in own:
            one.mul_(_FACTOR)
        try:
            return _outputs(model, batch, module)
        finally:
            for one in own:
                one.div_(_FACTOR)


def _behind(model: Model, batch: Any, module: nn.Module, layer: nn.Module) -> list[str]:
    """Batch norms that see a weight's scale and take it away; none where the outputs see it too."""
    if not any(True for _ in layer.parameters(recurse=False)):
        return []
    norms = batch_norms(module)
    _set_eps(module, {site.name: _TINY for site in norms})
    for site in norms:
        site.module.momentum = 1.0  # type: ignore[assignment] # a number, as it was

    def variances() -> dict[str, Tensor]:
        return {site.name: wide(site.module.running_var).clone() for site in norms}  # type: ignore[arg-type] # a tensor

    plain, before = _outputs(model, batch, module), variances()
    scaled, after = _scaled(model, batch, module, layer), variances()
    for one, other in zip(plain, scaled, strict=True):
        if not torch.allclose(one, other, rtol=0, atol=1e-9 * float(one.abs().max()) if one.numel() else 0.0):
            return []
    return [
        name for name in before
        if bool((before[name] > 0).any()) and torch.allclose(after[name], _FACTOR**2 * before[name], rtol=1e-6)
    ]  # fmt: skip


def _set_eps(module: nn.Module, values: dict[str, float]) -> None:
    for site in batch_norms(module):
        if site.name in values:
            site.module.eps = values[site.name]  # type: ignore[assignment] # a number, as it was
