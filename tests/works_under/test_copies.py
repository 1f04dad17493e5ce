"""Copies of an attached model, several probes, submodules, threads and processes."""

import copy
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import bnprobe
from tests.cases import batches, cnn, mlp, train
from tests.works_under.naive import (
    DEFAULT,
    EXACT,
    LARGE,
    Naive,
    agree,
    assert_same,
    check,
    plain_loop,
    sgd,
    snapshot,
    trained,
    why,
)

pytestmark = pytest.mark.usefixtures("no_hooks_left")


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_state_dict(model):
    twin = cnn()
    twin.load_state_dict(saved(model.state_dict()))
    return twin


COPIES = {
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
    "state_dict": through_state_dict,
}


@pytest.mark.works_under("copy.deepcopy, pickle, torch.save/load, state_dict", group="Copies and several probes")
@pytest.mark.parametrize("way", COPIES)
def test_copies_of_an_attached_model(way):
    """In the middle of a step: the copy is plain, unattached, bitwise alike, and the original is listened to on."""
    data = batches((4, 3, 6, 6), 3)

    def loop(model, optimizer):
        for step, (x, y) in enumerate(data):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if step == 1:
                twin = COPIES[way](model)
                assert_same(dict(twin.state_dict()), dict(model.state_dict()))
                twin.train()(x).sum().backward()  # must not be recorded
            loss.backward()
            optimizer.step()

    def plainly(model, optimizer):  # hooks on modules are copied with them: the twin trains without making copies
        naive = Naive(model)
        optimizer.register_step_post_hook(naive.tick)
        return naive

    naive = trained(cnn, plain_loop(data), listen=plainly)[2]
    plain = snapshot(*trained(cnn, loop)[:2])
    model, optimizer, probe = trained(cnn, loop, listen=lambda m, o: bnprobe.attach(m, *EXACT, optimizer=o))
    probe.detach()
    assert_same(plain, snapshot(model, optimizer))
    agree(probe.run, naive.seen)


@pytest.mark.works_under("EMA (AveragedModel)", group="Copies and several probes")
def test_an_average_made_while_attached():
    """The average is a copy: it is not listened to, nor changed; a probe of its own looks through the wrapper."""

    def loop(model, optimizer):
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        for x, y in batches((16, 6), 3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            average.update_parameters(model)
            average(x)
        averages.append(average)

    averages = []
    plain = trained(mlp, loop)
    model, optimizer, probe = trained(mlp, loop, listen=lambda m, o: bnprobe.attach(m, *EXACT, optimizer=o))
    probe.detach()
    assert_same(snapshot(*plain[:2]), snapshot(model, optimizer))
    assert_same(snapshot(averages[0]), snapshot(averages[1]))
    assert set(probe.run.frame(layer="0", place="input")["count"]) == {96}
    average, x = averages[0].eval(), torch.randn(8, 6)
    with bnprobe.attach(average, *EXACT) as probe:
        y = average(x)
    assert probe.run.layers.name.tolist() == ["0", "1", "2", "3", "4", "5", "6"]
    assert probe.run.frame(layer="6", place="output", statistic="mean").value.item() == pytest.approx(
        y.double().mean().item(), rel=1e-9
    )


# Several probes.


@pytest.mark.works_under("two probes on one model; attach twice in a row", group="Copies and several probes")
@pytest.mark.parametrize(("statistics", "rel"), [(EXACT, 1e-9), (DEFAULT, 2e-5)])
def test_two_probes(statistics, rel):
    """One for all steps; another, over other layers, attached after the first step and detached before the last."""
    data = batches((4, 3, 6, 6), 4)

    def naively(model, optimizer):
        naive = Naive(model)
        optimizer.register_step_post_hook(naive.tick)
        return naive

    naive = trained(cnn, plain_loop(data), listen=naively)[2]
    plain = snapshot(*trained(cnn, plain_loop(data))[:2])

    def loop(model, optimizer):
        train(model, optimizer, data[:1])
        with bnprobe.attach(model, *statistics, layers="[0-3]", optimizer=optimizer, sample=LARGE) as other:
            train(model, optimizer, data[1:3])
        others.append(other)
        train(model, optimizer, data[3:])

    others = []
    model, optimizer, probe = trained(
        cnn, loop, listen=lambda m, o: bnprobe.attach(m, *statistics, optimizer=o, sample=LARGE)
    )
    probe.detach()
    assert_same(plain, snapshot(model, optimizer))
    agree(probe.run, naive.seen, rel)
    shifted = {(key[0] - 1, *key[1:]): parts for key, parts in naive.seen.items() if key[0] in (1, 2)}
    agree(others[0].run, shifted, rel)
    with bnprobe.attach(model, *statistics, optimizer=optimizer, sample=LARGE) as again:
        train(model, optimizer, data)
    assert again.run.steps.tolist() == [0, 1, 2, 3]


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Linear(6, 6), mlp()

    def forward(self, x):
        return self.body(self.stem(x)) + self.body(x)


@pytest.mark.works_under("attach to a submodule", group="Copies and several probes")
def test_attach_to_a_submodule():
    """The submodule is the root: names are its own, and two forwards of it in a step merge."""
    data = batches((8, 6), 3)

    def naively(model, optimizer):
        naive = Naive(model.body)
        optimizer.register_step_post_hook(naive.tick)
        return naive

    naive = trained(Backbone, plain_loop(data), listen=naively)[2]
    plain = snapshot(*trained(Backbone, plain_loop(data))[:2])
    for statistics, rel in ((EXACT, 1e-9), (DEFAULT, 2e-5)):
        model, optimizer, probe = trained(
            Backbone, plain_loop(data), listen=lambda m, o, s=statistics: bnprobe.attach(m.body, *s, optimizer=o)
        )
        probe.detach()
        assert_same(plain, snapshot(model, optimizer))
        agree(probe.run, naive.seen, rel)
    assert set(probe.run.frame(layer="0", place="input")["count"]) == {96}


@pytest.mark.works_under("detach in the middle of a step", group="Copies and several probes")
@pytest.mark.parametrize("when", ["before backward", "in the forward", "in the backward", "before the optimizer"])
def test_detach_in_the_middle_of_a_step(when):
    """What came before is kept, and right; training goes on as if nothing had been there."""
    data, probes = batches((16, 6), 3), []

    def detach_here(*_):
        if probes and probes[0].now == 1:
            probes[0].detach()

    def make():
        model = mlp()
        if when == "in the forward":
            model[3].register_forward_hook(detach_here)
        return model

    def loop(model, optimizer):
        for x, y in data:
            optimizer.zero_grad()
            output = model(x)
            if when == "in the backward":
                output.register_hook(detach_here)
            loss = F.cross_entropy(output, y)
            if when == "before backward":
                detach_here()
            loss.backward()
            if when == "before the optimizer":
                detach_here()
            optimizer.step()

    plain = snapshot(*trained(make, loop)[:2])

    def naively(model, optimizer):
        naive = Naive(model)
        optimizer.register_step_post_hook(naive.tick)
        return naive

    naive = trained(mlp, plain_loop(data), listen=naively)[2]

    def listen(model, optimizer):
        probes.append(bnprobe.attach(model, *EXACT, optimizer=optimizer))
        return probes[0]

    model, optimizer, probe = trained(make, loop, listen=listen)
    assert not probe.attached
    assert_same(plain, snapshot(model, optimizer))
    recorded = probe.run.frame()
    assert set(recorded.step) == {0, 1}
    keys = set(recorded[(recorded.step == 1) & (recorded.place != "weight")].groupby(["layer", "place"]).groups)
    forward = {(name, place) for _, _, name, _, place in naive.seen if name and not place.startswith("grad")}
    if when == "in the forward":
        assert keys == {(name, place) for name, place in forward if int(name) <= 3}
    elif when == "before the optimizer":
        assert keys == forward | {(name, "grad_output") for name, _ in forward}
    elif when == "before backward":
        assert keys == forward
    kept = {
        key: parts for key, parts in naive.seen.items() if key[0] == 0 or (key[0] == 1 and (key[2], key[4]) in keys)
    }
    agree(probe.run, kept)


# Threads and processes.


@pytest.mark.works_under("threads: two models trained in two threads", group="Threads and processes")
@pytest.mark.parametrize(("statistics", "rel"), [(EXACT, 1e-9), (DEFAULT, 2e-5)])
def test_two_models_in_two_threads(statistics, rel):
    """Global hooks fire in both threads; each probe sees its own model only."""
    data, steps = {"cnn": batches((4, 3, 6, 6), 4), "mlp": batches((16, 6), 4, seed=5)}, {}
    makes = {"cnn": cnn, "mlp": mlp}
    barrier, failed = threading.Barrier(2), []

    def naively(model, optimizer):
        naive = Naive(model)
        optimizer.register_step_post_hook(naive.tick)
        return naive

    expected = {name: trained(makes[name], plain_loop(data[name]), listen=naively) for name in makes}
    torch.manual_seed(0)
    models = {}
    for name in makes:  # seeded one by one: the global stream is shared
        models[name] = trained(makes[name], lambda *_: None)[0]
    optimizers = {name: sgd(model.parameters()) for name, model in models.items()}

    def work(name):
        try:
            model, optimizer = models[name], optimizers[name]
            with bnprobe.attach(model, *statistics, optimizer=optimizer, sample=LARGE) as probe:
                for one in data[name]:
                    barrier.wait(timeout=60)
                    train(model, optimizer, [one])
            steps[name] = probe
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(name,)) for name in makes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not failed
    for name, (plain, plain_optimizer, naive) in expected.items():
        assert_same(snapshot(plain, plain_optimizer), snapshot(models[name], optimizers[name]))
        agree(steps[name].run, naive.seen, rel)


class Numbers(torch.utils.data.Dataset):
    """Needs a model of its own in the worker, as a feature extractor would be."""

    def __init__(self, model):
        self.model = model

    def __len__(self):
        return 24

    def __getitem__(self, index):
        x = torch.full((6,), float(index)) / 24 - torch.arange(6.0) / 5
        with torch.no_grad():
            self.model.eval()(x[None])
        return x, index % 3


@pytest.mark.works_under("data loaders that fork or spawn", group="Threads and processes")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loaders(context):
    """Workers inherit the hooks (fork) or a pickle of the attached model (spawn): they record and end nothing."""

    def loop(model, optimizer):
        loader = torch.utils.data.DataLoader(
            Numbers(model), batch_size=8, num_workers=1, multiprocessing_context=context
        )
        for x, y in loader:
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    def without_workers(model, optimizer):
        own = Numbers(mlp())
        data = [own[i] for i in range(24)]
        plain_loop(
            [
                (torch.stack([x for x, _ in data[at : at + 8]]), torch.tensor([y for _, y in data[at : at + 8]]))
                for at in (0, 8, 16)
            ]
        )(model, optimizer)

    def naively(model, optimizer):
        naive = Naive(model)
        optimizer.register_step_post_hook(naive.tick)
        return naive

    plain, plain_optimizer, _ = trained(mlp, without_workers)
    naive = trained(mlp, without_workers, listen=naively)[2]
    naive.seen = {key: parts for key, parts in naive.seen.items() if key[1] == "train"}
    model, optimizer, probe = trained(mlp, loop, listen=lambda m, o: bnprobe.attach(m, *EXACT, optimizer=o))
    assert probe.attached
    probe.detach()
    assert_same(snapshot(plain, plain_optimizer), snapshot(model, optimizer))
    agree(probe.run, naive.seen)
    assert probe.run.closed
    assert not probe.run.problems


def test_the_checker_catches_what_is_wrong():
    """A naive twin that differs in a number, a layer or a call must be found out."""
    data = batches((8, 6), 1)
    probe = check(mlp, plain_loop(data))
    naive = trained(mlp, plain_loop(data), listen=lambda m, o: Naive(m))[2]
    agree(probe.run, naive.seen)
    key = (0, "train", "3", 0, "output")
    for broken in (
        {**naive.seen, key: [naive.seen[key][0] + 1e-6]},
        {one: parts for one, parts in naive.seen.items() if one != key},
        {**naive.seen, (0, "train", "3", 1, "output"): naive.seen[key]},
        {**naive.seen, key: naive.seen[key] * 2},
    ):
        with pytest.raises(AssertionError):
            agree(probe.run, broken)
    assert not why(probe)
