"""Batch norm whose batch is spread over processes."""

import pickle
from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st

from bnprobe.testing.oracles.running import after_batches
from bnprobe.testing.properties.broken import Broken, NotApplicable, compare
from bnprobe.testing.properties.buffers import running_bounds
from bnprobe.testing.properties.registry import law
from bnprobe.testing.ranks import RanksFailed, Share, in_ranks
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.subject import Specimen, Subject

__all__ = ["ranks_are_one_batch"]

# Samples of two ranks, of which more than two take turns: equally many, unequal either way, few against many.
_SAMPLES = ((2, 2), (3, 1), (1, 4), (2, 6))


@law(
    likes=("batch_norm",),
    needs=("ranks",),
    samples=st.just(_SAMPLES),
    at_most=0,
    typical={"samples": (_SAMPLES,)},
)
def ranks_are_one_batch(subject: Subject, samples: tuple[tuple[int, int], ...]) -> None:
    """A synchronised batch norm gives in k processes what batch norm gives of their batches, concatenated.

    Outputs, gradients of the inputs, and running statistics in every process; gradients of gamma and beta are those of
    each process's own samples, whose sum is that of the whole batch (as torch's SyncBatchNorm leaves them to the
    wrapper of the model). Checked with ``ranks=2``, by processes on this machine with the backend gloo. Broken by
    means of means where processes have unequal batches, by a variance that leaves out what lies between their means, by
    a backward that reduces nothing, or twice.
    """
    try:
        pickle.dumps(subject.make)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise NotApplicable(f"other processes cannot import the layer's factory: {error}") from error
    count = subject.example_settings.ranks
    cases = [
        (f"{' + '.join(map(str, rows))} samples", *_whole(subject, rows, seed, dtype), rows)
        for seed, dtype in enumerate(subject.usable_dtypes)
        for rows in (tuple(each[i % 2] for i in range(count)) for each in samples)
    ]
    try:
        batches = [_shared(one, state, rows) for _, one, state, rows in cases]
        found = in_ranks(subject.make, cases[0][1].x.shape[1], batches, subject.device)
    except RanksFailed as error:
        raise Broken(str(error)) from error
    for (what, one, _, _), ranks in zip(cases, found, strict=True):
        _compare(f"{what}: ", one, ranks)


def _whole(subject: Subject, rows: tuple[int, ...], seed: int, dtype: str) -> tuple[Specimen, Mapping[str, Any]]:
    """The whole batch, of samples with means of their own, and the state in which each rank starts."""
    shape, channels = max(subject.accepted, key=lambda one: (len(one[0]) <= 4, len(one[0]), one[1] == 4))
    sizes = {"N": sum(rows), "C": channels}
    size = tuple(one if isinstance(one, int) else sizes.get(one, 3) for one in shape)
    one = subject.specimen(Batch(size, "correlated", seed, dtype), warm=True)
    return one, {name: value.detach().cpu().clone() for name, value in one.module.state_dict().items()}


def _shared(one: Specimen, state: Mapping[str, Any], rows: tuple[int, ...]) -> list[Share]:
    parts = (torch.split(tensor.cpu(), list(rows)) for tensor in (one.x.detach(), one.cotangent()))
    return [Share(state, x, g) for x, g in zip(*parts, strict=True)]


def _compare(where: str, one: Specimen, ranks: list[dict[str, Any]]) -> None:
    """What the ranks have against the law of the whole batch."""
    g, why = one.cotangent(), one.tolerance.why
    compare(f"{where}output", torch.cat([rank["y"] for rank in ranks]), one.law.y, one.tolerance.output, why)
    want = one.law.gradients(g)
    got = torch.cat([rank["x"] for rank in ranks])
    compare(f"{where}gradient of x", got, want.x, one.tolerance.input_gradient(g), why)
    for what, leaf, wanted, bound in (
        ("gamma", one.parts.gamma, want.gamma, one.tolerance.gamma_gradient(g)),
        ("beta", one.parts.beta, want.beta, one.tolerance.beta_gradient(g)),
    ):
        if leaf is not None:
            name = next(name for name, each in one.module.named_parameters() if each is leaf)
            total = torch.stack([rank["parameters"][name] for rank in ranks]).sum(0).reshape(-1)
            compare(f"{where}gradient of {what}, summed over processes", total, wanted, 2 * bound, why)
    _running(where, one, ranks)


def _running(where: str, one: Specimen, ranks: list[dict[str, Any]]) -> None:
    mean, variance = one.parts.mean, one.parts.variance
    if mean is None or variance is None:
        return
    names = {
        what: next(name for name, each in one.module.named_buffers() if each is buffer)
        for what, buffer in (("mean", mean), ("variance", variance))
    }
    wanted = after_batches(one.state, [one.x], one.settings)
    of_mean, of_variance, why = running_bounds(one, [one.x], one.state)
    for place, rank in enumerate(ranks):
        for what, want, bound in (("mean", wanted.mean, of_mean), ("variance", wanted.variance, of_variance)):
            if want is not None:
                compare(f"{where}running {what} of rank {place}", rank["buffers"][names[what]], want, bound, why)
