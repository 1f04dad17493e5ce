"""One step of the training, watched and undone: how often statistics move in it, and in which mode layers run.

With ``step=`` it is the user's own step: model, optimizer and whatever else with a state it holds are put back bit by
bit; the data that it reads are read. Without, a forward and backward of the model on a batch stand for it: they show
layers that run again inside of backward, as checkpointed ones do.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.hooks.outputs import calls_at
from bnprobe.hooks.segments import plain_forward
from bnprobe.hooks.sites import Site, named_layers
from bnprobe.hooks.tensors import tensors_in, with_tensors
from bnprobe.measures.evidence.patient import Patient
from bnprobe.measures.evidence.reach import remember, wants_argument

__all__ = ["measure"]

_NEEDS = "needs step=: a function that does one training step"


def measure(patient: Patient) -> list[Fact]:
    """A layer: ``updates_per_step``, ``calls_per_step``, ``recomputed_calls``, ``repeated_calls``, ``eval_calls``.

    Recomputed is what runs inside of backward; repeated, what got the same input again; eval calls ran in evaluation
    mode. ``affine_moved``: whether the step changed its gain or shift; ``eval_above``: whether the module that holds
    the layer was handed over in evaluation mode, too. Of the model: ``step_given``, ``optimizer_steps``,
    ``weights_during_step`` (how many different weights forwards had), ``step_other_modes`` (modules that the step left
    in another mode).
    """
    if not patient.tracked:
        raise NotMeasuredError("no layer has running statistics")
    given = patient.given.step
    if given is None and not patient.modes[""]:
        raise NotMeasuredError(f"{_NEEDS} (the model was handed over in evaluation mode)")
    _ = patient.norms
    patient.origin.rewind()
    remember(patient, given, *([patient.given.optimizer] if patient.given.optimizer is not None else []))
    weights = {name: one.detach().clone() for name, one in patient.root.named_parameters()}
    before = {site.name: _updates(site) for site in patient.tracked}
    watch = _Watch(patient)
    try:
        layers = {site.name: site.module for site in patient.tracked}
        with calls_at(layers, watch.see), torch.enable_grad(), plain_forward(patient.root):
            _step(patient, watch) if given is not None else _pass(patient)
        facts = [*_of_model(patient, watch)]
        for site in patient.tracked:
            facts += _of_layer(patient, site, watch, before[site.name], weights)
    finally:
        patient.origin.restore()
    return facts


@dataclass
class _Watch:
    """Calls of the layers with running statistics.

    Attributes:
        idle: by layer, calls in training mode with a momentum of 0: they are counted and move nothing.
        calls: by layer: what the input was, whether inside of backward, whether in training mode.
        weights: different states of the model's weights at calls of the first such layer.
        steps: of the optimizer.
    """

    patient: Patient
    idle: Counter[str] = field(default_factory=Counter)
    calls: dict[str, list[tuple[Any, bool, bool]]] = field(default_factory=dict)
    weights: set[float] = field(default_factory=set)
    steps: int = 0

    def see(self, name: str, _: int, x: Tensor, __: object) -> None:
        module = next(site.module for site in self.patient.tracked if site.name == name)
        backward = torch._C._current_graph_task_id() != -1
        self.calls.setdefault(name, []).append((_print(x), backward, module.training))
        self.idle[name] += module.training and getattr(module, "momentum", None) == 0.0
        if name == self.patient.tracked[0].name:
            with torch.no_grad():
                self.weights.add(float(sum(one.double().abs().sum() for one in self.patient.root.parameters())))


def _print(x: Tensor) -> tuple[Any, ...]:
    values = x.detach().double()
    return (*x.shape, float(values.sum()), float(values.abs().sum()), float(values.flatten()[:1].sum()))


def _step(patient: Patient, watch: _Watch) -> None:
    step, optimizer = patient.given.step, patient.given.optimizer
    assert step is not None
    if optimizer is not None:
        plain = optimizer.step

        @functools.wraps(plain)  # schedulers look for their mark on it
        def counted(*args: Any, **kwargs: Any) -> Any:
            watch.steps += 1
            return plain(*args, **kwargs)

        vars(optimizer)["step"] = counted  # goes with everything else that is put back
    step(_copy(patient.batches[0])) if wants_argument(step) else step()


def _pass(patient: Patient) -> None:
    batch = max(patient.batches, key=patient.samples)
    # Inputs want gradients: torch's CPU group norm crashes in backward where a channels-last input does not.
    output = patient.run(with_tensors(batch, lambda one: _wanting(one) if one.is_floating_point() else one.clone()))
    found = [one for _, one in tensors_in(output) if one.is_floating_point() and one.requires_grad]
    if not found:
        raise NotMeasuredError(f"{_NEEDS} (no gradient leads back from the model's output)")
    sum(one.square().mean() for one in found).backward()  # type: ignore[union-attr]


def _wanting(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_().clone()


def _copy(batch: Any) -> Any:
    return with_tensors(batch, lambda one: one.detach().clone())


def _updates(site: Site) -> float:
    seen = getattr(site.module, "num_batches_tracked", None)
    return float(seen) if isinstance(seen, Tensor) else float("nan")


def _of_model(patient: Patient, watch: _Watch) -> Iterator[Fact]:
    modes = {name: module.training for name, module in named_layers(patient.root)}
    yield Fact("step_given", float(patient.given.step is not None))
    yield Fact("optimizer_steps", float(watch.steps))
    yield Fact("weights_during_step", float(len(watch.weights)))
    yield Fact("step_other_modes", float(sum(patient.modes.get(name, mode) != mode for name, mode in modes.items())))


def _of_layer(patient: Patient, site: Site, watch: _Watch, before: float, weights: dict[str, Tensor]) -> Iterator[Fact]:
    calls = watch.calls.get(site.name, [])
    updates = _updates(site) - before
    if updates != updates:  # a layer that does not count
        updates = float(sum(training for _, _, training in calls))
    seen = [what for what, _, _ in calls]
    values = {
        "updates_per_step": (updates - watch.idle[site.name]) / max(watch.steps, 1),
        "calls_per_step": len(calls),
        "recomputed_calls": sum(backward for _, backward, _ in calls),
        "repeated_calls": len(seen) - len(set(seen)),
        "eval_calls": sum(not training for _, _, training in calls),
        "affine_moved": any(
            not torch.equal(one, weights[name])
            for key, one in site.module.named_parameters(recurse=False)
            if (name := f"{site.name}.{key}".lstrip(".")) in weights
        ),
        "eval_above": not patient.modes.get(site.name.rpartition(".")[0], True),
    }
    for name, value in values.items():
        yield Fact(name, float(value), site.name)
