"""The laws of scale-invariant weights hold for networks in training, as WeightScale records them."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bnprobe
from bnprobe import statistics as s
from bnprobe.measures import norm_dynamics as laws

STEPS = 6


class Watched(nn.Module):
    """Weight layers each before a batch norm with random gain and shift; ``variances`` are those of the last batch."""

    def __init__(self, widths, conv, activation, eps, last):
        super().__init__()
        make = (lambda i, o: nn.Conv2d(i, o, 2, bias=False)) if conv else (lambda i, o: nn.Linear(i, o, bias=False))
        norm = nn.BatchNorm2d if conv else nn.BatchNorm1d
        self.weights = nn.ModuleList(make(i, o) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(norm(width, eps=eps) for width in widths[1:])
        self.activation, self.last = activation, nn.Linear(widths[-1], 3) if last else nn.Identity()
        for one in self.norms:
            nn.init.normal_(one.weight)
            nn.init.normal_(one.bias)
        self.variances = []

    def forward(self, x):
        self.variances, self.seen = [], []
        for weight, norm in zip(self.weights, self.norms, strict=True):
            inner, x = x.detach(), weight(x)
            self.variances.append(x.detach().transpose(0, 1).flatten(1).var(1, unbiased=False))
            out = norm(x)
            out.retain_grad()
            self.seen.append((inner, out))
            x = self.activation(out)
        return self.last(x.flatten(2).mean(2) if x.dim() > 2 else x)

    def eps_terms(self):
        """Inner products of weights and gradients by law: what eps leaves of them, summed over channels."""
        found = []
        for norm, variance in zip(self.norms, self.variances, strict=True):
            left = norm.eps / (variance + norm.eps)
            found.append(float((left * norm.weight.detach() * norm.weight.grad).sum()))
        return found

    def rounding(self):
        """What float64 may leave of these inner products: of terms before they cancel, which for two samples all do."""
        found = []
        for weight, norm, variance, (inner, out) in zip(
            self.weights, self.norms, self.variances, self.seen, strict=True
        ):
            slope = (norm.weight.detach().abs() / (variance + norm.eps).sqrt()).view(-1, *[1] * (out.dim() - 2))
            found.append(1e-13 * float(weight.weight.detach().norm() * inner.norm() * (slope * out.grad).norm()))
        return found


@st.composite
def networks(draw):
    widths = [draw(st.integers(1, 3)), *draw(st.lists(st.integers(2, 5), min_size=1, max_size=3))]
    activation = draw(st.sampled_from([torch.tanh, torch.sigmoid, F.gelu, F.relu]))
    eps, conv = draw(st.sampled_from([1e-12, 1e-5, 1e-3, 0.1])), draw(st.booleans())
    model = Watched(widths, conv, activation, eps, draw(st.booleans())).double()
    batch = draw(st.integers(2, 6))
    return model, ((batch, widths[0], 5, 5) if conv else (batch, widths[0]))


@settings(max_examples=40)
@given(network=networks(), rate=st.floats(1e-3, 1.0), decay=st.just(0.0) | st.floats(1e-3, 0.3))
def test_the_norm_moves_by_the_law_at_every_step(network, rate, decay):
    """The next recorded norm from this one, the gradient's norm, and what eps leaves of their inner product."""
    model, shape = network
    optimizer = torch.optim.SGD(model.weights.parameters(), rate, weight_decay=decay)
    names = [f"weights.{i}.weight" for i in range(len(model.weights))]
    terms, bounds = [], []
    with bnprobe.attach(model, s.WeightScale(names), optimizer=optimizer) as probe:
        for _ in range(STEPS):
            model.zero_grad()
            model(torch.randn(shape, dtype=torch.float64)).sin().square().sum().backward()
            terms.append(model.eps_terms())
            bounds.append(model.rounding())
            optimizer.step()
    frame = probe.run.frame(place="weight")
    for i, name in enumerate(names):
        table = frame[frame["layer"] == name.removesuffix(".weight")].pivot_table(
            index="step", columns="statistic", values="value"
        )
        norm, grad_norm = table["weight_norm"].to_numpy(), table["weight_grad_norm"].to_numpy()
        term, bound = np.array(terms)[:, i], np.array(bounds)[:, i]
        off = np.abs(table["weight_dot_grad"].to_numpy() - term)
        assert (off <= 1e-10 * norm * grad_norm + bound).all()
        foretold = laws.norm_square_after(norm**2, grad_norm**2, rate, decay, term)
        assert (np.abs(norm[1:] ** 2 - foretold[:-1]) <= 1e-10 * foretold[:-1] + 2 * rate * bound[:-1]).all()


# Weight decay at a constant rate is an exponentially growing rate without it (Li & Arora 2020).


def mlp(seed=0):
    torch.manual_seed(seed)
    layers = []
    for inner, outer in ((6, 16), (16, 16), (16, 16)):
        layers += [nn.Linear(inner, outer, bias=False), nn.BatchNorm1d(outer, eps=1e-12, affine=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 3)).double()


def data(steps, seed=5):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(32, 6, dtype=torch.float64, generator=generator)
        yield x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def descend(rates, decay, momentum, *, buffer=0.0, last=False, steps=200):
    """Weights after so many steps, and WeightScale's records; ``last`` trains the classifier too, which has a scale."""
    model = mlp()
    model[-1].requires_grad_(last)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, rates[0], momentum, weight_decay=decay)
    for p in trained if buffer else ():
        optimizer.state[p]["momentum_buffer"] = buffer * p.detach()
    names = ["0.weight", "3.weight", "6.weight"]
    with bnprobe.attach(model, s.WeightScale(names), optimizer=optimizer) as probe:
        for rate, (x, y) in zip(rates, data(steps), strict=True):
            optimizer.param_groups[0]["lr"] = float(rate)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    frame = probe.run.frame(statistic=["weight_norm", "angular_update", "effective_learning_rate"])
    return [p.detach() for p in trained], frame.pivot_table(
        index=["layer", "step"], columns="statistic", values="value"
    )


def mismatch(ours, theirs):
    """Largest distance of directions."""
    pairs = zip(ours[:3], theirs[:3], strict=True)
    return max(float((a / a.norm() - b / b.norm()).norm()) for a, b in pairs)


RATE, DECAY, STEPS_EXP = 0.05, 0.02, 200


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weight_decay_is_an_exponential_rate(momentum):
    decayed, one = descend([RATE] * STEPS_EXP, DECAY, momentum)
    rates = laws.exponential_learning_rates(STEPS_EXP, RATE, DECAY, momentum)
    buffer = laws.initial_momentum(RATE, DECAY, momentum) if momentum else 0.0
    grown, other = descend(rates, 0.0, momentum, buffer=buffer)
    assert mismatch(decayed, grown) < 1e-9
    assert mismatch(decayed, [p.detach() for p in mlp().parameters()][:3]) > 0.1  # they have moved
    root = laws.decay_root(RATE, DECAY, momentum)
    steps = one.index.get_level_values("step").to_numpy()
    np.testing.assert_allclose(other["weight_norm"] / one["weight_norm"], root ** -steps.astype(float), rtol=1e-9)
    np.testing.assert_allclose(other["angular_update"], one["angular_update"], rtol=1e-7)
    np.testing.assert_allclose(other["effective_learning_rate"], one["effective_learning_rate"] / root, rtol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_is_not_where_the_classifier_is_trained_too(momentum):
    """The control: the loss sees the classifier's length, so that weight decay does more than set a rate."""
    rates = laws.exponential_learning_rates(STEPS_EXP, RATE, DECAY, momentum)
    buffer = laws.initial_momentum(RATE, DECAY, momentum) if momentum else 0.0
    decayed, _ = descend([RATE] * STEPS_EXP, DECAY, momentum, last=True)
    grown, _ = descend(rates, 0.0, momentum, buffer=buffer, last=True)
    assert mismatch(decayed, grown) > 1e-2


def test_with_momentum_it_is_not_without_the_right_buffer():
    decayed, _ = descend([RATE] * STEPS_EXP, DECAY, 0.9)
    grown, _ = descend(laws.exponential_learning_rates(STEPS_EXP, RATE, DECAY, 0.9), 0.0, 0.9)
    assert mismatch(decayed, grown) > 1e-4


def test_rate_and_initial_length_are_one_setting():
    """At the same product of rate and decay, a rate four times as large is an initial weight half as long."""

    def run(rate, decay, shrink):
        model = mlp()
        model[-1].requires_grad_(False)
        with torch.no_grad():
            for p in model[:-1].parameters():
                p *= shrink
        optimizer = torch.optim.SGD(model[:-1].parameters(), rate, weight_decay=decay)
        for x, y in data(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    assert mismatch(run(0.2, 0.01, 1.0), run(0.05, 0.04, 0.5)) < 1e-9
    assert mismatch(run(0.2, 0.01, 1.0), run(0.05, 0.04, 1.0)) > 1e-3


# Equilibrium, on a loss whose gradients are nothing but noise.


class Noise(nn.Module):
    """Weights of which only the directions matter; the loss is their inner product with fresh noise."""

    def __init__(self, weights, entries, size, start):
        super().__init__()
        draws = [torch.randn(entries, dtype=torch.float64) for _ in range(weights)]
        self.w = nn.ParameterList(start * one / one.norm() for one in draws)
        self.size = size

    def forward(self):
        return sum(self.size * (torch.randn_like(w) @ w) / w.norm() for w in self.w)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_weights_under_noise_turn_and_stay_as_the_law_says(momentum, nesterov):
    rate, decay, entries, size = 0.1, 0.005 if momentum else 0.05, 40, 0.5
    gradient = size * math.sqrt(entries - 1)  # at norm 1, root mean square
    model = Noise(8, entries, size, float(laws.equilibrium_norm(gradient, rate, decay, momentum)))
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum, nesterov=nesterov, weight_decay=decay)
    names = [name for name, _ in model.named_parameters()]
    with bnprobe.attach(model, s.WeightScale(names), layers=lambda name, _: name == "w", optimizer=optimizer) as probe:
        for _ in range(900):
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
    frame = probe.run.frame(statistic=["angular_update", "weight_norm", "equilibrium_norm", "equilibrium_angle"])
    frame = frame[frame["step"] >= 300]
    table = frame.pivot_table(index=["place", "step"], columns="statistic", values="value")

    def mean_and_error(values):
        each = values.groupby("place").mean()
        return each.mean(), each.std(ddof=1) / math.sqrt(len(each))

    leading = rate * decay / (1 - momentum)
    square, error = mean_and_error(table["angular_update"] ** 2)
    law = table["equilibrium_angle"].iloc[0] ** 2
    assert square == pytest.approx(law, abs=4 * error + 2 * leading * law)
    assert error < 0.04 * law
    fourth, error = mean_and_error(table["weight_norm"] ** 4)
    balance, other = mean_and_error(table["equilibrium_norm"] ** 4)
    assert fourth == pytest.approx(balance, abs=4 * (error + other) + 2 * leading * balance)


# Statistics outside of the gradient (Ioffe & Szegedy 2015, section 2).


class Centred(nn.Module):
    """A bias and a gain before a normalization whose statistics gradients may or may not go through."""

    def __init__(self, detached):
        super().__init__()
        self.bias, self.gain = nn.Parameter(torch.zeros(4).double()), nn.Parameter(torch.ones(4).double())
        self.detached, self.slope = detached, None

    def forward(self, u):
        x = self.gain * u + self.bias
        mean, deviation = x.mean(0), x.std(0, unbiased=False)
        self.deviation = deviation.detach()
        out = (x - (mean.detach() if self.detached else mean)) / (deviation.detach() if self.detached else deviation)
        if out.requires_grad:
            out.retain_grad()
        self.out = out
        return out


@pytest.mark.parametrize("detached", [True, False])
def test_a_bias_grows_for_ever_where_statistics_are_outside_of_the_gradient(detached):
    model, rate, steps = Centred(detached), 0.05, 300
    u = torch.randn(32, 4).double()
    target = 3 * u + 0.1 * torch.randn(32, 4).double() + 1.5  # wider and higher than anything normalized
    optimizer = torch.optim.SGD(model.parameters(), rate)
    outputs, losses, foretold = [], [], []
    with bnprobe.attach(model, s.WeightScale(["bias", "gain"]), layers=Centred, optimizer=optimizer) as probe:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(u) - target).square().mean()
            loss.backward()
            foretold.append(-rate * model.out.grad.sum(0) / model.deviation)
            before = model.bias.detach().clone()
            optimizer.step()
            foretold[-1] = float((model.bias.detach() - before - foretold[-1]).abs().max())
            outputs.append(model.out.detach())
            losses.append(float(loss.detach()))
    norms = probe.run.frame(statistic="weight_norm")
    bias, gain = (norms[norms["place"] == f"weight.{name}"]["value"].to_numpy() for name in ("bias", "gain"))
    # Whatever the parameters do, neither output nor loss see it.
    assert max(float((one - outputs[0]).abs().max()) for one in outputs) < 1e-6
    assert max(losses) - min(losses) < 1e-9
    products = probe.run.frame(statistic=["weight_dot_grad", "weight_grad_cosine"])
    products = products[products["place"] == "weight.gain"].pivot_table(
        index="step", columns="statistic", values="value"
    )
    if detached:
        assert max(foretold) < 1e-12
        assert (np.diff(bias) > 0).all()
        assert (np.diff(gain) > 0).all()
        half = steps // 2
        assert bias[-1] - bias[half] > 0.25 * bias[half]  # it does not settle
        assert (
            products["weight_grad_cosine"].abs().min() > 0.1
        )  # and one sees it: the loss is scale-invariant, its "gradient" is not
    else:
        assert bias.max() < 1e-12
        assert np.ptp(gain) < 1e-9
        assert products["weight_dot_grad"].abs().max() < 1e-12
