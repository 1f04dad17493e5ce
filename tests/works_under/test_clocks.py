"""What a step is: accumulation, several optimizers, several backward passes, closures, evaluation in between."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnprobe
from bnprobe.errors import ArgumentError
from tests.cases import batches, cnn, mlp
from tests.works_under.naive import DEFAULT, EXACT, LARGE, Naive, agree, assert_same, check, snapshot, trained

pytestmark = pytest.mark.usefixtures("no_hooks_left")


@pytest.mark.works_under("gradient accumulation (micro-batches merge into one step)", group="Training loops")
@pytest.mark.parametrize("every", [1, 2])
def test_accumulation(every):
    """Micro-batches of 8, 8 and 3 samples: moments over all 19, not means of moments."""
    data = batches((19, 3, 6, 6), 4)

    def loop(model, optimizer):
        for x, y in data:
            optimizer.zero_grad()
            for part in (slice(0, 8), slice(8, 16), slice(16, 19)):
                (F.cross_entropy(model(x[part]), y[part]) / 3).backward()
            optimizer.step()

    if every == 1:
        probe = check(cnn, loop)
        assert set(probe.run.frame(layer="0", place="input")["count"]) == {19 * 3 * 36}
    else:
        _, _, probe = trained(cnn, loop, listen=lambda m, o: bnprobe.attach(m, *EXACT, optimizer=o, every=every))
        probe.detach()
        assert probe.run.steps.tolist() == [0, 2]


@pytest.mark.works_under("evaluation in the middle of a step", group="Training loops")
def test_evaluation_between_micro_batches():
    data = batches((8, 6), 4)

    def loop(model, optimizer):
        for x, y in data:
            optimizer.zero_grad()
            F.cross_entropy(model(x[:4]), y[:4]).backward()
            model.eval()
            with torch.no_grad():
                model(x)
            model.train()
            F.cross_entropy(model(x[4:]), y[4:]).backward()
            optimizer.step()

    probe = check(mlp, loop)
    counts = probe.run.frame(layer="0", place="input", statistic="mean").set_index("phase")["count"]
    assert set(counts["train"]) == {48}
    assert set(counts["eval"]) == {48}


# Several optimizers.


class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 6))
        self.critic = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2, inplace=True), nn.Linear(8, 1))

    def forward(self, x):
        return self.critic(x)


def gan_loop(steps=3, critics=1, after=lambda: None, watch=lambda *_: None):
    """A critic's step on real and generated data, then the generator's."""

    def loop(model, optimizers):
        critic, generator = optimizers
        draws = torch.Generator().manual_seed(3)
        for _ in range(steps):
            for _ in range(critics):
                critic.zero_grad()
                fake = model.generator(torch.randn(8, 4, generator=draws))
                real = torch.randn(8, 6, generator=draws)
                (F.softplus(-model(real)).mean() + F.softplus(model(fake.detach())).mean()).backward()
                watch("critic", model.critic[0].weight.grad)
                critic.step()
            generator.zero_grad()
            F.softplus(-model(model.generator(torch.randn(8, 4, generator=draws)))).mean().backward()
            watch("generator", model.generator[0].weight.grad)
            generator.step()
            after()

    return loop


def two_optimizers(model):
    return torch.optim.SGD(model.critic.parameters(), lr=0.1), torch.optim.Adam(model.generator.parameters(), lr=0.02)


def gan(loop, listen=None):
    torch.manual_seed(0)
    model = Gan()
    optimizers = two_optimizers(model)
    listener = listen(model, optimizers) if listen else None
    loop(model, optimizers)
    return model, optimizers, listener


@pytest.mark.works_under("GAN: two optimizers, several backward passes a step", group="Training loops")
@pytest.mark.parametrize("critics", [1, 3])
@pytest.mark.parametrize(("statistics", "rel"), [(EXACT, 1e-9), (DEFAULT, 2e-5)])
def test_gan(critics, statistics, rel):
    norms = {"critic": [], "generator": []}
    loop = gan_loop(critics=critics, watch=lambda who, gradient: norms[who].append(float(gradient.norm())))

    def naively(model, optimizers):
        naive = Naive(model)
        optimizers[1].register_step_post_hook(naive.tick)
        return naive

    naive = gan(gan_loop(critics=critics), naively)[2]
    model, optimizers, probe = gan(loop, lambda m, both: bnprobe.attach(m, *statistics, optimizer=both, sample=LARGE))
    probe.detach()
    plain, plain_optimizers, _ = gan(gan_loop(critics=critics))
    assert_same(snapshot(plain, *plain_optimizers), snapshot(model, *optimizers))
    agree(probe.run, naive.seen, rel)
    assert probe.now == 3
    # A network's own optimizer says when its gradients are done: the critic's, not what the generator's loss adds.
    for who, per_step in (("critic", critics), ("generator", 1)):
        recorded = probe.run.frame(layer=f"{who}.0", statistic="grad_norm").value
        np.testing.assert_allclose(recorded, norms[who][per_step - 1 :: per_step], rtol=1e-6)
    rates = probe.run.frame(statistic="learning_rate").groupby("layer").value.unique()
    assert rates["critic.0"].tolist() == [0.1]
    assert rates["generator.1"].tolist() == [0.02]
    assert probe.run.settings["optimizer"] == "SGD, Adam"


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda both: [both[0], "adam"], r"optimizer must be a torch\.optim\.Optimizer; got str"),
        (lambda both: [both[0], both[0]], "each optimizer may be given once"),
    ],
)
def test_wrong_optimizers_are_named(optimizer, message):
    model = Gan()
    with pytest.raises(ArgumentError, match=message):
        bnprobe.attach(model, optimizer=optimizer(two_optimizers(model)))


def test_parameters_added_later_and_layers_without_an_optimizer():
    model = Gan()
    critic, generator = two_optimizers(model)
    model.extra = nn.Linear(6, 6)
    model.frozen = nn.Linear(6, 6)
    with bnprobe.attach(model, *EXACT, optimizer=(critic, generator)) as probe:
        critic.add_param_group({"params": model.extra.parameters(), "lr": 0.3})
        for _ in range(2):
            model(model.extra(torch.randn(8, 6))).sum().backward()
            critic.step()
            generator.step()
    rates = probe.run.frame(statistic="learning_rate").groupby("layer").value.unique()
    assert rates["extra"].tolist() == [0.3]
    assert "frozen" not in rates.index
    assert set(probe.run.frame(statistic="norm", layer="frozen").step) == {0, 1}


# Sharpness-aware minimisation: two forwards and backwards a step.


def perturbed(model, radius=0.05):
    """Climb to the worst point nearby; what to take away afterwards."""
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    with torch.no_grad():
        moves = [p.grad * (radius / norm) for p in model.parameters()]
        for p, move in zip(model.parameters(), moves, strict=True):
            p.add_(move)
    return moves


@pytest.mark.works_under("SAM: two forwards a step", group="Training loops")
def test_sam():
    """Both forwards are of the step: their records merge."""

    def loop(model, optimizer):
        for x, y in batches((8, 6), 3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            moves = perturbed(model)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for p, move in zip(model.parameters(), moves, strict=True):
                    p.sub_(move)
            optimizer.step()

    probe = check(mlp, loop)
    assert set(probe.run.frame(layer="3", place="grad_output", statistic="mean")["count"]) == {2 * 8 * 12}


# Closures.


@pytest.mark.works_under("LBFGS and other closures", group="Training loops")
def test_lbfgs():
    """All evaluations of a step are that step's."""
    evaluations = []

    def loop(model, optimizer):
        for x, y in batches((8, 6), 3):
            evaluations.append(0)

            def closure(x=x, y=y):
                evaluations[-1] += 1
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)

    make = lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))  # noqa: E731
    lbfgs = lambda parameters: torch.optim.LBFGS(parameters, max_iter=4, line_search_fn="strong_wolfe")  # noqa: E731
    probe = check(make, loop, lbfgs)
    counts = probe.run.frame(layer="0", place="input", statistic="mean")["count"].tolist()
    assert counts == [n * 48 for n in evaluations[-3:]]
    assert max(evaluations) > 1


@pytest.mark.works_under("loops without a torch optimizer: probe.step()", group="Training loops")
def test_a_loop_of_ones_own():
    data = batches((8, 6), 3)
    model = mlp()
    twin = copy.deepcopy(model)

    def train(model, step):
        for x, y in data:
            F.cross_entropy(model(x), y).backward()
            step()
            with torch.no_grad():
                for p in model.parameters():
                    p.sub_(0.1 * p.grad)
                    p.grad = None

    naive = Naive(twin)
    train(twin, naive.tick)
    with bnprobe.attach(model, *EXACT) as probe:
        train(model, probe.step)
    agree(probe.run, naive.seen)
    assert_same(snapshot(twin), snapshot(model))


@pytest.mark.works_under("optimizers inside of backward (a step a parameter)", group="Training loops")
def test_steps_inside_of_the_backward():
    """Each parameter has an optimizer that steps once its gradient is there; the last in the list ends the step."""

    def loop(model, steppers):
        for x, y in batches((8, 6), 3):
            F.cross_entropy(model(x), y).backward()

    def fused(model):
        steppers = {p: torch.optim.SGD([p], lr=0.05) for p in model.parameters()}
        for parameter, stepper in steppers.items():

            def hook(p, stepper=stepper):
                stepper.step()
                stepper.zero_grad()

            parameter.register_post_accumulate_grad_hook(hook)
        return list(steppers.values())

    def run(listen=None):
        torch.manual_seed(0)
        model = mlp()
        steppers = fused(model)
        listener = listen(model, steppers) if listen else None
        loop(model, steppers)
        return model, listener

    plain, _ = run()
    # The first layer's weight gets its gradient last: its optimizer ends the step.
    model, probe = run(lambda m, o: bnprobe.attach(m, *EXACT, optimizer=[*o[1:], o[0]]))
    probe.detach()
    assert_same(snapshot(plain), snapshot(model))
    assert probe.run.steps.tolist() == [0, 1, 2]
    assert probe.run.frame(layer="3", statistic="grad_norm").step.tolist() == [0, 1, 2]
