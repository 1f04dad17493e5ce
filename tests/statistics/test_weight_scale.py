"""WeightScale's records against the same numbers made by hand, in whatever way the weights are trained."""

import copy
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnprobe
from bnprobe import statistics as s
from bnprobe.errors import ArgumentError, SelectionError
from bnprobe.schedule import first
from tests.cases import batches, mlp

STATISTICS = (
    "weight_norm", "weight_grad_norm", "weight_dot_grad", "weight_grad_cosine", "effective_learning_rate",
    "angular_update", "relative_update", "equilibrium_norm", "equilibrium_angle",
)  # fmt: skip
WEIGHTS = ("0.weight", "3.weight")
UPDATE = ("angular_update", "relative_update")


def values(run, layer="0", place="weight"):
    """By statistic, values by step; of WeightScale's alone."""
    frame = run.frame(statistic=[name for name in STATISTICS if name in run.statistics], layer=layer, place=place)
    return {name: dict(zip(some["step"], some["value"], strict=True)) for name, some in frame.groupby("statistic")}


def law(optimizer, group, norm, grad_norm, size):
    """Equilibrium norm and angle, written out."""
    rate, decay = float(group["lr"]), float(group["weight_decay"])
    if decay == 0:
        return math.nan, math.nan
    if type(optimizer) is torch.optim.SGD:
        mu = group["momentum"]
        rate *= 1 - group["dampening"] if mu else 1
        fourth = rate * (norm * grad_norm) ** 2 / (decay * (1 - mu) * (2 - rate * decay / (1 + mu)))
        more = 1 + 2 * mu - 2 * mu**3 if group["nesterov"] else 1
        return fourth**0.25, math.sqrt(2 * rate * decay * more / (1 + mu))
    if group.get("decoupled_weight_decay") and not group["amsgrad"]:
        beta = group["betas"][0]
        return math.sqrt(rate * size / (2 * decay)), math.sqrt(2 * rate * decay * (1 - beta) / (1 + beta))
    return math.nan, math.nan


def by_hand(weight, gradient, after, optimizer, group):
    """All numbers of one update; angles from the chord between unit vectors."""
    w, v = (one.detach().double().flatten().numpy() for one in (weight, after))
    norm = np.linalg.norm(w)
    chord = np.linalg.norm(w / norm - v / np.linalg.norm(v))
    found = {"weight_norm": norm, "effective_learning_rate": float(group["lr"]) / norm**2}
    found |= {"angular_update": 2 * math.asin(chord / 2), "relative_update": np.linalg.norm(v - w) / norm}
    if gradient is not None:
        g = gradient.detach().double().flatten().numpy()
        grad_norm = np.linalg.norm(g)
        found |= {
            "weight_grad_norm": grad_norm,
            "weight_dot_grad": w @ g,
            "weight_grad_cosine": w @ g / norm / grad_norm,
        }
        found["equilibrium_norm"] = law(optimizer, group, norm, grad_norm, w.size)[0]
    found["equilibrium_angle"] = law(optimizer, group, norm, 1.0, w.size)[1]
    return {name: value for name, value in found.items() if not math.isnan(value)}


def trained(model, optimizer, statistic, data, names=WEIGHTS, schedule=None, **more):
    """The run, and by step and name what is right."""
    parameters, truth = dict(model.named_parameters()), {}
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    with bnprobe.attach(model, statistic, optimizer=optimizer, **more) as probe:
        for step, (x, y) in enumerate(data):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            before = {name: (parameters[name].detach().clone(), parameters[name].grad.clone()) for name in names}
            optimizer.step()
            for name in names:
                group = group_of[id(parameters[name])]
                truth[step, name] = by_hand(*before[name], parameters[name], optimizer, group)
            if schedule is not None:
                schedule.step()
    return probe.run, truth


def assert_right(run, truth, names=WEIGHTS, rtol=1e-9):
    for name in names:
        found = values(run, name.rpartition(".")[0])
        steps = sorted(step for step, one in truth if one == name)
        for step in steps:
            mine = {statistic: column[step] for statistic, column in found.items() if step in column}
            assert mine == pytest.approx(truth[step, name], rel=rtol, abs=1e-14), (step, name)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "decay": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.02),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.02),
    "damped": lambda p: torch.optim.SGD(p, 0.1, 0.9, dampening=0.5, weight_decay=0.02),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=0.02),
    "nesterov without decay": lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.02),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "adam decoupled": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.02, decoupled_weight_decay=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "rate on the device": lambda p: torch.optim.AdamW(p, torch.tensor(0.01), foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, weight_decay=0.02),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_records_are_right_under_every_optimizer(make):
    model = mlp().double()
    optimizer = make(model.parameters())
    data = [(x.double(), y) for x, y in batches((16, 6), 5)]
    run, truth = trained(model, optimizer, s.WeightScale(WEIGHTS), data)
    assert_right(run, truth)
    known = any(name.startswith("equilibrium") for name in truth[0, WEIGHTS[0]])
    assert known == any(name.startswith("equilibrium") for name in run.statistics)
    assert run.frame(place="weight", statistic="weight_norm")["count"].unique().tolist() == [72, 144]


class Own(torch.optim.SGD):
    """Somebody's own, which may step as it likes."""


def test_no_law_for_an_optimizer_of_ones_own():
    model = mlp()
    optimizer = Own(model.parameters(), 0.1, 0.9, weight_decay=0.1)
    run, _ = trained(model, optimizer, s.WeightScale(WEIGHTS), batches((16, 6), 2))
    assert "equilibrium_angle" not in run.statistics
    assert values(run)["effective_learning_rate"]


def test_rates_are_those_of_the_step():
    model = mlp().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.5, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    data = [(x.double(), y) for x, y in batches((16, 6), 4)]
    run, _ = trained(model, optimizer, s.WeightScale(WEIGHTS), data, schedule=schedule)
    found = values(run)
    rates = [found["effective_learning_rate"][step] * found["weight_norm"][step] ** 2 for step in range(4)]
    assert rates == pytest.approx([0.5, 0.25, 0.125, 0.0625])
    assert list(found["equilibrium_angle"].values()) == pytest.approx([math.sqrt(2 * 0.1 * rate) for rate in rates])


def test_groups_and_optimizers_have_their_own_rates():
    model = mlp().double()
    one = torch.optim.SGD([{"params": model[0].parameters(), "weight_decay": 0.1}, {"params": [model[6].bias]}], 0.5)
    two = torch.optim.AdamW([model[3].weight], 0.01)
    with bnprobe.attach(model, s.WeightScale([*WEIGHTS, "6.weight"]), optimizer=[one, two]) as probe:
        for x, y in batches((16, 6), 3):
            model.zero_grad()
            F.cross_entropy(model(x.double()), y).backward()
            one.step()
            two.step()
    first_, second, third = (values(probe.run, layer) for layer in ("0", "3", "6"))
    assert first_["equilibrium_angle"][2] == pytest.approx(math.sqrt(2 * 0.5 * 0.1))
    assert second["equilibrium_angle"][2] == pytest.approx(math.sqrt(2 * 0.01 * 0.01 * 0.1 / 1.9))
    assert min(*first_["angular_update"].values(), *second["angular_update"].values()) > 1e-4
    assert set(third) == {"weight_norm", "weight_grad_norm", "weight_dot_grad", "weight_grad_cosine", *UPDATE}
    assert set(third["angular_update"].values()) == {0.0}  # no optimizer holds it


def test_accumulated_and_clipped_gradients_are_those_that_the_optimizer_gets():
    model = mlp().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bnprobe.attach(model, s.WeightScale(WEIGHTS), optimizer=optimizer) as probe:
        for x, y in batches((16, 6), 3):
            F.cross_entropy(model(x.double()), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        norm = float(model[0].weight.grad.norm())
        optimizer.step()
    found = values(probe.run)
    assert found["weight_grad_norm"][0] == pytest.approx(norm, rel=1e-12)
    assert abs(found["weight_grad_cosine"][0]) < 1e-3  # eps
    assert found["relative_update"][0] == pytest.approx(0.1 * norm / found["weight_norm"][0], rel=1e-9)


def test_what_has_no_gradient_has_no_numbers_of_one():
    model = mlp().double()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    with bnprobe.attach(model, s.WeightScale(WEIGHTS), optimizer=optimizer) as probe:
        x, y = batches((16, 6), 1)[0]
        F.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
    found = values(probe.run)
    assert set(found) == {"weight_norm", "effective_learning_rate", "equilibrium_angle", *UPDATE}
    assert found["angular_update"][0] == 0
    assert set(values(probe.run, "3")) == set(STATISTICS)


class Layouts(nn.Module):
    """Weights that lie anyhow: several in a layer, parametrised, shared, the model's own."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.direction = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.twin = nn.Linear(4, 4, bias=False)
        self.copy = nn.Linear(4, 4, bias=False)
        self.copy.weight = self.twin.weight
        self.own = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        x = self.direction(self.lstm(x)[0])
        return F.layer_norm(self.twin(x) + self.copy(x @ self.own), (4,)).sigmoid()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_lie_anyhow(dtype):
    model = Layouts().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    names = {
        "lstm.weight_hh_l0": ("lstm", "weight.weight_hh_l0"),
        "direction.parametrizations.weight.original1": ("direction", "weight.parametrizations.weight.original1"),
        "copy.weight": ("copy", "weight"),
        "own": ("", "weight.own"),
    }
    before = {name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)}
    with bnprobe.attach(model, s.WeightScale(names), layers=nn.LSTM, optimizer=optimizer) as probe:
        model(torch.randn(5, 2, 3, dtype=dtype)).square().mean().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters(remove_duplicate=False)}
        optimizer.step()
    after = dict(model.named_parameters(remove_duplicate=False))
    for name, (layer, place) in names.items():
        right = by_hand(before[name], gradients[name], after[name], optimizer, optimizer.param_groups[0])
        found = {key: column[0] for key, column in values(probe.run, layer, place).items()}
        dot = found.pop("weight_dot_grad"), right.pop("weight_dot_grad")
        cosine = found.pop("weight_grad_cosine"), right.pop("weight_grad_cosine")
        assert found == pytest.approx(right, rel=1e-5)
        assert cosine[0] == pytest.approx(cosine[1], abs=1e-6)
        assert dot[0] == pytest.approx(dot[1], abs=1e-6 * right["weight_norm"] * right["weight_grad_norm"])
    assert {"lstm", "direction", "copy", ""} <= set(probe.run.layers["name"])


def test_the_names_of_a_shared_weight_are_one_weight(monkeypatch):
    monkeypatch.setattr(sys.modules["bnprobe.statistics.weight_tracker"], "_BY_CHANCE", math.inf)  # everything passes
    model = Layouts()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bnprobe.attach(model, s.WeightScale(screen=1, tolerance=10.0), optimizer=optimizer) as probe:
        model(torch.randn(5, 2, 3)).square().mean().backward()
        optimizer.step()
    assert values(probe.run, "twin")
    assert not values(probe.run, "copy")


def test_rounding_in_float32_is_within_the_error_and_small_angles_survive():
    """A channels_last convolution, whose sums no naive float32 would get right, and an update of 1e-5."""
    model = nn.Sequential(nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 1e-8)
    target = torch.randn(4, 64, 6, 6)
    before = model[0].weight.detach().clone()
    with bnprobe.attach(model, s.WeightScale(["0.weight"]), optimizer=optimizer) as probe:
        x = torch.randn(4, 32, 8, 8).to(memory_format=torch.channels_last)
        (model(x) - target).square().sum().backward()
        gradient = model[0].weight.grad.clone()
        optimizer.step()
    right = by_hand(before, gradient, model[0].weight, optimizer, optimizer.param_groups[0])
    frame = probe.run.frame(place="weight").set_index("statistic")
    for name in ("weight_dot_grad", "weight_grad_cosine", "angular_update"):
        value, error = frame.loc[name, ["value", "error"]]
        assert error > 0
        assert abs(value - right[name]) <= error
    assert right["angular_update"] < 1e-4
    assert frame.loc["angular_update", "error"] < 1e-3 * right["angular_update"]


# Scalers, closures, loops of one's own.


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_a_gradient_scalers_scale_is_undone(fused, told):
    def run(scaled):
        torch.manual_seed(1)
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
        more = {"scaler": scaler} if scaled and told else {}
        with bnprobe.attach(model, s.WeightScale(WEIGHTS), optimizer=optimizer, **more) as probe:
            for x, y in batches((16, 6), 3):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                if scaler is None:
                    loss.backward()
                    optimizer.step()
                else:
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
        return values(probe.run)

    plain, scaled = run(False), run(True)
    for name in ("weight_grad_norm", "weight_norm", "angular_update"):
        assert scaled[name] == pytest.approx(plain[name], rel=1e-4)


def test_a_skipped_step_is_not_recorded():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with bnprobe.attach(model, s.WeightScale(WEIGHTS), optimizer=optimizer, scaler=scaler) as probe:
        for step, (x, y) in enumerate(batches((16, 6), 4)):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) * (math.inf if step == 1 else 1)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert set(values(probe.run)["weight_norm"]) == {0, 2, 3}


CLOSURES = {
    "sgd": (lambda p: torch.optim.SGD(p, 0.1, 0.9), True),
    "adamw": (lambda p: torch.optim.AdamW(p, 0.01), True),
    "nesterov": (lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True), False),
    "lbfgs": (lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3), False),
    "own": (lambda p: Own(p, 0.1), False),
}


@pytest.mark.parametrize(("make", "known"), CLOSURES.values(), ids=CLOSURES)
def test_gradients_of_a_closure_are_read_where_they_are_those_of_the_old_weights(make, known):
    model = mlp().double()
    optimizer = make(list(model.parameters()))
    before, seen = model[0].weight.detach().clone(), []
    with bnprobe.attach(model, s.WeightScale(WEIGHTS), optimizer=optimizer) as probe:
        x, y = batches((16, 6), 1)[0]

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x.double()), y)
            loss.backward()
            seen.append(model[0].weight.grad.clone())
            return loss

        optimizer.step(closure)
    group = optimizer.param_groups[0]
    right = by_hand(before, seen[0], model[0].weight, SimpleNamespace(), {"weight_decay": 0, **group})
    if not known:
        right = {name: value for name, value in right.items() if "grad" not in name}
    assert {name: column[0] for name, column in values(probe.run).items()} == pytest.approx(right, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("by_hand_", [True, False])
def test_without_an_optimizer_there_are_norms_and_angles(by_hand_):
    model = mlp().double()
    weights = [model[0].weight.detach().clone()]
    with bnprobe.attach(model, s.WeightScale(WEIGHTS, every=2)) as probe:
        for x, y in batches((16, 6), 6):
            model.zero_grad()
            F.cross_entropy(model(x.double()), y).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            weights.append(model[0].weight.detach().clone())
            if by_hand_:
                probe.step()
    found = values(probe.run)
    assert set(found) == {"weight_norm", "angular_update", "relative_update"}
    assert list(found["weight_norm"]) == [2, 4]  # the first was not seen to begin
    for step, column in found["weight_norm"].items():
        right = by_hand(weights[step], None, weights[step + 1], SimpleNamespace(), {"lr": 0, "weight_decay": 0})
        assert column == pytest.approx(right["weight_norm"], rel=1e-12)
        assert found["angular_update"][step] == pytest.approx(right["angular_update"], rel=1e-9)


def test_a_schedule_of_its_own():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run, _ = trained(model, optimizer, s.WeightScale(WEIGHTS, every=first(2)), batches((16, 6), 4), every=100)
    assert list(values(run)["angular_update"]) == [0, 1]


def test_weights_may_be_exchanged_and_moved_while_training_goes_on():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bnprobe.attach(model, s.WeightScale(WEIGHTS), optimizer=optimizer) as probe:
        for step, (x, y) in enumerate(batches((16, 6), 4)):
            if step == 2:
                model.double()
                model[3].weight = nn.Parameter(model[3].weight.detach().clone())  # of no optimizer's any more
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(model[0].weight.dtype)), y).backward()
            optimizer.step()
    assert len(values(probe.run)["angular_update"]) == 4
    assert values(probe.run, "3")["angular_update"][3] == 0
    assert 3 not in values(probe.run, "3")["effective_learning_rate"]


# Which parameters.


class Mixed(nn.Module):
    """Weights of which some are scale-invariant: behind a norm, on a skip as well, before none."""

    def __init__(self, penalty=0.0):
        super().__init__()
        self.first, self.bn = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.skip, self.norm = nn.Linear(16, 16, bias=False), nn.LayerNorm(16)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        x = self.bn(self.first(x)).relu()
        y = self.skip(x)
        return self.last(self.norm(y) + 0.1 * y)


def followed(run):
    return set(run.frame(statistic="weight_norm")["layer"]) if "weight_norm" in run.statistics else set()


def screened(statistic, loss=F.cross_entropy, steps=15, **more):
    torch.manual_seed(3)
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bnprobe.attach(model, statistic, optimizer=optimizer, **more) as probe:
        for x, y in batches((16, 6), steps):
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + loss(model)).backward()
            optimizer.step()
    return probe.run


def test_screening_finds_them_in_the_runs_own_gradients():
    run = screened(s.WeightScale(), lambda model: 0)
    assert followed(run) == {"first"}
    assert list(values(run, "first")["weight_norm"]) == list(range(15))  # from the first update on
    why = run.layers.set_index("name")["why"]
    said = r"WeightScale: weight: taken for scale-invariant by its gradients at the first 10 updates \(cosine at most "
    assert why.str.contains(said)["first"]
    assert "not confirmed by scaling it" in why["first"]
    assert why["skip"] == "WeightScale: weight: no sign of scale invariance at the first 10 updates"
    assert why["bn"] == ""


def test_a_gain_whose_shift_is_still_0_does_not_pass():
    """Behind it come ReLU, which keeps its factor, and a norm, which takes it out; but shifts do not stay 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    with bnprobe.attach(model, s.WeightScale(), optimizer=optimizer) as probe:
        for x, y in batches((64, 6), 10):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            gain = model[1].weight
            assert abs(F.cosine_similarity(gain, gain.grad, 0)) < 1e-3
            optimizer.step()
    assert followed(probe.run) == {"0", "3"}


def test_a_penalty_on_the_weights_is_part_of_the_loss():
    run = screened(s.WeightScale(), lambda model: 0.01 * model.first.weight.square().sum())
    assert followed(run) == set()


def test_screening_looks_at_the_probes_layers_alone():
    run = screened(s.WeightScale(), lambda model: 0, layers="last")
    assert followed(run) == set()
    assert set(run.layers["name"]) == {"last"}


def test_too_few_updates_for_the_screening_are_said():
    run = screened(s.WeightScale(), lambda model: 0, steps=4)
    assert followed(run) == set()
    assert run.layers.set_index("name")["why"]["first"] == (
        "WeightScale: which parameters are scale-invariant shows after 10 updates; so far 4"
    )


def test_a_flush_in_the_middle_of_the_screening_loses_nothing(monkeypatch):
    def run(every):
        monkeypatch.setattr(sys.modules["bnprobe.attach"], "_FLUSH_STEPS", every)
        frame = screened(s.WeightScale(), lambda model: 0).frame(place="weight")
        return frame.sort_values(["step", "layer", "statistic"], ignore_index=True).astype(str)

    assert run(3).equals(run(64))


@pytest.fixture
def search(monkeypatch):
    """A stand-in for the measurement that finds the parameters; ``answers`` are given one after the other."""
    stand_in = SimpleNamespace(calls=[], answers=[{"first.weight"}])

    def scale_invariance(model, loss, batch):
        stand_in.calls.append((model, loss, batch))
        answer = stand_in.answers[min(len(stand_in.calls), len(stand_in.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(parameters=answer)

    monkeypatch.setattr(sys.modules["bnprobe.statistics.weight_scale"], "scale_invariance", scale_invariance)
    return stand_in


def test_the_search_finds_what_the_measurement_finds():
    run = screened(s.WeightScale(batch=batches((16, 6), 1)[0]), lambda model: 0, steps=3)
    torch.manual_seed(0)
    found = bnprobe.scale_invariance(Mixed(), None, batches((16, 6), 1)[0]).parameters
    assert "first.weight" in found
    assert {f"{name}.weight" for name in followed(run)} == found


def test_given_a_batch_they_are_searched_for_once(search):
    x, y = batches((16, 6), 1)[0]

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    run = screened(s.WeightScale(loss=loss, batch=(x, y)), lambda model: 0)
    assert followed(run) == {"first"}
    assert len(values(run, "first")["weight_norm"]) == 15
    ((model, asked, batch),) = search.calls
    assert isinstance(model, Mixed)
    assert asked is loss
    torch.testing.assert_close(batch[0], x)
    why = run.layers.set_index("name")["why"]
    assert why["first"] == ""
    assert why["last"] == "WeightScale: weight: it is not scale-invariant"


def test_a_failed_search_is_told_once_and_tried_again_ever_more_rarely(search):
    search.answers = [ValueError("no such loss")]
    with pytest.warns(
        RuntimeWarning, match="could not measure WeightScale: not measured at step 0: ValueError"
    ) as told:
        run = screened(s.WeightScale(batch=batches((16, 6), 1)[0]), lambda model: 0, steps=25)
    assert len(told) == 1
    assert len(search.calls) == 4  # at steps 0, 2, 6 and 14
    assert followed(run) == set()
    assert "not measured at step 14: ValueError: no such loss" in run.layers.set_index("name")["why"]["first"]
    search.answers = [*[ValueError("no such loss")] * 5, {"first.weight"}]
    with pytest.warns(RuntimeWarning, match="could not measure"):
        run = screened(s.WeightScale(batch=batches((16, 6), 1)[0]), lambda model: 0, steps=4)
    assert list(values(run, "first")["weight_norm"]) == [2, 3]
    assert run.layers.set_index("name")["why"]["first"] == ""


def test_no_search_where_its_passes_would_wait_for_other_ranks(search, monkeypatch):
    monkeypatch.setattr(sys.modules["bnprobe.measuring"], "world", lambda: (0, 2))
    model = nn.Sequential(nn.Linear(6, 4), nn.SyncBatchNorm(4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model[0](torch.randn(3, 6)).sum().backward()
    probe = bnprobe.attach(model, s.WeightScale(batch=batches((16, 6), 1)[0]), optimizer=optimizer)
    with pytest.warns(RuntimeWarning, match="SyncBatchNorm would wait for the other ranks"):
        optimizer.step()
    probe.detach()
    assert not search.calls
    assert "SyncBatchNorm would wait" in probe.run.layers.set_index("name")["why"]["0"]


def test_what_cannot_be_read_is_said():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.wave = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))

        def forward(self, x):
            return self.linear(x) + (x.to(self.wave.dtype) @ self.wave).abs()

    model = Strange()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bnprobe.attach(model, s.WeightScale(["wave", "linear.weight"]), optimizer=optimizer) as probe:
        model(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()
    assert followed(probe.run) == {"linear"}
    assert probe.run.layers.set_index("name")["why"][""] == "WeightScale: wave: not read: its dtype is torch.complex64"


def test_a_sparse_gradient_has_no_numbers():
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.LayerNorm(4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bnprobe.attach(model, s.WeightScale(["0.weight"]), optimizer=optimizer) as probe:
        model(torch.tensor([0, 1, 1])).square().sum().backward()
        optimizer.step()
    assert set(values(probe.run)) == {"weight_norm", "effective_learning_rate", *UPDATE}


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"parameters": "0.weight"}, "parameters must be names of parameters, or None; got '0.weight'"),
        ({"parameters": []}, r"parameters must be names of parameters, or None; got \[\]"),
        ({"loss": F.cross_entropy}, "loss needs batch: on which to find scale-invariant parameters"),
        ({"parameters": ["a"], "batch": torch.ones(1)}, "parameters and batch: .* give one of them"),
        ({"batch": "images"}, "batch must hold tensors; got str"),
        ({"screen": 0}, "screen must be an int of at least 1; got 0"),
        ({"tolerance": float("nan")}, "tolerance must be positive; got nan"),
        ({"every": 0}, "interval must be an int of at least 1; got 0"),
    ],
)
def test_arguments_are_checked_at_the_door(arguments, says):
    with pytest.raises(ArgumentError, match=says):
        s.WeightScale(**arguments)


def test_a_name_that_the_model_does_not_have():
    with pytest.raises(SelectionError, match=r"'3.weights' is no parameter of Sequential; near names: 3.weight"):
        bnprobe.attach(mlp(), s.WeightScale(["3.weights"]))
    with pytest.raises(SelectionError, match=r"'x' is no parameter of Sequential; the model has 10 parameters"):
        bnprobe.attach(mlp(), s.WeightScale(["x"]))


def test_screening_needs_an_optimizer():
    with pytest.raises(ArgumentError, match=r"so needs attach\(optimizer=...\); or give it parameters="):
        bnprobe.attach(mlp(), s.WeightScale())


def test_the_batch_is_the_settings_own_and_not_in_the_run():
    x = torch.ones(3)
    chosen = s.WeightScale(batch=x)
    x.zero_()
    assert chosen.batch.sum() == 3
    assert repr(chosen) == "WeightScale(batch, every=1)"
    assert repr(s.WeightScale(["a"])) == "WeightScale(parameters=['a'], every=1)"
    assert repr(s.WeightScale(every=7)) == "WeightScale(screen=10, tolerance=0.001, every=7)"


def test_nothing_is_kept_after_the_end():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = bnprobe.attach(model, s.WeightScale(WEIGHTS), optimizer=optimizer)
    (tracker,) = probe._trackers._trackers.values()
    for x, y in batches((16, 6), 2):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert len(tracker._reader._copies) == 2
    assert copy.deepcopy(model) is not None
    probe.detach()
    assert not tracker._reader._copies
