"""Statistics of the data of two processes are those of one that has all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bnprobe.remedies import recalibrate
from tests.remedies import recalibration_job as job

dist = pytest.importorskip("torch.distributed")
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without distributed or gloo"
)
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, job.__file__, str(folder)], check=True, cwd=ROOT, env=environment, timeout=120)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part", ["pooled", "nothing on rank 1"])
def test_as_one_process_with_all_data(found, part):
    net = job.model()
    result = recalibrate(net, job.data(), tolerance=0)
    for rank in range(2):
        statistics, (passes, counts, _) = found[rank][part]
        assert_close(statistics, job.statistics(net))
        assert counts == [one.count for one in result.layers] == [54, 54]
        assert passes <= 4
    assert all(torch.equal(found[0][part][0][name], values) for name, values in found[1][part][0].items())
    assert [found[rank]["pooled"][1][2] for rank in range(2)] == [2, 7]


def test_alone(found):
    for rank in range(2):
        net = job.model()
        recalibrate(net, job.part_of(rank), tolerance=0)
        assert_close(found[rank]["alone"][0], job.statistics(net))


def test_a_rank_that_fails_does_not_let_the_other_wait(found):
    assert found[0]["failing"] == [
        "NotMeasuredError: 1 of 2 processes failed; their own messages say why",
        True,
    ]
    assert found[1]["failing"] == ["OSError: the disk is gone", True]
