"""Whether what is predicted for a sample depends on the samples that come with it.

The same samples among other mates, in the state in which the model predicts: as it was handed over where that is
evaluation mode or the user says so, else after ``eval()``. Random numbers are the same in all forwards, so that
dropout changes nothing. A change is looked at again in double precision, where kernels of other batch sizes cannot be the
reason; and with batch statistics held still, which tells whether normalization is.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.tensors import with_tensors
from bnprobe.measures.evidence.fixed import HeldStill
from bnprobe.measures.evidence.mates import Change, Company, apart, change, company, spread
from bnprobe.measures.evidence.patient import Patient

__all__ = ["in_double", "judged_as_handed_over", "measure", "ready"]

# Below this, in standard deviations of outputs, nothing needs a second look; float32 kernels stay below it on CPUs.
WORTH_A_LOOK = 1e-4
LARGEST = 200_000_000  # parameters; ours: a copy in double precision takes eight bytes each
AGREEMENT = 0.05  # ours: how far a copy in double precision may be off, to be taken for the same model

Predict = Callable[[Any], Tensor]


def measure(patient: Patient) -> list[Fact]:
    """``swap_change`` with ``swap_noise``, ``swap_alone``, ``swap_random``, ``swap_exact``, ``swap_without_norms``.

    ``swap_after_eval`` is 1 where it was judged after ``eval()``; then ``swap_change_handed`` is that of the mode of
    hand-over.
    """
    found = company(patient)
    handed = judged_as_handed_over(patient)
    facts = [Fact("swap_after_eval", float(not handed))]
    try:
        facts += _judged(patient, found, handed)
        if not handed:
            seen = change(_predictor(patient, True), found)
            facts.append(_fact("swap_change_handed", seen))
    except NotMeasuredError:
        if len(facts) == 1:
            raise
    except Exception as error:
        if len(facts) == 1:
            raise NotMeasuredError(
                f"the model cannot take parts of batches: it raised {type(error).__name__}: {error}"
            ) from error
    return facts


def judged_as_handed_over(patient: Patient) -> bool:
    """Whether the state of hand-over is the one in which it predicts."""
    return not patient.modes[""] or patient.intent in ("serve", "batch-stats-at-test", "transductive")


def ready(patient: Patient) -> None:
    """Put the model into the state in which it predicts."""
    patient.origin.rewind()
    if not judged_as_handed_over(patient):
        patient.root.eval()


def _judged(patient: Patient, found: Company, handed: bool) -> list[Fact]:
    predict = _predictor(patient, handed)
    seen, exact = change(predict, found), False
    random = _random(patient, predict, found, seen)
    alone = _alone(predict, found, seen.scale) if random == 0 else float("nan")
    held = float("nan")
    if max(seen.value, 0 if alone != alone else alone) > WORTH_A_LOOK:
        double = in_double(patient, found.batches[0])
        if double is not None:
            predict, exact = double, True
            seen = change(predict, found)
            alone = _alone(predict, found, seen.scale) if alone == alone else alone
        held = _held_still(patient, handed, predict, found)
    facts = [
        _fact("swap_change", seen),
        Fact("swap_noise", seen.noise, place="output", count=seen.count),
        Fact("swap_random", random, place="output", count=seen.count),
        Fact("swap_exact", float(exact)),
    ]
    extra = {"swap_alone": alone, "swap_without_norms": held}
    return facts + [Fact(name, value, place="output") for name, value in extra.items() if value == value]


def _fact(name: str, seen: Change) -> Fact:
    return Fact(name, seen.value, place="output", count=seen.count, low=seen.low, high=seen.high)


def _predictor(patient: Patient, handed: bool) -> Predict:
    def predict(batch: Any) -> Tensor:
        patient.origin.rewind()
        if not handed:
            patient.root.eval()
        return patient.outputs(batch)

    return predict


def _random(patient: Patient, predict: Predict, found: Company, seen: Change) -> float:
    """Median change of outputs by other random numbers alone."""
    first = predict(found.batches[0])
    second = patient.outputs(found.batches[0])  # random streams went on; nothing else that training mode uses did
    return float(apart(first, second, seen.scale)[: found.probes].quantile(0.5))


def _alone(predict: Predict, found: Company, scale: float) -> float:
    """Median change of samples that come alone; NaN where a batch of one is not possible."""
    among = predict(found.batches[0])[: len(found.singles)]
    try:
        single = torch.cat([predict(batch) for batch in found.singles])
    except (ValueError, RuntimeError, IndexError, NotMeasuredError):  # squeezed away, or no statistics of one value
        return float("nan")
    return float(apart(among, single, scale).quantile(0.5)) if single.shape == among.shape else float("nan")


def in_double(patient: Patient, batch: Any) -> Predict | None:
    """The model, in the state in which it predicts, in double precision, as ``batch -> [N, D]``.

    None where there can be no such copy, or it does something else with this batch.
    """
    ready(patient)
    if sum(one.numel() for one in patient.root.parameters()) > LARGEST:
        return None
    try:
        twin = copy.deepcopy(patient.root).double()
        exact = _predictor_of(patient, twin, {module: module.training for module in twin.modules()})
        ours = exact(batch)
        ready(patient)
        theirs = patient.outputs(batch)
    except Exception:  # not every module can be copied, and not every forward takes double precision
        return None
    if ours.shape != theirs.shape or not float(apart(ours, theirs, spread([theirs])).quantile(0.5)) < AGREEMENT:
        return None
    return exact


def _predictor_of(patient: Patient, twin: nn.Module, modes: dict[nn.Module, bool]) -> Predict:
    def predict(batch: Any) -> Tensor:
        patient.origin.streams.restore()
        for module, training in modes.items():
            module.training = training
        wide = with_tensors(batch, lambda one: one.double() if one.is_floating_point() else one)
        return patient.outputs(wide, twin)

    predict.twin = twin  # type: ignore[attr-defined]  # whom to hold still
    return predict


def _held_still(patient: Patient, handed: bool, predict: Predict, found: Company) -> float:
    """Median change with batch statistics held still; NaN where that cannot be done."""
    still, twin = HeldStill(), getattr(predict, "twin", None)

    def predict_still(batch: Any) -> Tensor:
        if twin is None:
            patient.origin.rewind()
            if not handed:
                patient.root.eval()
            still.begin(patient.root)
            with still:
                return patient.outputs(batch)
        still.begin(twin)
        with still:
            return predict(batch)

    try:
        return change(predict_still, found).value
    except Exception:  # what cannot be held still is not
        return float("nan")
