"""Records of several processes: jobs of two (tests/ranks_job.py), and their parts over a store in memory."""

import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bnprobe
from bnprobe import statistics as s
from bnprobe.collect import Collector
from bnprobe.collected import Entry, Key
from bnprobe.errors import RunError
from bnprobe.hooks.sites import find_sites
from bnprobe.ranks import mail, meeting, outlets, seed_of_rank
from bnprobe.ranks.meeting import Answer, Hello
from bnprobe.ranks.outlets import Alone, Leader, Member, Post
from bnprobe.records import DEFAULT_LEVELS, Layer
from bnprobe.statistics.quantiles import dkw_bound
from bnprobe.statistics.weights import ShardedNorm
from bnprobe.store import Writer
from tests import ranks_job as job

dist = pytest.importorskip("torch.distributed")
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without distributed or gloo"
)
ROOT = Path(__file__).parent.parent
SHAPES = ["skewness", "excess_kurtosis"]


def launch(folder, seconds, *parts):
    """Run parts of the job in two processes that wait some seconds for each other; what they found by part and rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(ROOT / "tests/ranks_job.py"), str(folder), str(seconds), *parts],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return {tuple(path.stem.rsplit("-", 1)): json.loads(path.read_text()) for path in folder.glob("*-[01].json")}


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged")
    parts = ("exact", "sampled", "saved", "joined", "uneven", "static", "unused", "fsdp", "measured", "raising")
    return folder, launch(folder, 30, *parts)


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ways")
    return folder, launch(folder, 3, "unchanged", "asking", "lonely", "apart", "shard", "dying")


def table(run, statistics, place):
    frame = run.frame(statistic=statistics, place=place)
    return frame.set_index(["step", "phase", "layer", "call", "place", "statistic", "level"]).sort_index()


def assert_same_moments(run, twin, places=("input", "output", "grad_output"), rows=None):
    """Same records of the same counts; values to 1e-6 of the tensor's own scale."""
    for place in places:
        mine, theirs = (table(one, ["mean", "variance", "min", "max"], place) for one in (run, twin))
        assert mine.index.equals(theirs.index)
        assert len(mine)
        assert (mine["count"] == theirs["count"]).all()
        wide, other = (one.value.unstack("statistic") for one in (mine, theirs))
        scale = (other["variance"] + other["mean"] ** 2) ** 0.5
        for name in ("mean", "min", "max"):
            assert ((wide[name] - other[name]).abs() <= 1e-6 * np.maximum(scale, other[name].abs())).all(), name
        np.testing.assert_allclose(wide["variance"], other["variance"], rtol=1e-6)


# Merged records are those of one process over the concatenated batch.


@pytest.mark.works_under(
    "DDP: one merged record, equal to that of one process over all batches", group="Several processes"
)
def test_exact_statistics_are_those_of_one_process(merged):
    """Unequal batches of 10 + 22, 17 + 3 and 8 + 8 rows; moments, shapes, shares, quantiles, channels."""
    run, twin = bnprobe.load(merged[0] / "exact"), job.alone(job.model, job.ROWS, *job.exactly())
    assert_same_moments(run, twin)
    assert run.frame(layer="0", place="input", statistic="mean")["count"].tolist() == [6 * sum(r) for r in job.ROWS]
    for names in ([*SHAPES, "zeros", "nonfinite"], ["quantile"], ["saturated", "dead"]):
        mine, theirs = (table(one, names, ("input", "output", "grad_output")) for one in (run, twin))
        assert mine.index.equals(theirs.index)
        assert len(mine)
        np.testing.assert_allclose(mine.value, theirs.value, rtol=1e-5, atol=1e-6)
    channels = [one.channels("1", "mean", "output") for one in (run, twin)]
    np.testing.assert_allclose(*channels, atol=1e-6)
    assert run.settings["ranks"] == [0, 1]
    assert run.status == "closed"
    assert run.problems == []


def test_weights_are_rank_0s_as_all_have_the_same(merged):
    run, twin = bnprobe.load(merged[0] / "exact"), job.alone(job.model, job.ROWS, *job.exactly())
    norms, others = (table(one, "norm", "weight").value for one in (run, twin))
    np.testing.assert_allclose(norms, others, rtol=1e-6)
    grads, others = (table(one, "grad_norm", "weight").value for one in (run, twin))
    np.testing.assert_allclose(2 * grads, others, rtol=1e-5)  # DDP takes the mean of the two ranks' gradients
    assert (run.frame(statistic="learning_rate").value == job.LR).all()


def test_sampled_quantiles_are_within_the_bound(merged):
    """Against all values of 8,000 rows, of which rank 0 had 3,000 with another mean."""
    run, expected = bnprobe.load(merged[0] / "sampled"), {}
    net, (x, _) = job.model(), next(job.batches(job.BIG))
    for name, module in net.named_children():
        module.register_forward_hook(lambda _, args, out, name=name: expected.update({name: (args[0], out)}))
    net(x)
    grid = run.grid()
    here = (grid.keys.step == 0).to_numpy() & grid.keys.place.isin(["input", "output"]).to_numpy()
    assert here.sum() == 14
    off = []
    for (_, key), values, error in zip(grid.keys[here].iterrows(), grid.values[here], grid.error[here], strict=True):
        population = np.sort(expected[key.layer][key.place == "output"].detach().double().flatten().numpy())
        assert key["count"] == population.size
        assert error == dkw_bound(2048)
        below, upto = (np.searchsorted(population, values, side) / population.size for side in ("left", "right"))
        off.append(max((below - grid.levels).max(), (grid.levels - upto).max()) / error)
    assert np.mean(np.array(off) <= 1) >= 0.9, off
    assert max(off) < 1.5
    assert max(off) > 0.05  # it is a sample


def test_saved_moments_of_a_batch_norm_are_those_of_the_whole_batch(merged):
    run, twin = bnprobe.load(merged[0] / "saved"), job.alone(job.batch_normed, job.ROWS, s.Moments(exact=True))
    mine, theirs = (table(one, ["mean", "variance"], "input").loc[:, :, "0"] for one in (run, twin))
    assert set(mine.source) == {"saved"}
    np.testing.assert_allclose(mine.value, theirs.value, rtol=1e-6)
    for name in ("mean", "variance"):
        np.testing.assert_allclose(run.channels("0", name), twin.channels("0", name), rtol=1e-6, atol=1e-6)


def test_several_probes_and_a_run_in_memory(merged):
    _, found = merged
    rows = [6 * sum(one) for one in job.BIG]
    assert found["sampled", "0"]["counts"] == rows
    assert found["sampled", "0"]["path"]
    assert found["sampled", "0"]["path"] == found["sampled", "1"]["path"]  # rank 1 has no directory of its own
    assert not Path(found["sampled", "0"]["path"][0]).exists()


@pytest.mark.works_under("unequal batches; ranks without data", group="Several processes")
@pytest.mark.parametrize("who", [0, 1])
def test_a_rank_without_data(merged, who):
    """Inside ``Join``; the clock is the other's, and the inventory as well."""
    run, twin = bnprobe.load(merged[0] / f"only{who}"), job.alone(job.model, job.ROWS, *job.exactly(), rank=who)
    assert_same_moments(run, twin)
    assert run.layers.observed.all()
    assert run.layers.feeds.tolist() == twin.layers.feeds.tolist()
    assert run.settings["ranks"] == [0, 1]
    resumed = Writer(run.path, settings={}, layers=[], levels=DEFAULT_LEVELS)
    resumed.close()
    assert resumed.first_step == 3


def test_a_rank_that_runs_out_of_data(merged):
    counts = bnprobe.load(merged[0] / "uneven").frame(statistic="mean", layer="0", place="input")["count"].tolist()
    assert counts == [6 * 32, 6 * 17, 6 * 8]


@pytest.mark.works_under("static_graph; find_unused_parameters", group="Several processes")
def test_static_graph(merged):
    run, twin = bnprobe.load(merged[0] / "static"), job.alone(job.model, job.ROWS, s.Moments(exact=True))
    assert_same_moments(run, twin, places=("input", "output"))


def test_find_unused_parameters(merged):
    run, twin = bnprobe.load(merged[0] / "unused"), job.alone(job.Branches, job.ROWS, s.Moments(exact=True))
    assert_same_moments(run, twin, places=("input", "output"))
    assert dict(zip(run.layers.name, run.layers.observed, strict=True)) == {"body": True, "used": True, "unused": False}


@pytest.mark.works_under("FSDP2 (fully_shard)", group="Several processes")
def test_fsdp(merged):
    """Blocks and root sharded: all layers and gradients are observed, and norms are those of whole weights."""
    run, twin = bnprobe.load(merged[0] / "fsdp"), job.alone(job.model, job.ROWS, *job.exactly())
    assert_same_moments(run, twin)
    assert run.layers.kind.tolist() == twin.layers.kind.tolist()
    assert run.layers.observed.all()
    for name, factor in (("norm", 1), ("grad_norm", 2), ("learning_rate", 0.5)):
        mine, theirs = (table(one, name, "weight") for one in (run, twin))
        assert mine.index.equals(theirs.index)
        np.testing.assert_allclose(factor * mine.value, theirs.value, rtol=1e-5)


def test_a_shards_norm_is_not_recorded_as_the_weights(ways):
    """Attached on one rank only, which no other waits for."""
    folder, found = ways
    assert len(found["shard", "0"]["warnings"]) == 1
    alone = bnprobe.load(folder / "shard")
    assert set(alone.frame(place="weight").statistic) == {"learning_rate"}
    assert alone.steps.tolist() == [0, 1, 2]
    assert alone.layers.observed.all()


@pytest.mark.works_under("SyncBatchNorm", group="Several processes", verdict="tested where a GPU is found")
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="SyncBatchNorm needs CUDA")
def test_sync_batch_norm(tmp_path):
    """Synchronised, a batch norm's output is that of the whole batch too."""
    launch(tmp_path, 30, "sync_batch_norm")
    run, twin = bnprobe.load(tmp_path / "sync_exact"), job.alone(job.batch_normed, job.ROWS, *job.exactly())
    for name, tolerance in (("mean", 1e-5), ("variance", 1e-4)):
        mine, theirs = (table(one, name, ("input", "output")) for one in (run, twin))
        assert mine.index.equals(theirs.index)
        np.testing.assert_allclose(mine.value, theirs.value, rtol=tolerance, atol=1e-5)
    default = bnprobe.load(tmp_path / "sync_default").frame(statistic="variance", layer="0", place="input")
    exact = run.frame(statistic="variance", layer="0", place="input")
    np.testing.assert_allclose(default.value, exact.value, rtol=1e-5)  # the data are the same


# Nobody is kept waiting, and the training is what it was.


def test_training_is_bitwise_the_same(ways):
    _, found = ways
    for rank in "01":
        for name, same in found["unchanged", rank].items():
            assert len(same) > 10
            assert all(same), (name, rank)


def test_asking_for_the_run(ways):
    """Rank 0 asks while rank 1 has not reported; rank 1 leaves first; both are in the record."""
    folder, found = ways
    mine, other = found["asking", "0"], found["asking", "1"]
    assert mine["before"] == []
    assert mine["seconds"] < 1
    assert other["seen by 1"] == []
    assert mine["after"] == [0, 1]
    assert mine["end"] == [0, 1, 2]
    assert "cannot be read from here" in other["error"]
    counts = bnprobe.load(folder / "asking").frame(statistic="mean", layer="0", place="input")["count"]
    assert counts.tolist() == [6 * sum(rows) for rows in job.ROWS]


@pytest.mark.works_under("ranks that attach alone, raise or die: nobody hangs", group="Several processes")
def test_one_rank_attaches_alone(ways):
    """It waits for its bound, says so, and the next common attachment finds both."""
    folder, found = ways
    mine, other = found["lonely", "0"], found["lonely", "1"]
    assert 3 <= mine["only 0"]["seconds"] < 10
    assert mine["only 0"]["warnings"] == [
        "bnprobe: rank 0's records do not include rank 1: it did not attach within 3 s"
    ]
    assert mine["only 0"]["path"] == "lonely0"
    assert mine["only 0"]["counts"] == other["only 1"]["counts"] == [42]
    assert 3 <= other["only 1"]["seconds"] < 10
    assert len(other["only 1"]["warnings"]) == 1
    assert "rank 1 is not part of rank 0's run: rank 0 did not attach within 3 s" in other["only 1"]["warnings"][0]
    assert other["only 1"]["path"] == "lonely1-rank1"
    assert mine["both"]["warnings"] == other["both"]["warnings"] == []
    assert_same_moments(
        bnprobe.load(folder / "both"), job.alone(job.model, job.ROWS, s.Moments(exact=True)), ("input", "output")
    )


def test_ranks_that_ask_for_different_things_have_their_own_runs(ways):
    _, found = ways
    mine, other = found["apart", "0"], found["apart", "1"]
    assert (mine["outs"]["path"], other["outs"]["path"]) == ("mine0", "mine1")
    assert "it writes to" in mine["outs"]["warnings"][0]
    assert "it writes to" in other["outs"]["warnings"][0]
    assert (mine["layers"]["path"], other["layers"]["path"]) == ("layers", "layers-rank1")
    assert "its layers or settings are not those of rank 0" in other["layers"]["warnings"][0]
    assert (mine["layers"]["counts"], other["layers"]["counts"]) == ([24], [80])
    assert max(one[name]["seconds"] for one in (mine, other) for name in ("outs", "layers")) < 2


def test_a_rank_that_raises(merged):
    """The steps that both did are merged; what only rank 0 saw of the next is there, and `count` tells."""
    folder, found = merged
    assert (found["raising", "0"]["error"], found["raising", "1"]["error"]) == ("RuntimeError", "ValueError")
    assert max(found["raising", rank]["seconds"] for rank in "01") < 20
    run = bnprobe.load(folder / "raising")
    counts = run.frame(statistic="mean", layer="0", place="input").set_index("step")["count"].to_dict()
    rows = job.ROWS * 3
    assert counts == {**{step: 6 * sum(rows[step]) for step in range(5)}, 5: 6 * rows[5][0]}
    assert run.closed


def test_a_rank_that_dies(ways):
    """Its reports of two steps are in; that the third is not is said after a bounded wait."""
    folder, found = ways[0], ways[1]["dying", "0"]
    assert found["warnings"] == [
        "bnprobe: rank 1 did not report its end within 3 s: what it saw after step 1 is missing"
    ]
    assert 3 <= found["seconds"] < 20
    counts = bnprobe.load(folder / "dying").frame(statistic="mean", layer="0", place="input")["count"].tolist()
    assert counts == [6 * 32, 6 * 20, 6 * 8]


# The parts.


@pytest.fixture
def store():
    return dist.HashStore()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(meeting, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(meeting, "_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(outlets, "FINAL_SECONDS", 0.1)


def test_messages_come_in_order_and_leave_nothing(store, monkeypatch):
    monkeypatch.setattr(mail, "CHUNK_BYTES", 10)
    outbox, inbox = mail.Outbox(store, "1/0"), mail.Inbox(store, "1/0")
    keys = store.num_keys()
    messages = [b"", b"short", b"exactly 10", b"of more than ten bytes:" * 5]
    assert inbox.take() is None
    for message in messages:
        outbox.post(message)
    assert store.num_keys() == keys + 1 + 1 + 1 + 12
    assert [inbox.take() for _ in messages] == messages
    assert inbox.take() is None
    assert store.num_keys() == keys


def test_half_a_message_is_none(store, monkeypatch):
    monkeypatch.setattr(mail, "CHUNK_BYTES", 10)

    class Broken:
        def set(self, key, value):
            if key.endswith("/0"):
                raise RuntimeError("connection lost")
            store.set(key, value)

    with pytest.raises(RuntimeError, match="connection lost"):
        mail.Outbox(Broken(), "1/0").post(b"x" * 35)
    assert mail.Inbox(store, "1/0").take() is None


def test_tensors_travel_once_and_whole():
    shared, bf16 = torch.randn(5, 7).T, torch.randn(6).bfloat16()
    value = {"a": shared, "b": [shared, bf16, torch.zeros(0, 3), torch.tensor(True)], "c": (torch.tensor(3), "text")}
    back = mail.decode(mail.encode(value))
    assert back["a"] is back["b"][0]
    assert back["c"][1] == "text"
    for one, other in zip((*back["b"], back["c"][0]), (*value["b"], value["c"][0]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert len(mail.encode([shared] * 2)) < len(mail.encode([shared, shared.clone()])) - 100


def test_each_rank_looks_at_other_places(monkeypatch):
    seeds = {}
    for rank in range(4):
        monkeypatch.setattr(mail, "world", lambda rank=rank: (rank, 4))
        seeds[rank] = seed_of_rank(7)
        assert seed_of_rank(7) == seeds[rank]
        assert seed_of_rank(8) != seeds[rank]
    assert seeds[0] == 7
    assert len(set(seeds.values())) == 4
    torch.Generator().manual_seed(seeds[3])


HELLO = Hello("runs/a", "settings")


def test_whoever_went_away_is_not_counted_on(store, impatient):
    """A rank that gave up before rank 0 came; the attachment after that meets."""
    assert meeting.call(store, 1, HELLO)[1].refused == "rank 0 did not attach within 0.1 s"
    gathered = meeting.gather(store, 2, HELLO)
    assert gathered.members == {}
    assert gathered.missing == {1: "it did not attach within 0.1 s"}
    answers = []
    caller = threading.Thread(target=lambda: answers.append(meeting.call(store, 1, HELLO)))
    meeting.PATIENCE_SECONDS = 20.0  # monkeypatched by `impatient`, which restores it
    caller.start()
    gathered = meeting.gather(store, 2, HELLO)
    for name in gathered.members.values():
        meeting.answer(store, name, Answer(path="there", first_step=5))
    caller.join()
    assert gathered.members == {1: "1/1"}
    assert answers == [("1/1", Answer(path="there", first_step=5))]


def test_a_seated_rank_waits_for_the_answer(store, impatient, monkeypatch):
    """Rank 0 has seen it, but still waits for another when this one's patience ends."""
    monkeypatch.setattr(meeting, "_ANSWER_SECONDS", 20.0)
    answers = []
    caller = threading.Thread(target=lambda: answers.append(meeting.call(store, 1, HELLO)))
    caller.start()
    while meeting._next_hello(store, 1) is None:
        pass
    caller.join(0.3)
    assert caller.is_alive()
    meeting.answer(store, "1/0", Answer(path="there"))
    caller.join()
    assert answers[0][1].path == "there"


def test_addresses_are_no_difference():
    one, other = (Hello.of(None, {"every": f"<Schedule object at 0x{k:x}>"}, ["a"]) for k in (100, 200))
    assert not one.differs(other)
    assert "layers or settings" in one.differs(Hello.of(None, {"every": "1"}, ["a"]))
    assert "it writes to None, rank 0 to 'x'" in one.differs(Hello.of("x", {}, ["a"]))


def pair(store, folder, *statistics):
    """A leader and a member in this process, and a collector of each."""

    def open_writer(path):
        return Writer(path, settings={}, layers=[Layer("a", "Linear", "linear")], levels=DEFAULT_LEVELS)

    leader = Leader(store, {1: "1/0"}, Alone(folder / "run", open_writer))
    return leader, Member(store, "1/0", Answer(path=str(folder / "run"))), *(Collector(statistics) for _ in range(2))


def put(collector, step, **numbers):
    for name, value in (numbers or {"norm": 1.0}).items():
        collector.add_numbers(step, name, ["a"], [value])


def test_only_steps_that_all_have_completed_are_written(store, tmp_path):
    leader, member, mine, theirs = pair(store, tmp_path)
    for step in range(3):
        put(mine, step)
    leader.write(mine, complete=2)
    assert leader.run.steps.size == 0
    for step in range(4):
        put(theirs, step)
    member.write(theirs, complete=1)
    leader.write(mine, complete=2)
    assert leader.run.steps.tolist() == [0, 1]
    member.close(next_step=9)
    leader.close(next_step=3)
    assert leader.run.steps.tolist() == [0, 1, 2, 3]
    resumed = Writer(leader.path, settings={}, layers=[], levels=DEFAULT_LEVELS)
    resumed.close()
    assert resumed.first_step == 9


def test_three_ranks_whoever_comes_first(tmp_path):
    """Merged in the order of ranks: bitwise the same result."""
    net, frames = nn.Sequential(nn.Linear(6, 4)), []
    data = [torch.randn(1000 * (rank + 1), 6) for rank in range(3)]
    for order in ((1, 2), (2, 1)):
        store, folder = dist.HashStore(), tmp_path / str(order)
        alone = Alone(folder, lambda path: Writer(path, settings={}, layers=[], levels=DEFAULT_LEVELS))
        leader = Leader(store, {rank: f"{rank}/0" for rank in order}, alone)
        for rank in (*order, 0):
            with bnprobe.attach(net, seed=rank) as probe:
                net(data[rank])
                outlet = Member(store, f"{rank}/0", Answer()) if rank else leader
                outlet.write(probe._collector, complete=0)
                leader._read()
        frames.append(leader.run.frame())
        leader._part()
        alone.close()
    assert frames[0].equals(frames[1])
    assert frames[0]["count"].unique().tolist() == [6 * 6000, 4 * 6000]


def test_a_rank_that_reports_nothing_does_not_fill_the_memory(store, tmp_path, impatient, monkeypatch):
    monkeypatch.setattr(outlets, "_PENDING_BYTES", 100)
    leader, member, mine, theirs = pair(store, tmp_path)
    put(mine, 0)
    with pytest.warns(RuntimeWarning, match="rank 1 reported nothing after step -1 for long.*`count` tells"):
        leader.write(mine, complete=0)
    assert leader.run.steps.tolist() == [0]
    put(theirs, 0)
    member.write(theirs, complete=0)
    with pytest.warns(RuntimeWarning, match="rank 1 did not report its end within 0.1 s.*after step 0 is missing"):
        leader.close()
    assert len(leader.run.frame()) == 2


def test_posts_that_nobody_reads_are_bounded(store, tmp_path, monkeypatch):
    monkeypatch.setattr(mail, "BACKLOG_BYTES", 100)
    leader, member, mine, theirs = pair(store, tmp_path)
    put(theirs, 0)
    member.write(theirs, complete=0)
    put(theirs, 1)
    with pytest.warns(RuntimeWarning, match="rank 0 has not read this rank's records for long"):
        member.write(theirs, complete=1)
    leader.write(mine, complete=2)  # reads
    put(theirs, 2)
    member.write(theirs, complete=2)
    with pytest.warns(RuntimeWarning, match="some of what rank 1 saw up to step 1 is missing"):
        leader.write(mine, complete=2)
    assert leader.run.steps.tolist() == [0, 2]
    member.close()
    leader.close()


def test_a_rank_that_goes_on_after_the_run_is_closed(store, tmp_path, impatient):
    leader, member, mine, theirs = pair(store, tmp_path)
    leader.write(mine, complete=0)
    with pytest.warns(RuntimeWarning, match="in the whole run is missing"):
        leader.close()
    keys = store.num_keys()
    put(theirs, 0)
    with pytest.warns(RuntimeWarning, match="rank 0 has closed the run: what this rank sees from now on is not"):
        member.write(theirs, complete=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        member.write(theirs, complete=1)
        member.close()
    assert store.num_keys() == keys


def test_who_leaves_by_an_exception_waits_less(store, tmp_path, monkeypatch):
    monkeypatch.setattr(outlets, "_GRACE_SECONDS", 0.05)
    leader, _, mine, _ = pair(store, tmp_path)
    put(mine, 0)
    leader.write(mine, complete=0)

    def leave():
        try:
            raise KeyError
        finally:
            leader.close()

    with pytest.raises(KeyError), pytest.warns(RuntimeWarning, match="rank 1 did not report its end within 0.05 s"):
        leave()
    assert leader.run.steps.tolist() == [0]


def test_an_interrupted_wait_loses_nothing(store, tmp_path, monkeypatch):
    leader, _, mine, _ = pair(store, tmp_path)
    put(mine, 0)
    leader.write(mine, complete=0)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(outlets, "until", interrupt)
    with pytest.raises(KeyboardInterrupt):
        leader.close()
    assert leader.run.steps.tolist() == [0]
    assert leader.run.closed


def test_a_forked_child_keeps_its_hands_off_the_store(store, tmp_path, monkeypatch):
    leader, member, mine, theirs = pair(store, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        for outlet, collector in ((leader, mine), (member, theirs)):
            with pytest.raises(RunError, match=r"belongs to process .*, this is -1"):
                outlet.write(collector, complete=0)
    member.close()
    leader.close()


def test_a_store_that_is_gone(store, tmp_path, monkeypatch):
    leader, member, mine, theirs = pair(store, tmp_path)

    def gone(*_):
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(mail.Outbox, "closed", gone)
    monkeypatch.setattr(mail.Inbox, "take", gone)
    put(theirs, 0)
    with pytest.warns(RuntimeWarning, match="the job's store cannot be reached .Connection reset"):
        member.write(theirs, complete=0)
    put(mine, 0)
    with pytest.warns(RuntimeWarning, match="what rank 1 saw after step -1 is missing: .*Connection reset"):
        leader.write(mine, complete=0)
    assert leader.run.steps.tolist() == [0]
    leader.close()
    assert leader.run.closed


class Count(s.Statistic):
    """States that travel where they are numbers, and do not where they are functions."""

    def applies(self, site, place):
        return True

    def update(self, state, seen):
        return 1

    def merge(self, a, b):
        return a + b

    def finish(self, states):
        return {"calls": bnprobe.records.Measured(np.array([float(one) for one in states]), "computed")}


def test_a_statistic_that_cannot_travel_is_given_up_and_said(store, tmp_path):
    leader, member, mine, theirs = pair(store, tmp_path, Count(), s.Moments(exact=True))
    for collector in (mine, theirs):
        state = 1 if collector is mine else lambda: 1
        lane = collector.lane("train", find_sites(nn.ModuleDict({"a": nn.Linear(2, 2)}))[0], 0, "input")
        lane.entries[0] = Entry(count=4, states={0: state})
    member.write(theirs, complete=0)
    assert "cannot be sent" in theirs.failures["Count"]
    leader.write(mine, complete=0)
    assert "on rank 1: its state cannot be sent" in mine.failures["Count"]
    assert leader.run.statistics == []  # of half the ranks nothing is recorded as if it were of all
    member.close()
    leader.close()


def test_norms_of_shards():
    first, second = ShardedNorm(torch.tensor(9.0), 2, 1, 5), ShardedNorm(torch.tensor(16.0), 3, 1, 5)
    assert first.whole() is None
    assert first.merge(second).whole() == 5
    assert first.merge(second).merge(second).whole() is None  # one came twice
    replicas = [ShardedNorm(torch.tensor(25.0), 5, 2, 5)] * 2
    assert replicas[0].merge(replicas[1]).whole() == 5


def test_a_message_is_small():
    """What travels of a step of a small network: less than its activations."""
    net = job.model()
    probe = bnprobe.attach(net, s.Moments(exact=True))
    net(torch.randn(4000, 6))
    size = len(mail.encode(Post(0, probe._collector.take())))
    probe.detach()
    assert size < 4000 * 16 * 4 / 10


def test_joined_tensors_seen_twice_stay_one_state():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    taken = []
    for _ in range(2):
        with bnprobe.attach(net, s.Moments()) as probe:
            net(torch.randn(8, 3))
            collector = probe._collector
            taken.append(collector.take())
    whole = collector.join(taken)
    states = [whole.entries[Key(0, "train", *key)].states[0] for key in (("0", 0, "output"), ("1", 0, "input"))]
    assert states[0] is states[1]
    assert states[0].sample.count == 64


def test_rank_0_measures_for_all(merged):
    folder, found = merged
    run = bnprobe.load(folder / "measured")
    assert run.settings["ranks"] == [0, 1]
    assert all(not found["measured", rank]["warnings"] for rank in "01")
    frame = run.frame(place="jacobian")
    assert set(frame["step"]) == {0, 2}
    net = job.model()
    net(next(job.part_of(0, job.ROWS))[0])
    values = run.channels("1", "singular_value", place="jacobian").loc[0].to_numpy()
    expected = bnprobe.spectrum(net, job.probe_batch(0), "1").values.mean(0)
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)
    counts = run.frame(statistic="mean", layer="0", place="input")["count"]
    assert counts.tolist() == [6 * sum(rows) for rows in job.ROWS]
