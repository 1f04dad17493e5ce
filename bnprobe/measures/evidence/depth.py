"""How strong activations are behind each norm layer, from first to last, and which layers do not normalize at all."""

from typing import Any

import torch
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.outputs import calls_at
from bnprobe.hooks.sites import Site
from bnprobe.hooks.tensors import tensors_in
from bnprobe.measures.evidence.patient import Patient, set_modes

__all__ = ["measure"]

MOST_BATCHES = 4


def measure(patient: Patient) -> list[Fact]:
    """Of layers that have running statistics, in the order of their calls, with these statistics in use.

    ``activation_rms``: root mean square of the output of the first call. ``identity``: mean 0, variance 1 and (where it
    has them) gamma 1 and beta 0, so that the layer does nothing. ``frozen``: of a class that never updates; or in
    evaluation mode while the model trains, while gamma and beta do not, or by the intent ``frozen``.
    """
    sites = {site.name: site for site in patient.norms if site.family == "batch_norm" and _has_statistics(site)}
    if not sites:
        raise NotMeasuredError("no layer has running statistics")
    set_modes(patient, "stored")
    facts = [Fact("identity", float(_is_identity(site)), site.name) for site in sites.values()]
    facts += [Fact("frozen", float(_is_frozen(patient, site)), site.name) for site in sites.values()]
    sums: dict[str, list[Tensor]] = {}

    def see(name: str, call: int, _: Tensor, output: object) -> None:
        y = next((one for _, one in tensors_in(output)), None)
        if call == 0 and y is not None and y.numel():
            sums.setdefault(name, []).append(y.detach().double().square().mean())

    for batch in patient.batches[:MOST_BATCHES]:
        with calls_at({name: site.module for name, site in sites.items()}, see), torch.no_grad():
            patient.run(batch)
    strengths = {name: float(torch.stack(squares).mean().sqrt()) for name, squares in sums.items()}
    return facts + [Fact("activation_rms", value, name, place="output") for name, value in strengths.items()]


def _has_statistics(site: Site) -> bool:
    return all(isinstance(getattr(site.module, name, None), Tensor) for name in ("running_mean", "running_var"))


def _is_identity(site: Site) -> bool:
    module: Any = site.module
    values = (("running_mean", 0), ("running_var", 1), ("weight", 1), ("bias", 0))
    tensors = [(getattr(module, name, None), value) for name, value in values]
    return all(bool((one == value).all()) for one, value in tensors if isinstance(one, Tensor))


def _is_frozen(patient: Patient, site: Site) -> bool:
    if "frozen" in type(site.module).__name__.lower():
        return True
    if patient.modes[site.name] or patient.intent == "train":
        return False
    own = list(site.module.parameters(recurse=False))
    still = bool(own) and not any(one.requires_grad for one in own)
    return still or patient.modes[""] or patient.intent == "frozen"
