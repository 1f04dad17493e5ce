"""What loaders put together."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bnprobe.errors import ArgumentError, LawBrokenError, NotMeasuredError
from bnprobe.testing.pitfalls import batches_are_exchangeable, batches_are_reshuffled
from bnprobe.testing.pitfalls.exchangeable import _log_evidence
from bnprobe.testing.strategies import Loader


@pytest.mark.parametrize(
    ("sizes", "labels"),
    [
        ((2, 2, 2), [0, 0, 0, 1, 1, 1]),
        ((3, 2, 1), [0, 0, 1, 1, 2, 2]),
        ((4, 1), [0, 1, 1, 1, 1]),
        ((2, 2), [0, 1, 2, 3]),
    ],
)
def test_mean_evidence_over_all_orders_is_at_most_one(sizes, labels):
    """By which Markov's inequality bounds the rate of false failures."""
    ends = np.cumsum(sizes)[:-1]
    evidence = [
        math.exp(_log_evidence(np.stack([np.bincount(part, minlength=4) for part in np.split(np.array(order), ends)])))
        for order in itertools.permutations(labels)
    ]
    assert 0.01 < np.mean(evidence) <= 1 + 1e-12


@pytest.mark.parametrize("order", ["sorted", "alternating", "buffered"])
def test_clumped_batches_are_found(order):
    with pytest.raises(LawBrokenError, match="breaks the law batches_are_exchangeable of pitfalls"):
        batches_are_exchangeable(Loader(order, samples=512, batch_size=16).loader())


@pytest.mark.parametrize("seed", range(5))
def test_mixed_batches_pass(seed):
    for recipe in (Loader(samples=100, batch_size=7, seed=seed), Loader("fixed", samples=100, batch_size=7, seed=seed)):
        found = batches_are_exchangeable(recipe.loader())
        assert found.batches == 15
        assert found.dispersion < 2
        assert found.log_evidence < math.log(1e8)


def test_the_same_batches_in_every_epoch_are_found():
    assert batches_are_reshuffled(Loader(samples=100, batch_size=7).loader()).batches == 15
    with pytest.raises(LawBrokenError, match="samples of the same batch of the epoch before come together"):
        batches_are_reshuffled(Loader("fixed", samples=100, batch_size=7).loader())

    data = Loader(samples=64)
    stuck = _SeededAnew(TensorDataset(data.data, data.labels))
    with pytest.raises(LawBrokenError, match="ICC 1"):
        batches_are_reshuffled(stuck)


class _SeededAnew:
    """As a distributed sampler without ``set_epoch``."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(DataLoader(self.data, 8, shuffle=True, generator=torch.Generator().manual_seed(0)))


def test_effect_and_message():
    with pytest.raises(LawBrokenError) as caught:
        batches_are_exchangeable(Loader("sorted", samples=64, batch_size=8).loader())
    text = str(caught.value)
    assert (
        "samples of the same class come together: the commonest one is 100% of a batch on average, 50% of the" in text
    )
    assert "misfit: dispersion 9.14 where mixed batches have 1, ICC 1; evidence 10^15.8, tolerance 10^8.0" in text
    assert text.endswith("pitfalls.batches_are_exchangeable(loader)")


def test_what_is_compared():
    """Labels; else one number a sample; cut at the quartiles where it is no class."""
    ramp = torch.arange(256.0).reshape(-1, 1)
    mixed = ramp[torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    by_value = [(ramp[i : i + 16], torch.zeros(16, 3)) for i in range(0, 256, 16)]
    for loader in ([x for x, _ in by_value], by_value, [{"x": x} for x, _ in by_value]):
        with pytest.raises(LawBrokenError, match="samples of the same quarter of the values come together"):
            batches_are_exchangeable(loader)
    batches_are_exchangeable(mixed.split(16))
    labelled = [{"x": x, "labels": (x[:, 0] > 127).long()} for x in ramp.split(16)]
    with pytest.raises(LawBrokenError, match="samples of the same class"):
        batches_are_exchangeable(labelled)
    batches_are_exchangeable(labelled, by=lambda batch: batch["x"][:, 0] % 2 > 0)
    with pytest.raises(LawBrokenError, match="2 batches"):
        batches_are_exchangeable([torch.zeros(64, dtype=torch.long), torch.ones(64, dtype=torch.long)] * 9, batches=2)


def test_what_cannot_be_judged():
    with pytest.raises(NotMeasuredError, match="two batches at least; got 1"):
        batches_are_exchangeable([torch.randn(4, 2)])
    with pytest.raises(NotMeasuredError, match="two batches at least; got 0"):
        batches_are_exchangeable([])
    with pytest.raises(ArgumentError, match=r"by must give one number a sample; got a tensor of shape \(4, 2\)"):
        batches_are_exchangeable([torch.randn(4, 2)] * 2, by=lambda batch: batch)
    with pytest.raises(ArgumentError, match="holds no tensor of samples: str"):
        batches_are_exchangeable(["a", "b"])
    with pytest.raises(NotMeasuredError, match="fewer than half of the samples are in both epochs; key="):
        batches_are_reshuffled(_Augmented())
    assert batches_are_reshuffled(_Augmented(), key=lambda batch: range(len(batch))).batches == 4


class _Augmented:
    def __iter__(self):
        return iter([torch.randn(8, 3) for _ in range(4)])
