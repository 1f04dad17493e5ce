"""What test_recalibration_over_ranks.py runs in two processes: ``torchrun ... recalibration_job.py DIR``.

Each rank writes what it found to ``DIR/RANK.pt``; the tests judge it.
"""

import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bnprobe.errors import NotMeasuredError
from bnprobe.remedies import recalibrate
from tests.cases import mlp


def model():
    torch.manual_seed(3)
    return mlp().double()


def data():
    """Sorted: another mean in each batch."""
    x = torch.randn(9, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    return list(x + torch.arange(9)[:, None, None])


def part_of(rank):
    """Numbers of batches differ."""
    return data()[:2] if rank == 0 else data()[2:]


def statistics(net):
    return {name: one.clone() for name, one in net.state_dict().items() if "running" in name or "tracked" in name}


def failing(rank):
    yield data()[0]
    if rank == 1:
        raise OSError("the disk is gone")


def found(rank):
    yield "pooled", *run(part_of(rank), wrap=DistributedDataParallel)
    yield "nothing on rank 1", *run(data() if rank == 0 else [])
    yield "alone", *run(part_of(rank), alone=True)
    net = model()
    before = statistics(net)
    try:
        recalibrate(net, failing(rank))
    except (OSError, NotMeasuredError) as error:
        same = all(torch.equal(one, before[name]) for name, one in statistics(net).items())
        yield "failing", f"{type(error).__name__}: {error}", same


def run(batches, wrap=lambda net: net, **options):
    net = model()
    wrapped = wrap(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = recalibrate(wrapped, batches, tolerance=0, **options)
    return statistics(net), (result.passes, [one.count for one in result.layers], result.batches)


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    torch.save({name: rest for name, *rest in found(rank)}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
