"""Which layers that others wrote keep statistics of a part of their input, such as the frames that are no padding."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from bnprobe.hooks.outputs import calls_at
from bnprobe.hooks.sites import Site
from bnprobe.measures.evidence.moments import Chunk, channel_moments

if TYPE_CHECKING:
    from bnprobe.measures.evidence.patient import Patient

__all__ = ["partial_layers"]

NEAR = 0.02  # standard deviations; ours: rounding is a thousandth of it, padding far more


def partial_layers(patient: "Patient", sites: Sequence[Site]) -> frozenset[str]:
    """Those whose own update is not to the mean of what they are given.

    One batch with a momentum at which the running mean becomes that of the batch: 1, or 0 where the convention is the
    other one. What has no momentum, or raises, gets the benefit of the doubt.
    """
    asked = {site.name: site for site in sites if isinstance(getattr(site.module, "momentum", None), float)}
    suspects = set(asked)
    for momentum in (1.0, 0.0):
        suspects -= _right(patient, asked, momentum)
    patient.origin.rewind()
    return frozenset(suspects)


def _right(patient: "Patient", asked: dict[str, Site], momentum: float) -> set[str]:
    from bnprobe.measures.evidence.patient import set_modes

    patient.origin.rewind()
    set_modes(patient, "batch")
    last: dict[str, Chunk] = {}

    def see(name: str, _: int, x: torch.Tensor, __: object) -> None:
        found = channel_moments(asked[name], x)
        if found is not None:
            last[name] = found

    try:
        for site in asked.values():
            setattr(site.module, "momentum", momentum)  # noqa: B010 - of a class that is not known here
        with calls_at({name: site.module for name, site in asked.items()}, see), torch.no_grad():
            patient.run(patient.batches[0])
    except Exception:  # measurements will say what it is
        return set(asked)
    return {name for name, site in asked.items() if name not in last or _is_near(site.module, last[name])}


def _is_near(module: Any, given: Chunk) -> bool:
    mean = module.running_mean.detach().double()
    off = (mean - given[1].to(mean.device)).abs() / given[2].to(mean.device).clamp_min(1e-30).sqrt()
    alive = given[2] > 0
    return not bool(alive.any()) or float(off[alive].median()) < NEAR
