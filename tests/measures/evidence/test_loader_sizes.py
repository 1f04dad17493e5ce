"""Sizes of batches, against what the loader really gives."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from bnprobe.measures.evidence.loader import epoch_sizes, measure
from bnprobe.measures.evidence.patient import Patient, collect
from bnprobe.measures.untouched import untouched


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.randn(33, 4))


def patient_of(loader, model=None, batches=2):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)) if model is None else model
    with untouched(model) as origin:
        return Patient(model, collect(loader, batches, None), origin, loader=loader)


@pytest.mark.parametrize("count", [32, 33, 47])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_sizes_are_those_that_the_loader_gives(count, drop_last, shuffle):
    loader = DataLoader(TensorDataset(torch.randn(count, 4)), 16, shuffle=shuffle, drop_last=drop_last)
    patient = patient_of(loader)
    assert epoch_sizes(patient, [16, 16]) == [len(x) for (x,) in loader]


def test_several_samples_of_each_item_count():
    loader = DataLoader(torch.randn(33, 4), 16, collate_fn=lambda rows: torch.stack(rows).repeat(3, 1))
    assert epoch_sizes(patient_of(loader), [48, 48]) == [48, 48, 3]


def test_what_cannot_be_known_is_not_made_up():
    endless = DataLoader(Stream(), 16)
    assert epoch_sizes(patient_of(endless), [16, 16]) is None
    uneven = DataLoader(torch.randn(48, 4), 16, collate_fn=lambda rows: torch.stack(rows)[: len(rows) - 1])
    assert epoch_sizes(patient_of(uneven), [15, 15]) is None
    assert epoch_sizes(patient_of(iter([torch.randn(8, 4)])), [8]) is None


def test_fewest_values_are_batch_times_positions():
    model = nn.Sequential(nn.Conv1d(4, 8, 1), nn.BatchNorm1d(8), nn.AdaptiveAvgPool1d(1), nn.BatchNorm1d(8))
    loader = DataLoader(torch.randn(33, 4, 5), 16)
    facts = measure(patient_of(loader, model))
    assert {fact.layer: fact.value for fact in facts if fact.statistic == "least_values"} == {"1": 5, "3": 1}
