"""The laws of norm dynamics against simulations in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnprobe.errors import ArgumentError
from bnprobe.measures import norm_dynamics as laws

RATES, DECAYS = st.floats(1e-4, 1.0), st.floats(1e-5, 0.5)


def orthogonal_noise(w, random, size):
    """Gradients at the rows of w: uncorrelated noise, orthogonal to w, as large as ``size`` at norm 1."""
    noise = random.normal(size=w.shape)
    square = (w**2).sum(1, keepdims=True)
    noise -= (noise * w).sum(1, keepdims=True) / square * w
    return size * noise / np.linalg.norm(noise, axis=1, keepdims=True) / np.sqrt(square)


def optimizer_of(kind, weight, rate, decay, momentum):
    if kind == "adamw":
        return torch.optim.AdamW([weight], rate, betas=(momentum, 0.999), weight_decay=decay, eps=1e-12)
    return torch.optim.SGD([weight], rate, momentum, weight_decay=decay, nesterov=kind == "nesterov")


def simulate(kind, rate, decay, momentum, start, steps, last, size=3.0, replicas=64, entries=60, seed=0):
    """Norms and angles of the last steps ``[last, replicas]`` of many weights under noise, by torch's own optimizer."""
    random = np.random.default_rng(seed)
    w = random.normal(size=(replicas, entries))
    weight = torch.nn.Parameter(torch.from_numpy(start * w / np.linalg.norm(w, axis=1, keepdims=True)))
    optimizer = optimizer_of(kind, weight, rate, decay, momentum)
    norms, angles = [], []
    for step in range(steps):
        before = weight.detach().numpy().copy()
        weight.grad = torch.from_numpy(orthogonal_noise(before, random, size))
        optimizer.step()
        if step >= steps - last:
            change = weight.detach().numpy() - before
            norms.append(np.linalg.norm(before, axis=1))
            angles.append(laws.angle(norms[-1], np.linalg.norm(change, axis=1), (before * change).sum(1)))
    return np.array(norms), np.array(angles)


def mean_and_error(values):
    """Mean over all steps and replicas, with the standard error over replicas, which are independent."""
    each = values.mean(0)
    return each.mean(), each.std(ddof=1) / math.sqrt(len(each))


@given(rate=RATES, decay=st.just(0.0) | DECAYS, seed=st.integers(0, 999), tilt=st.floats(-1, 1))
def test_the_norm_after_a_step(rate, decay, seed, tilt):
    random = np.random.default_rng(seed)
    w, g = random.normal(size=(2, 9))
    g += tilt * w
    weight = torch.nn.Parameter(torch.tensor(w))
    weight.grad = torch.tensor(g)
    torch.optim.SGD([weight], rate, weight_decay=decay).step()
    law = laws.norm_square_after(w @ w, g @ g, rate, decay, w @ g)
    assert law == pytest.approx(float(weight.detach().square().sum()), rel=1e-12)
    decoupled = (1 - rate * decay) * w - rate * g
    assert law == pytest.approx(decoupled @ decoupled, rel=1e-12)


@given(degrees=st.floats(1e-9, 179.9), longer=st.floats(0.1, 10))
def test_the_angle_of_a_change(degrees, longer):
    theta = math.radians(degrees)
    # Of a vector and its turned self, without ever forming a difference that cancels.
    along, across = longer * math.cos(theta) - 1, longer * math.sin(theta)
    if longer == 1:
        along = -2 * math.sin(theta / 2) ** 2
    assert laws.angle(1.0, math.hypot(along, across), along) == pytest.approx(
        theta, rel=1e-6, abs=4e-8 * abs(along) / longer
    )


def test_plain_descent_settles_at_the_law_exactly():
    """With gradients of one size the norm is not random at all."""
    rate, decay, size = 0.5, 0.02, 3.0
    norms, angles = simulate("sgd", rate, decay, 0.0, 2.0, 3000, 10, replicas=2, entries=7)
    np.testing.assert_allclose(norms, laws.equilibrium_norm(size, rate, decay), rtol=1e-12)
    np.testing.assert_allclose(angles, math.acos(1 - rate * decay), rtol=1e-9)  # norms are equal: cos is the decay
    np.testing.assert_allclose(angles, laws.equilibrium_angle(rate, decay), rtol=rate * decay)


@pytest.mark.parametrize(("kind", "momentum"), [("sgd", 0.5), ("sgd", 0.9), ("nesterov", 0.5), ("nesterov", 0.9)])
def test_momentum_settles_at_the_law(kind, momentum):
    rate, decay, size = 0.1, 0.002 if momentum == 0.9 else 0.02, 3.0
    law = float(laws.equilibrium_norm(size, rate, decay, momentum))
    norms, angles = simulate(kind, rate, decay, momentum, law, 2500, 1500)
    leading = rate * decay / (1 - momentum)  # the order of what the laws leave out
    fourth, error = mean_and_error(norms**4)
    assert fourth == pytest.approx(law**4, abs=4 * error + 2 * leading * law**4)
    turn = float(laws.equilibrium_angle(rate, decay, momentum, nesterov=kind == "nesterov"))
    square, error = mean_and_error(angles**2)
    assert square == pytest.approx(turn**2, abs=4 * error + 2 * leading * turn**2)
    other = float(laws.equilibrium_angle(rate, decay, momentum, nesterov=kind != "nesterov"))
    assert abs(square - other**2) > 10 * error  # the test tells one momentum from the other


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adamw_settles_at_the_law(momentum):
    """Entries of the noise are alike, so that dividing by their size leaves them about orthogonal to the weight."""
    rate, decay, entries = 0.002, 2.0, 60
    law = float(laws.adamw_equilibrium_norm(entries, rate, decay))
    norms, angles = simulate("adamw", rate, decay, momentum, law, 4000, 1000, entries=entries, replicas=32)
    assert (norms**2).mean() == pytest.approx(law**2, rel=0.05)
    turn = float(laws.equilibrium_angle(rate, decay, momentum, decoupled=True))
    assert (angles**2).mean() == pytest.approx(turn**2, rel=0.05)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("above", [0.7, 1.4])
def test_the_way_there_takes_the_relaxation_time(momentum, above):
    rate, decay, size = 0.1, 0.01 if momentum == 0.0 else 0.001, 3.0
    law = float(laws.equilibrium_norm(size, rate, decay, momentum))
    steps = round(laws.relaxation_time(rate, decay, momentum))
    norms, _ = simulate("sgd", rate, decay, momentum, above * law, steps + 1, 1, size=size)
    left = ((norms**4).mean() - law**4) / ((above * law) ** 4 - law**4)
    assert left == pytest.approx(math.exp(-1), abs=0.04)


@given(share=st.floats(1e-6, 0.999), rate=RATES, momentum=st.floats(0, 0.95))
def test_the_root_is_the_one_near_one(share, rate, momentum):
    decay = share * (1 - math.sqrt(momentum)) ** 2 / rate
    root = laws.decay_root(rate, decay, momentum)
    assert root**2 - (1 + momentum - rate * decay) * root + momentum == pytest.approx(0, abs=1e-14)
    assert math.sqrt(momentum) * (1 - 1e-7) <= root < 1  # the product of the two roots is the momentum
    with pytest.raises(ArgumentError, match=r"learning_rate \* weight_decay must be at most"):
        laws.decay_root(rate, decay / share * 1.001, momentum)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_exponential_rates_turn_a_weight_as_decay_does(momentum):
    """On a loss that is scale-invariant by construction: a quadratic form of the direction."""
    random = np.random.default_rng(1)
    form = random.normal(size=(6, 6))
    start, rate, decay, steps = random.normal(size=6), 0.1, 0.01, 200

    def gradient(w):
        unit = w / np.linalg.norm(w)
        g = (form + form.T) @ unit
        return (g - unit * (unit @ g)) / np.linalg.norm(w)

    w, b = start.copy(), np.zeros(6)
    u, c = start.copy(), laws.initial_momentum(rate, decay, momentum) * start
    root = laws.decay_root(rate, decay, momentum)
    for t, faster in enumerate(laws.exponential_learning_rates(steps, rate, decay, momentum)):
        np.testing.assert_allclose(u * root**t, w, rtol=0, atol=1e-9 * np.linalg.norm(w))
        b, c = momentum * b + gradient(w) + decay * w, momentum * c + gradient(u)
        w, u = w - rate * b, u - faster * c
    if momentum:  # the correction of the buffer is not for nothing
        assert abs(laws.initial_momentum(rate, decay, momentum)) > 0.01


def test_there_is_no_equilibrium_without_decay():
    assert np.isnan(laws.equilibrium_norm(1.0, [0.1, 0.0, 0.1], [0.0, 0.1, 0.1], 0.9)).tolist() == [True, True, False]
    assert np.isnan(laws.equilibrium_angle([0.1, 0.0, 0.1], [0.0, 0.1, 0.1])).tolist() == [True, True, False]
    assert np.isnan(laws.adamw_equilibrium_norm(10, 0.1, 0.0))


def test_what_has_no_law_is_refused():
    with pytest.raises(ArgumentError, match="nesterov and decoupled: there is no law for both"):
        laws.equilibrium_angle(0.1, 0.1, 0.9, nesterov=True, decoupled=True)
    with pytest.raises(ArgumentError, match=r"momentum in \[0, 1\); got 0.1, 0.1, 1.0"):
        laws.relaxation_time(0.1, 0.1, 1.0)
    with pytest.raises(ArgumentError, match=r"must be at most 0.00263 at momentum 0.9; got 0.01"):
        laws.exponential_learning_rates(3, 0.1, 0.1, 0.9)
