"""Examine a model's normalization, judge what was found, and leave everything as it was."""

import hashlib
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnprobe.diagnosis import Diagnosis, chosen_rules, diagnosis_of
from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.evidence import Context, Evidence
from bnprobe.hooks.sites import named_layers, unwrap
from bnprobe.measures.evidence import INTENTS, Examination, Given, Patient, collect, device_of, examine
from bnprobe.measures.loss import Loss
from bnprobe.measures.untouched import untouched
from bnprobe.measuring import aside
from bnprobe.records import Layer

__all__ = ["diagnose"]


def diagnose(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    step: Callable[..., Any] | None = None,
    val_loader: Iterable[Any] | None = None,
    reference: nn.Module | None = None,
    intent: str | None = None,
    *,
    state_dict: Mapping[str, Any] | None = None,
    exported: Callable[..., Any] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    evaluate: Callable[..., Any] | None = None,
    ranks: Sequence[Mapping[str, Any]] | None = None,
    ema_decay: float | None = None,
    ema_updates: int | None = None,
    lengths: Callable[[Any], Tensor] | None = None,
    batches: int = 32,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
) -> Diagnosis:
    """Which normalization pitfall hurts a model, with evidence; or the certificate that none does.

    The model is judged in the mode in which it is handed over: in training mode the loader is taken for its training
    loader; in evaluation mode nothing is said about the composition and the size of batches. Afterwards weights,
    buffers, gradients, modes, hooks and random streams are bit for bit what they were; the report says how it knows.

    Args:
        model: any module; wrappers (DDP, compiled) are looked through.
        loader: batches: tensors, ``(x, y)``, longer tuples, dicts, nested. The first ``batches`` of them are kept in
            memory; it may be endless, or readable only once. Sixteen or more give the rules their power.
        loss: ``(model, batch) -> scalar``; None is cross entropy where a batch has integer class labels, or the
            model's own where it returns one. Without any, distances of outputs are compared.
        optimizer: of the training.
        step: does one training step with this model: ``step()`` or ``step(batch)``. It is run, and undone.
        val_loader: batches of the evaluation.
        reference: a second model: what this one was averaged from, its online twin, a client.
        intent: ``serve``: it predicts in the mode in which it is handed over; ``train``: it will be trained on this
            loader; ``frozen``; ``batch-stats-at-test`` and ``transductive``: it is meant to use batch statistics.
        state_dict: a checkpoint to compare with.
        exported: a callable (traced, folded, compiled) that should do what the model does.
        forward: ``(model, batch) -> output`` where ``model(x)`` is not it.
        evaluate: the user's evaluation, ``evaluate()`` or ``evaluate(model)``. It is run, and undone.
        ranks: state dicts of other ranks.
        ema_decay: of the weight average that this model is.
        ema_updates: how many updates that average has seen.
        lengths: ``batch -> [N]``, how many positions of each sample are no padding.
        batches: how many to look at.
        select: codes of the rules to ask; None asks all.
        ignore: codes of rules not to ask.
        seed: of permutations and draws.
        out: directory for the evidence; None is a temporary one.

    Raises:
        ArgumentError: an argument is of no use: no batch, a word that there is not, a rule that there is not.
    """
    if intent is not None and intent not in INTENTS:
        raise ArgumentError(f"intent must be one of {', '.join(INTENTS)} or None; got {intent!r}")
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if batches < 1:
        raise ArgumentError(f"batches must be at least 1; got {batches}")
    chosen_rules(select, ignore)  # asked for at the door: an examination takes a minute
    if out is not None and Path(out).exists() and not (Path(out).is_dir() and not any(Path(out).iterdir())):
        raise ArgumentError(f"out must be a new or an empty directory; {os.fspath(out)} is none")
    given = Given(
        loss, optimizer, step, evaluate, val_loader, reference, state_dict, exported, forward, ranks, ema_decay,
        ema_updates, lengths,
    )  # fmt: skip
    modules = [one for one in (model, reference, exported) if isinstance(one, nn.Module)]
    before = _hashes(modules)
    with untouched(*modules) as origin, aside():
        patient = Patient(model, collect(loader, batches, device_of(model)), origin, given, intent, seed, loader)
        patient.modes  # noqa: B018 - as they were handed over, before anything runs
        evidence = _evidence(patient, examine(patient))
    after = _hashes(modules)
    proof = {name: before[name] == after[name] for name in before}
    run = evidence.save(out if out is not None else tempfile.mkdtemp(prefix="bnprobe-"))
    return diagnosis_of(Evidence.of(run), run, proof, select, ignore)  # what is judged is what can be judged again


def _evidence(patient: Patient, found: Examination) -> Evidence:
    context = Context(
        intent=patient.intent,
        given=patient.given.names,
        training=patient.modes[""],
        untrained=_untrained(patient),
        batches=len(patient.batches),
        samples=_samples(patient),
        labels=not patient.why_no_loss,
        missing=found.missing,
        seconds=found.seconds,
        texts={
            "model": type(patient.root).__name__,
            "why_no_loss": patient.why_no_loss,
            "why_no_forward": patient.why_no_forward,
        },
    )
    return Evidence(found.facts, _inventory(patient), context)


def _samples(patient: Patient) -> int:
    """How many there are; 0 where batches hold nothing that says so."""
    try:
        return sum(map(patient.samples, patient.batches))
    except NotMeasuredError:
        return 0


def _inventory(patient: Patient) -> list[Layer]:
    sites = patient.norms
    part = "it normalizes a part of its input: its statistics are not judged"
    return [
        site.describe(observed=site.name in patient.order, why=part if site.name in patient.partial else "")
        for site in sites
    ]


def _untrained(patient: Patient) -> bool:
    """Whether no batch norm has seen a batch and every gain and shift is what it is at the beginning."""
    norms: list[Any] = [module for _, module in named_layers(patient.root) if hasattr(module, "running_mean")]
    seen = [one.num_batches_tracked for one in norms if isinstance(getattr(one, "num_batches_tracked", None), Tensor)]
    if not seen or any(int(one) for one in seen):
        return False
    for one in norms:
        weight, bias = getattr(one, "weight", None), getattr(one, "bias", None)
        if isinstance(weight, Tensor) and not bool(((weight == 1) | (weight == 0)).all()):
            return False
        if isinstance(bias, Tensor) and bool(bias.any()):
            return False
    return True


def _hashes(modules: Sequence[nn.Module]) -> dict[str, str]:
    """Digests of all that could have been changed, by what it is."""
    parts: dict[str, Any] = {name: hashlib.blake2b(digest_size=16) for name in ("weights", "buffers", "gradients")}
    flags: list[tuple[Any, ...]] = []
    for root in modules:
        for name, module in named_layers(unwrap(root)):
            hooks = [list(getattr(module, one)) for one in vars(module) if one.endswith("_hooks")]
            flags.append((name, module.training, hooks))
            for key, one in module._parameters.items():
                if one is not None:
                    flags.append((key, one.requires_grad))
                    _feed(parts["weights"], one)
                    if one.is_leaf and one.grad is not None:
                        _feed(parts["gradients"], one.grad)
            for buffer in module._buffers.values():
                if buffer is not None:
                    _feed(parts["buffers"], buffer)
    digests = {name: one.hexdigest() for name, one in parts.items()}
    digests["modes, flags and hooks"] = repr(flags)
    streams = (torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(np.random.get_state()))  # noqa: NPY002
    digests["random streams"] = hashlib.blake2b(repr(streams).encode(), digest_size=16).hexdigest()
    return digests


def _feed(digest: Any, tensor: Tensor) -> None:
    try:
        flat = tensor.detach().contiguous().flatten().cpu()
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    except (RuntimeError, TypeError, NotImplementedError):  # no plain memory: a sharded or quantized one
        digest.update(repr(tensor.shape).encode())
