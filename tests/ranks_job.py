"""What tests/test_ranks.py runs in several processes: ``torchrun ... tests/ranks_job.py DIR SECONDS PART ...``.

Each rank writes what it found to ``DIR/PART-RANK.json``; the tests judge it. SECONDS is how long it waits for others.
"""

import contextlib
import json
import os
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import bnprobe
from bnprobe import statistics as s
from bnprobe.errors import RunError
from bnprobe.ranks import meeting, outlets

DDP = DistributedDataParallel
ROWS = ((10, 22), (17, 3), (8, 8))  # rows of each rank, a step
BIG = ((3000, 5000), (4000, 1000))
LR = 0.1


def model():
    """No layer of it mixes samples, so that a part of a batch gives a part of the whole's activations."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Unflatten(1, (8, 2)), nn.GroupNorm(2, 8), nn.Flatten(),
        nn.Linear(16, 12), nn.Sigmoid(), nn.Linear(12, 3),
    )  # fmt: skip


def batch_normed():
    torch.manual_seed(4)
    return nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


class Branches(nn.Module):
    """One of two layers stays out of a forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.body, self.used, self.unused = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return self.used(F.relu(self.body(x)))


def batches(rows):
    """Whole batches: the first rows[0] rows are rank 0's. Heavy tails, and another mean in each half."""
    generator = torch.Generator().manual_seed(1)
    for first, second in rows:
        n = first + second
        x = torch.randn(n, 6, generator=generator) ** 3
        x[first:] += 1.5
        yield x, torch.randint(3, (n,), generator=generator)


def part_of(rank, rows):
    for (x, y), (first, _) in zip(batches(rows), rows, strict=True):
        chosen = slice(None, first) if rank == 0 else slice(first, None)
        yield x[chosen], y[chosen], len(x)


def probe_batch(rank):
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(rank))


def steps(net, optimizer, data):
    for x, y, n in data:
        optimizer.zero_grad()
        (F.cross_entropy(net(x), y, reduction="sum") / n).backward()
        optimizer.step()


def alone(make, rows, *statistics, out=None, rank=None, seed=0):
    """One process over the whole batches (or one rank's part of them); DDP halves the gradients' sum."""
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR / 2)
    data = part_of(rank, rows) if rank is not None else ((x, y, len(x)) for x, y in batches(rows))
    with bnprobe.attach(net, *statistics, optimizer=optimizer, out=out, seed=seed) as probe:
        steps(net, optimizer, data)
    return probe.run


def exactly():
    return s.Moments(exact=True), s.Gradients(exact=True), s.Saturation(exact=True), s.Quantiles(exact=True)


@contextlib.contextmanager
def noted(found):
    """Warnings of bnprobe and the time it took."""
    begin = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    found["seconds"] = time.monotonic() - begin
    found["warnings"] = [str(one.message) for one in caught if "bnprobe" in str(one.message)]


class Job:
    def __init__(self, folder):
        self.folder, self.rank = Path(folder), dist.get_rank()

    def train(self, out, *statistics, make=model, rows=ROWS, **options):
        net = DDP(make(), **options)
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        with bnprobe.attach(net, *statistics, optimizer=optimizer, out=out and self.folder / out) as probe:
            steps(net, optimizer, part_of(self.rank, rows))
        return net, probe

    # Parts; each returns what JSON can hold.

    def exact(self):
        self.train("exact", *exactly())

    def sampled(self):
        """Two probes with the same arguments but for `out`; out=None is read by rank 0 from its own probe."""
        net = DDP(model())
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        first = bnprobe.attach(net, optimizer=optimizer, out=self.folder / "sampled")
        second = bnprobe.attach(net, s.Moments(), layers="0", optimizer=optimizer)
        steps(net, optimizer, part_of(self.rank, BIG))
        where = sorted(str(one) for one in second._outlet.path.parent.glob("bnprobe-*") if one == second._outlet.path)
        for probe in (first, second):
            probe.detach()
        return {"path": where, "counts": counts(second.run) if self.rank == 0 else []}

    def saved(self):
        self.train("saved", make=batch_normed)

    def measured(self):
        """Each rank has a probe batch of its own; rank 0's is measured."""
        found = {}
        with noted(found):
            self.train("measured", s.Spectra(probe_batch(self.rank), every=2, k=None), s.Moments(exact=True))
        return found

    def joined(self):
        """Rank 1 has no data, then rank 0 has none."""
        for who in (0, 1):
            net = DDP(model())
            optimizer = torch.optim.SGD(net.parameters(), lr=LR)
            data = part_of(self.rank, ROWS) if self.rank == who else ()
            out = self.folder / f"only{who}"
            with bnprobe.attach(net, *exactly(), optimizer=optimizer, out=out), Join([net]):
                steps(net, optimizer, data)

    def uneven(self):
        """Rank 1 runs out of data after a step."""
        net = DDP(model())
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        data = list(part_of(self.rank, ROWS))[: 1 if self.rank else None]
        with bnprobe.attach(net, s.Moments(exact=True), optimizer=optimizer, out=self.folder / "uneven"), Join([net]):
            steps(net, optimizer, data)

    def static(self):
        self.train("static", s.Moments(exact=True), static_graph=True)

    def unused(self):
        self.train("unused", s.Moments(exact=True), make=Branches, find_unused_parameters=True)

    def lonely(self):
        """One rank attaches alone, then the other, then both."""
        found = {}
        for who in (0, 1):
            net, mine = model(), found.setdefault(f"only {who}", {})
            with noted(mine):
                if self.rank == who:
                    with bnprobe.attach(net, s.Moments(exact=True), out=self.folder / f"lonely{who}") as probe:
                        net(torch.randn(7, 6))
                    mine["path"], mine["counts"] = probe.run.path.name, counts(probe.run)
            dist.barrier()
        both = found.setdefault("both", {})
        with noted(both):
            _, probe = self.train("both", s.Moments(exact=True))
        both["path"] = probe.run.path.name
        return found

    def apart(self):
        """Another directory a rank; then other layers under one name."""
        found = {}
        for name, options in (
            ("outs", {"out": self.folder / f"mine{self.rank}"}),
            ("layers", {"out": self.folder / "layers", "layers": str(self.rank)}),
        ):
            net, mine = model(), found.setdefault(name, {})
            dist.barrier()
            with noted(mine):
                with bnprobe.attach(net, s.Moments(exact=True), **options) as probe:
                    net(torch.randn(4 + self.rank, 6))
                mine["path"], mine["counts"] = probe.run.path.name, counts(probe.run)
        return found

    def asking(self):
        """Rank 0 asks in the middle without rank 1; rank 1 asks when all is said, and for what cannot be seen."""
        found = {}
        net = DDP(model())
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        probe = bnprobe.attach(net, s.Moments(exact=True), optimizer=optimizer, out=self.folder / "asking")
        data = list(part_of(self.rank, ROWS))
        steps(net, optimizer, data[:2])
        if self.rank == 0:
            with noted(found):
                found["before"] = probe.run.steps.tolist()
        dist.barrier()
        if self.rank == 1:
            probe.flush()
            found["seen by 1"] = probe.run.steps.tolist()
        dist.barrier()
        if self.rank == 0:
            found["after"] = probe.run.steps.tolist()
        dist.barrier()
        steps(net, optimizer, data[2:])
        if self.rank == 1:
            probe.detach()
        dist.barrier()
        probe.detach()
        found["end"] = probe.run.steps.tolist() if self.rank == 0 else None
        if self.rank == 1:
            probe._outlet.path = self.folder / "nowhere"
            try:
                _ = probe.run
            except RunError as error:
                found["error"] = str(error)
        return found

    def unchanged(self):
        """Bitwise the same weights with and without a probe, and other weights with another learning rate."""
        results = []
        for probed, make in ((False, ddp), (True, ddp), (False, sharded), (True, sharded)):
            torch.manual_seed(11 + self.rank)
            net = make(batch_normed() if make is ddp else model())
            optimizer = torch.optim.Adam(net.parameters(), lr=LR)
            with bnprobe.attach(net, optimizer=optimizer) if probed else contextlib.nullcontext():
                steps(net, optimizer, part_of(self.rank, ROWS))
            state = [local(one).clone() for one in (*net.parameters(), *net.buffers())]
            state += [local(one).clone() for row in optimizer.state.values() for one in row.values()]
            results.append([*state, torch.get_rng_state()])
        same = [[torch.equal(*pair) for pair in zip(a, b, strict=True)] for a, b in (results[:2], results[2:])]
        return {"ddp": same[0], "fsdp": same[1]}

    def fsdp(self):
        """Each of three blocks and the root sharded; the gradients are averaged as DDP's are."""
        net = sharded(model())
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        found = {}
        with noted(found):
            probe = bnprobe.attach(net, *exactly(), optimizer=optimizer, out=self.folder / "fsdp")
            steps(net, optimizer, part_of(self.rank, ROWS))
            probe.detach()
        return found

    def shard(self):
        """Attached on one rank only: were there a collective in it, the other would not take part."""
        net, found = sharded(model()), {}
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        with noted(found):
            alone = self.rank == 0
            with (
                bnprobe.attach(net, optimizer=optimizer, out=self.folder / "shard")
                if alone
                else contextlib.nullcontext()
            ):
                steps(net, optimizer, part_of(self.rank, ROWS))
        return found

    def raising(self):
        """Rank 1 raises in the middle; rank 0's next collective fails."""
        found, data = {}, part_of(self.rank, ROWS * 3)

        def some():
            for i, one in enumerate(data):
                if self.rank == 1 and i == 5:
                    raise ValueError("out of luck")
                yield one

        net = DDP(model())
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        with noted(found):
            try:
                with bnprobe.attach(net, s.Moments(exact=True), optimizer=optimizer, out=self.folder / "raising"):
                    steps(net, optimizer, some())
            except (ValueError, RuntimeError) as error:
                found["error"] = type(error).__name__
        return found

    def dying(self):
        """Rank 1 dies without a word; rank 0 has no collective to notice it by."""
        found, net = {}, model()
        dist.barrier()
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        with noted(found):
            probe = bnprobe.attach(net, s.Moments(exact=True), optimizer=optimizer, out=self.folder / "dying")
            for i, batch in enumerate(part_of(self.rank, ROWS)):
                steps(net, optimizer, [batch])
                if self.rank == 1 and i == 1:
                    probe.flush()  # steps 0 and 1 have been reported
                    os._exit(0)
            probe.detach()
        return found

    def sync_batch_norm(self):
        """Needs CUDA, which gloo's two processes may share."""
        net = DDP(nn.SyncBatchNorm.convert_sync_batchnorm(batch_normed()).cuda(), device_ids=[0])
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        data = [(x.cuda(), y.cuda(), n) for x, y, n in part_of(self.rank, ROWS)]
        with bnprobe.attach(net, *exactly(), optimizer=optimizer, out=self.folder / "sync_exact"):
            steps(net, optimizer, data)
        with bnprobe.attach(net, optimizer=optimizer, out=self.folder / "sync_default"):
            steps(net, optimizer, data)


def counts(run):
    frame = run.frame(statistic="mean", place="input")
    return frame[frame.layer == frame.layer.iloc[0]]["count"].tolist()


def ddp(net):
    return DDP(net)


def sharded(net):
    from torch.distributed.fsdp import fully_shard

    for block in (net[0], net[1], net[6]):
        fully_shard(block)
    return fully_shard(net)


def local(tensor):
    return getattr(tensor, "_local_tensor", tensor).detach()


def main(folder, seconds, *parts):
    torch.set_num_threads(1)
    meeting.PATIENCE_SECONDS = outlets.FINAL_SECONDS = float(seconds)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    job = Job(folder)
    for part in parts:
        found = getattr(job, part)()
        (job.folder / f"{part}-{job.rank}.json").write_text(json.dumps(found))
    with contextlib.suppress(Exception):
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
