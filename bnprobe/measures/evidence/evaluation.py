"""Whether the user's own evaluation moves running statistics. It is run, and undone."""

import torch
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.segments import plain_forward
from bnprobe.hooks.sites import named_layers
from bnprobe.measures.evidence.mates import spread
from bnprobe.measures.evidence.patient import Patient, set_modes
from bnprobe.measures.evidence.reach import remember, wants_argument

__all__ = ["measure"]

BATCHES = 8


def measure(patient: Patient) -> list[Fact]:
    """``evaluate_move`` a layer: largest move of a running mean, in running standard deviations (of all layers).

    ``evaluate_updates`` a layer: how often; ``evaluate_other_modes``: how many modules were left in another mode than
    before, ``evaluate_left_training``: of those, in training mode. ``evaluate_output_drift`` and
    ``evaluate_loss_drift`` say what the moved statistics do: as in ``freeze``.
    """
    evaluate = patient.given.evaluate
    if evaluate is None:
        raise NotMeasuredError("needs evaluate=: the function that evaluates the model")
    why, _ = patient.why_no_loss, patient.norms  # found by forwards of their own: before the state is set
    patient.origin.rewind()
    before = _buffers(patient)
    remember(patient, evaluate, *([patient.given.optimizer] if patient.given.optimizer is not None else []))
    try:
        with plain_forward(patient.root):
            evaluate(patient.model) if wants_argument(evaluate) else evaluate()
        after = _buffers(patient)
        left = {name: module.training for name, module in named_layers(patient.root)}
    finally:
        patient.origin.restore()
    other = [name for name, mode in left.items() if patient.modes.get(name, mode) != mode]
    facts = [
        Fact("evaluate_other_modes", float(len(other))),
        Fact("evaluate_left_training", float(sum(left[name] for name in other))),
    ]
    for name, (mean, variance, seen) in before.items():
        now_mean, now_variance, now_seen = after[name]
        still = torch.equal(mean, now_mean) and torch.equal(variance, now_variance)
        step = float(((now_mean - mean).abs() / variance.clamp_min(1e-12).sqrt()).max())
        facts.append(Fact("evaluate_move", 0.0 if still else max(step, 1e-12), name))
        facts.append(Fact("evaluate_updates", float(now_seen - seen), name))
    if any(fact.value > 0 for fact in facts if fact.statistic == "evaluate_move"):
        facts += _harm(patient, after, not why)
    return facts


Buffers = dict[str, tuple[Tensor, Tensor, int]]


def _buffers(patient: Patient) -> Buffers:
    found = {}
    for site in patient.tracked:
        mean, variance = site.module.running_mean, site.module.running_var
        seen = getattr(site.module, "num_batches_tracked", None)
        assert isinstance(mean, Tensor)
        assert isinstance(variance, Tensor)
        counted = int(seen) if isinstance(seen, Tensor) else 0
        found[site.name] = (mean.detach().double().clone(), variance.detach().double().clone(), counted)
    return found


def _harm(patient: Patient, after: Buffers, labelled: bool) -> list[Fact]:
    watched = patient.batches[:BATCHES]

    def look() -> tuple[Tensor, float]:
        outputs = torch.cat([patient.outputs(batch) for batch in watched])
        return outputs, sum(map(patient.loss, watched)) / len(watched) if labelled else float("nan")

    patient.origin.rewind()
    set_modes(patient, "stored")
    first, loss = look()
    patient.origin.rewind()
    set_modes(patient, "stored")
    for site in patient.tracked:
        with torch.no_grad():
            site.module.running_mean.copy_(after[site.name][0])  # type: ignore[operator]
            site.module.running_var.copy_(after[site.name][1])  # type: ignore[operator]
    now, moved = look()
    drift = float((now - first).square().mean().sqrt() / spread([first]))
    facts = [Fact("evaluate_output_drift", drift, place="output", count=len(first))]
    if labelled:
        facts.append(Fact("evaluate_loss_drift", (moved - loss) / max(loss, 0.05), place="loss", count=len(watched)))
    return facts
