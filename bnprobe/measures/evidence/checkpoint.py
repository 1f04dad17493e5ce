"""What a checkpoint holds of the model's running statistics. Nothing is loaded."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.measures.evidence.patient import Patient

__all__ = ["measure", "weights_in"]

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "parametrizations.")
_STATISTICS = ("running_mean", "running_var")


def measure(patient: Patient) -> list[Fact]:
    """``checkpoint_lacks`` a layer: which share of mean and variance is not there.

    ``checkpoint_default`` a layer: both there, and 0 and 1; ``checkpoint_updates`` a layer, where it says so;
    ``checkpoint_affine`` a layer: whether its gain or shift is there; ``checkpoint_share``: of the model's parameters,
    how many are in the checkpoint.

    Raises:
        NotMeasuredError: no checkpoint was given, it has nothing of this model, or no layer has running statistics.
    """
    given = patient.given.state_dict
    if given is None:
        raise NotMeasuredError("needs state_dict=: the checkpoint")
    parameters = [plain(name) for name, _ in patient.root.named_parameters()]
    sites = patient.tracked
    wanted = {*parameters, *(f"{plain(site.name)}.{one}".lstrip(".") for site in sites for one in _STATISTICS)}
    held = weights_in(given, wanted)
    if not held:
        raise NotMeasuredError("the checkpoint has no entry of this model, whatever prefix is taken off")
    if not sites:
        raise NotMeasuredError("no layer has running statistics")
    share = sum(name in held for name in parameters) / max(len(parameters), 1)
    facts = [Fact("checkpoint_share", share, count=len(parameters))]
    for site in sites:
        facts += _of_layer(plain(site.name), site.name, held)
    return facts


def weights_in(given: Mapping[str, Any], wanted: set[str]) -> dict[str, Tensor]:
    """The entries of a checkpoint by the model's names.

    Of nested mappings (``{"state_dict": ..., "optimizer": ...}``) it is the one with the most; wrappers' names and a
    prefix that all have in common (``model.``, ``backbone.``) are taken off.
    """
    best: dict[str, Tensor] = {}
    for one in _mappings(given):
        held = {plain(str(name)): value for name, value in one.items() if isinstance(value, Tensor)}
        for prefix in _prefixes(held, wanted):
            found = {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
            found = {
                name: value for name, value in found.items() if name in wanted or name.endswith("num_batches_tracked")
            }
            if len(wanted & found.keys()) > len(wanted & best.keys()):
                best = found
    return best


def plain(name: str) -> str:
    """A name without the wrappers' parts."""
    for part in _WRAPPERS:
        name = name.removeprefix(part).replace(f".{part}", ".")
    return name


def _mappings(given: Any, depth: int = 3) -> Iterator[Mapping[Any, Any]]:
    given = given.state_dict() if isinstance(given, torch.nn.Module) else given
    if isinstance(given, Mapping):
        yield given
        for one in given.values() if depth else ():
            yield from _mappings(one, depth - 1)


def _prefixes(held: Mapping[str, Tensor], wanted: set[str]) -> list[str]:
    """Candidates, the most frequent first."""
    counts: Counter[str] = Counter({"": 1})
    tails = {name.rpartition(".")[2] for name in wanted}
    for name in held:
        if name.rpartition(".")[2] in tails:
            parts = name.split(".")
            counts.update(prefix for k in range(1, len(parts)) if ".".join(parts[k:]) in wanted
                          and (prefix := ".".join(parts[:k]) + "."))  # fmt: skip
    return [prefix for prefix, _ in counts.most_common(4)] + [""]


def _of_layer(stem: str, layer: str, held: Mapping[str, Tensor]) -> Iterator[Fact]:
    def entry(name: str) -> Tensor | None:
        return held.get(f"{stem}.{name}".lstrip("."))

    mean, variance = (entry(name) for name in _STATISTICS)
    yield Fact("checkpoint_lacks", ((mean is None) + (variance is None)) / 2, layer)
    yield Fact("checkpoint_affine", float(any(entry(name) is not None for name in ("weight", "bias"))), layer)
    if mean is not None and variance is not None:
        yield Fact("checkpoint_default", float(bool((mean == 0).all() and (variance == 1).all())), layer)
    seen = entry("num_batches_tracked")
    if seen is not None:
        yield Fact("checkpoint_updates", float(seen), layer)
