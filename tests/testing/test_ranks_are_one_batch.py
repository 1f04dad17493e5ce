"""The law of a synchronised batch norm, in two processes."""

import pytest
import torch
from mutants import MUTANTS
from synchronised import RaisesInRankOne, Synchronised, WaitsForEver, doubled
from torch import nn

from bnprobe.errors import LawBrokenError
from bnprobe.testing import Subject, check_norm_layer, properties, ranks

LAW = ["ranks_are_one_batch"]
FAST = "bnprobe-fast"
pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch was built without distributed or gloo",
)


def broken(make):
    with pytest.raises(LawBrokenError) as failure:
        check_norm_layer(make, "batch_norm", only=LAW, profile=FAST, ranks=2)
    return str(failure.value)


def test_a_sound_layer_is_batch_norm_of_the_whole_batch():
    assert check_norm_layer(Synchronised, "batch_norm", only=LAW, profile=FAST, ranks=2).passed == tuple(LAW)


def test_in_three_processes():
    properties.ranks_are_one_batch(Subject(Synchronised, "batch_norm", settings={"ranks": 3}), samples=((2, 1),))


def test_alone_it_obeys_the_laws_of_batch_norm():
    few = ["output_equals_oracle", "gradients_equal_oracle", "running_statistics"]
    assert check_norm_layer(Synchronised, "batch_norm", only=few, profile=FAST).passed


def test_means_without_counts_are_wrong_where_batches_are_unequal():
    """Equal ones do not show it."""
    without_counts = MUTANTS["WithoutCounts"].make
    told = broken(without_counts)
    assert "WithoutCounts breaks the law ranks_are_one_batch of batch_norm" in told
    assert "3 + 1 samples: output[" in told
    assert "samples=((2, 2), (3, 1), (1, 4), (2, 6))" in told
    subject = Subject(without_counts, "batch_norm", settings={"ranks": 2})
    properties.ranks_are_one_batch(subject, samples=((2, 2),))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (nn.BatchNorm1d, "2 + 2 samples: output["),
        (MUTANTS["WithinRanksOnly"].make, "2 + 2 samples: output["),
        (MUTANTS["GradientNotReduced"].make, "2 + 2 samples: gradient of x["),
        (doubled, "2 + 2 samples: gradient of gamma, summed over processes["),
        (RaisesInRankOne, "rank 1 raised RuntimeError: not here"),
    ],
)
def test_broken(make, what):
    assert what in broken(make)


def test_processes_that_wait_for_each_other_are_ended(monkeypatch):
    monkeypatch.setattr(ranks, "_PATIENCE", 2.0)
    assert "the ranks waited for each other without end, or died: no result of 0, 1" in broken(WaitsForEver)


def test_one_that_other_processes_cannot_import_is_skipped_with_its_reason():
    found = check_norm_layer(lambda c: Synchronised(c), "batch_norm", only=LAW, profile=FAST, ranks=2)
    assert "other processes cannot import" in found.skipped["ranks_are_one_batch"]


def test_a_layer_that_is_not_synchronised_is_not_asked():
    found = check_norm_layer(Synchronised, "batch_norm", only=LAW, profile=FAST)
    assert found.skipped == {"ranks_are_one_batch": "the layer has no ranks"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="SyncBatchNorm needs CUDA")
def test_sync_batch_norm_of_torch():
    found = check_norm_layer(nn.SyncBatchNorm, "batch_norm", profile=FAST, device="cuda", ranks=2)
    assert "ranks_are_one_batch" in found.passed
