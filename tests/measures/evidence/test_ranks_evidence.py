"""Running statistics of several ranks."""

import copy

import pytest
import torch
from torch import nn

from bnprobe.errors import NotMeasuredError
from bnprobe.measures.evidence.patient import Given, Patient
from bnprobe.measures.evidence.ranks import measure
from bnprobe.measures.untouched import untouched


def facts_of(model, ranks, prefix=""):
    states = (
        None if ranks is None else [{prefix + key: one for key, one in rank.state_dict().items()} for rank in ranks]
    )
    with untouched(model) as origin:
        batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(3)]
        found = measure(Patient(model, batches, origin, Given(ranks=states)))
    return {(fact.statistic, fact.layer, fact.call): fact for fact in found}


def model():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_gap_is_in_standard_deviations(prefix):
    first = model()
    first[1].running_var.fill_(4.0)
    other = copy.deepcopy(first)
    other[1].running_mean += 1.0
    before = copy.deepcopy(first.state_dict())
    found = facts_of(first, [first, other], prefix)
    assert found["rank_gap_mean", "1", 0].value == pytest.approx(0.5)
    assert found["rank_gap_share", "1", 0].value == 1
    assert found["rank_weights_differ", "", 0].value == 0
    losses = [found["rank_loss", "", rank].value for rank in (0, 1)]
    assert losses[0] != losses[1]
    assert found["rank_excess", "", 0].value == pytest.approx(max(losses) / found["merged_rank_loss", "", 0].value - 1)
    assert all(torch.equal(one, before[key]) for key, one in first.state_dict().items())


def test_one_process_without_others():
    found = facts_of(model(), None)
    assert found["world_size", "", 0].value == 1
    assert not [key for key in found if key[0].startswith("rank_")]


def test_state_dicts_of_something_else():
    with pytest.raises(NotMeasuredError, match="no running statistics of this model's layers"):
        facts_of(model(), [nn.Linear(2, 2), nn.Linear(2, 2)])
