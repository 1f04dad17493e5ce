"""The doctor as a whole: it changes nothing, takes what loaders give, says what it could not do, and keeps the rest."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import bnprobe
from bnprobe.errors import ArgumentError
from bnprobe.evidence import Evidence


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip


def pairs(count=6, size=8):
    return [(torch.randn(size, 3, 8, 8), torch.randint(4, (size,))) for _ in range(count)]


def trained():
    """A few real steps, so that weights, gradients, buffers and momenta of the optimizer are something."""
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y in pairs(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, optimizer


def everything(model, optimizer):
    """All that a diagnosis could change, bit for bit."""
    return {
        "state": {name: one.clone() for name, one in model.state_dict().items()},
        "identities": [id(one) for one in (*model.parameters(), *model.buffers())],
        "gradients": [None if one.grad is None else one.grad.clone() for one in model.parameters()],
        "flags": [one.requires_grad for one in model.parameters()],
        "modes": [one.training for one in model.modules()],
        "hooks": [
            (name, list(hooks)) for one in model.modules() for name, hooks in vars(one).items() if "_hooks" in name
        ],
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002
        "python": random.getstate(),
    }


def assert_same(before, after):
    torch.testing.assert_close(
        [before[name] for name in ("state", "optimizer", "torch")],
        [after[name] for name in ("state", "optimizer", "torch")],
        rtol=0, atol=0, equal_nan=True,
    )  # fmt: skip
    for one, other in zip(before["gradients"], after["gradients"], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    for name in ("identities", "flags", "modes", "hooks", "python"):
        assert before[name] == after[name], name
    assert (before["numpy"] == after["numpy"]).all()


class Raising(nn.Module):
    """Raises after so many forwards, in the middle of its own."""

    def __init__(self, model, after):
        super().__init__()
        self.model, self.after = model, after
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls > self.after:
            self.model[1].running_mean.add_(1)
            raise RuntimeError("out of luck")
        return self.model(x)


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_nothing_is_changed(mode):
    model, optimizer = trained()
    model.train(mode != "eval")
    if mode == "mixed":
        model[1].eval()
        model[6].weight.requires_grad_(False)
    batches, others = pairs(), pairs()

    def step(batch):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    def evaluate():
        return [model(x) for x, _ in batches]

    before = everything(model, optimizer)
    report = bnprobe.diagnose(
        model, batches, optimizer=optimizer, step=step, evaluate=evaluate, val_loader=others, batches=4
    )
    assert_same(before, everything(model, optimizer))
    assert report.proof
    assert all(report.proof.values())


@pytest.mark.parametrize("after", [0, 1, 3])
def test_nothing_is_changed_where_the_model_raises_and_what_was_found_is_kept(after):
    model, optimizer = trained()
    model, batches = Raising(model, after), pairs()
    before = everything(model, optimizer)
    report = bnprobe.diagnose(model, batches, batches=4)
    assert_same(before, everything(model, optimizer))
    assert model.calls == 0
    context = Evidence.of(report.run).context
    assert any("RuntimeError: out of luck" in why for why in context.missing.values())
    assert Evidence.of(report.run).all("training")  # the state needs no forward
    assert all(report.proof.values())


def test_a_model_that_these_batches_are_not_for_says_so_first():
    report = bnprobe.diagnose(network(), [(torch.randn(8, 5, 8, 8), torch.randint(4, (8,)))])
    told = " ".join(str(report).split())
    assert "The model cannot be run on these batches (it raises RuntimeError: " in told
    assert "Where model(x) is not how it is called, pass forward=." in told
    assert report.certificate is None


def test_a_model_that_writes_into_its_input_changes_nobodys_batches():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            return self.body(x.add_(1))

    batches = pairs()
    kept = [(x.clone(), y.clone()) for x, y in batches]
    report = bnprobe.diagnose(Writes().train(), batches, lambda model, batch: model(batch[0]).square().mean())
    assert all(torch.equal(x, a) and torch.equal(y, b) for (x, y), (a, b) in zip(batches, kept, strict=True))
    assert abs(Evidence.of(report.run).value("swap_noise")) == 0


def test_batches_without_a_tensor():
    report = bnprobe.diagnose(network(), ["one", "two"])
    assert Evidence.of(report.run).context.samples == 0
    assert "The model cannot be run on these batches" in " ".join(str(report).split())


def test_a_directory_that_holds_something_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    model = Raising(network(), 0)
    with pytest.raises(ArgumentError, match="out must be a new or an empty directory"):
        bnprobe.diagnose(model, pairs(), out=tmp_path)
    with pytest.raises(ArgumentError, match="there is no rule 'N99'"):
        bnprobe.diagnose(model, iter(()), select=["N99"])


def test_a_loss_that_raises():
    def loss(model, batch):
        raise KeyError("target")

    report = bnprobe.diagnose(trained()[0], pairs(), loss)
    context = Evidence.of(report.run).context
    assert context.texts["why_no_loss"] == "the loss raises KeyError: 'target'"
    assert not context.labels
    assert Evidence.of(report.run).fact("distance_stored") is not None  # outputs stand for losses


class Sums(nn.Module):
    """Takes two inputs by keyword."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, picture, other):
        return self.body(picture + other)


def dicts():
    return [{"picture": x, "other": x.flip(0), "labels": y} for x, y in pairs()]


@pytest.mark.parametrize(
    ("model", "loader", "arguments"),
    [
        (network, lambda: (pair for pair in pairs()), {}),
        (network, lambda: itertools.cycle(pairs()), {"batches": 5}),
        (network, lambda: [x for x, _ in pairs()], {}),
        (network, lambda: [[x, y] for x, y in pairs()], {}),
        (network, lambda: torch.utils.data.DataLoader(torch.randn(48, 3, 8, 8), 8, shuffle=True), {}),
        (Sums, lambda: [(x, x.flip(0), y) for x, y in pairs()], {}),
        (Sums, lambda: [((x, x.flip(0)), y) for x, y in pairs()], {}),
        (Sums, lambda: [({"picture": x, "other": x}, y) for x, y in pairs()], {}),
        (Sums, dicts, {"forward": lambda model, batch: model(batch["picture"], batch["other"])}),
        (
            network,
            lambda: [(x, y.float()) for x, y in pairs()],
            {"loss": lambda model, batch: mse_loss(model(batch[0])[:, 0], batch[1])},
        ),
    ],
    ids=["generator", "endless", "unlabelled", "lists", "DataLoader", "three", "nested", "dict in pair", "dict", "mse"],
)
def test_whatever_a_loader_gives(model, loader, arguments):
    report = bnprobe.diagnose(model(), loader(), **arguments)
    context = Evidence.of(report.run).context
    assert not [why for why in context.missing.values() if "raised" in why]
    assert context.batches in (5, 6)
    assert context.samples == 8 * context.batches


def test_a_scripted_model():
    model = torch.jit.script(network().eval())
    before = {name: one.clone() for name, one in model.state_dict().items()}
    report = bnprobe.diagnose(model, pairs())
    assert all(report.proof.values())
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert [layer.name for layer in Evidence.of(report.run).norms] == ["1", "7"]


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile])
def test_wrappers_are_looked_through(wrap):
    report = bnprobe.diagnose(wrap(network()), pairs())
    assert [layer.name for layer in Evidence.of(report.run).norms] == ["1", "7"]


def test_one_batch_only():
    report = bnprobe.diagnose(trained()[0], pairs(1))
    assert not [why for why in Evidence.of(report.run).context.missing.values() if "raised" in why]


def test_arguments_of_no_use():
    model = network()
    with pytest.raises(ArgumentError, match="loader gave no batch: an iterable of batches with at least one is needed"):
        bnprobe.diagnose(model, [])
    with pytest.raises(ArgumentError, match="loader must be an iterable of batches; got int"):
        bnprobe.diagnose(model, 3)
    with pytest.raises(ArgumentError, match=r"model must be a torch.nn.Module; got function"):
        bnprobe.diagnose(network, pairs())
    with pytest.raises(ArgumentError, match=r"intent must be one of serve, train, .* got 'test'"):
        bnprobe.diagnose(model, pairs(), intent="test")
    with pytest.raises(ArgumentError, match="there is no rule 'N99'; there are N"):
        bnprobe.diagnose(model, pairs(), select=["N99"])
    with pytest.raises(ArgumentError, match="batches must be at least 1; got 0"):
        bnprobe.diagnose(model, pairs(), batches=0)


def test_the_diagnosis_can_be_judged_again_from_its_run(tmp_path):
    from bnprobe.diagnosis import diagnosis_of

    model = network()
    with torch.no_grad():
        model[1].weight.add_(0.1)  # it was trained
        model[1].running_mean.fill_(float("nan"))
    report = bnprobe.diagnose(model, pairs(), out=tmp_path / "evidence")
    again = diagnosis_of(Evidence.of(bnprobe.load(tmp_path / "evidence")), report.run, report.proof)
    assert [(one.code, one.layer, one.severity) for one in again.findings] == [
        (one.code, one.layer, one.severity) for one in report.findings
    ]
    assert "N11" in {one.code for one in report.findings}
    assert not report.ok
    assert report.certificate is None


def test_a_model_without_normalization():
    report = bnprobe.diagnose(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), pairs())
    context = Evidence.of(report.run).context
    assert context.missing["triangle"] == "no layer has running statistics"
    assert report.ok
