"""Batch norms whose parameters are frozen while their running statistics move: what one forward does, and fifty."""

import torch

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.sites import Site, named_layers
from bnprobe.measures.evidence.mates import spread
from bnprobe.measures.evidence.patient import Patient, set_modes

__all__ = ["is_frozen", "measure"]

UPDATES = 50  # the statistics' memory at PyTorch's momentum of 0.1 is ten updates; after fifty they have arrived
LOOKS = (30, 40, 50)  # ours: the median of three looks, so that one batch's accident does not decide
BATCHES = 8  # on so many the drift is looked at


def measure(patient: Patient) -> list[Fact]:
    """``frozen_move`` a layer (largest move of a running mean by one batch, in running standard deviations).

    Of the model, after up to 50 batches in training mode: ``frozen_output_drift`` (in standard deviations of outputs)
    and ``frozen_loss_drift`` (relative rise of the loss with running statistics), with their range over three looks.
    """
    sites = [site for site in patient.tracked if patient.modes[site.name] and is_frozen(patient, site)]
    facts = [Fact("frozen_training", float(len(sites)))]
    if not sites:
        return facts
    before = {site.name: _statistics(site) for site in sites}
    if not _update(patient, sites, 0):
        raise NotMeasuredError("no batch has more than one value a channel")
    moved = [site for site in sites if not _same(before[site.name], _statistics(site))]
    for site in moved:
        (mean, variance), (now, _) = before[site.name], _statistics(site)
        step = ((now - mean).abs() / variance.clamp_min(1e-12).sqrt()).max()
        facts.append(Fact("frozen_move", float(step), site.name))
    try:
        return [*facts, *_drift(patient, moved)] if moved else facts
    except NotMeasuredError:  # outputs that cannot be compared: that they move is known all the same
        return facts


def is_frozen(patient: Patient, site: Site) -> bool:
    """Whether its gain and shift are frozen; where it has none, whether everything around it is."""
    if patient.intent == "frozen":
        return True
    own = list(site.module.parameters(recurse=False))
    if own:
        return not any(one.requires_grad for one in own)
    modules = dict(named_layers(patient.root))
    parent = site.name
    while parent:
        parent = parent.rpartition(".")[0]
        around = list(modules[parent].parameters()) if parent in modules else []
        if around:
            return not any(one.requires_grad for one in around)
    return False


def _statistics(site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    mean, variance = site.module.running_mean, site.module.running_var
    assert isinstance(mean, torch.Tensor)
    assert isinstance(variance, torch.Tensor)
    return mean.detach().double().clone(), variance.detach().double().clone()


def _same(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _update(patient: Patient, sites: list[Site], number: int) -> bool:
    """One batch with these layers in training mode, as they were handed over, and all others in evaluation mode."""
    set_modes(patient, "stored")
    for site in sites:
        site.module.training = True
    try:
        with torch.no_grad():
            patient.run(patient.batches[number % len(patient.batches)])
    except ValueError:  # a batch of one value a channel
        return False
    finally:
        set_modes(patient, "stored")
    return True


def _drift(patient: Patient, sites: list[Site]) -> list[Fact]:
    patient.origin.rewind()
    set_modes(patient, "stored")
    watched = patient.batches[:BATCHES]
    first = [patient.outputs(batch) for batch in watched]
    scale, loss = spread(first), _loss(patient)
    outputs, losses = [], []
    for number in range(UPDATES):
        _update(patient, sites, number)
        if number + 1 in LOOKS:
            now = [patient.outputs(batch) for batch in watched]
            outputs.append(float((torch.cat(now) - torch.cat(first)).square().mean().sqrt() / scale))
            losses.append((_loss(patient) - loss) / max(loss, 0.05))
    facts = [_summary("frozen_output_drift", outputs)]
    return facts if loss != loss else [*facts, _summary("frozen_loss_drift", losses)]


def _loss(patient: Patient) -> float:
    if patient.why_no_loss:
        return float("nan")
    set_modes(patient, "stored")
    return sum(patient.loss(batch) for batch in patient.batches[:BATCHES]) / len(patient.batches[:BATCHES])


def _summary(name: str, values: list[float]) -> Fact:
    low, middle, high = sorted(values)
    return Fact(name, middle, place="output", count=UPDATES, low=low, high=high)
