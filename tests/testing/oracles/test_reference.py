"""The oracles against autograd through a formula written out once more, and against published closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnprobe.testing.likes import Settings
from bnprobe.testing.oracles import after_batches, batch_moments, reference, singular_values
from bnprobe.testing.parts import State

SETTINGS = {
    "batch": (Settings("batch_norm", eps=0.05), (5, 4, 3)),
    "ghost": (Settings("ghost_batch_norm", eps=0.05, ghost=2), (6, 4, 3)),
    "instance": (Settings("instance_norm", eps=0.05), (5, 4, 3)),
    "group": (Settings("group_norm", eps=0.05, groups=2), (5, 4, 3)),
    "layer": (Settings("layer_norm", eps=0.05), (5, 3, 4)),
    "layer, two axes": (Settings("layer_norm", eps=0.05, axes=(-2, -1)), (5, 2, 2)),
    "RMS": (Settings("rms_norm", eps=0.05), (5, 3, 4)),
}
every_kind = pytest.mark.parametrize("name", SETTINGS)


def groups(x, settings):
    """Naive twin: lists of index tuples of what is normalized together."""
    result = {}
    for index in torch.cartesian_prod(*(torch.arange(size) for size in x.shape)).tolist():
        n, c = index[0], index[1]
        key = {
            "batch_norm": (c,),
            "ghost_batch_norm": (c, n // (settings.ghost or 1)),
            "instance_norm": (n, c),
            "group_norm": (n, c // (x.shape[1] // settings.groups)),
        }.get(settings.like, tuple(index[: x.ndim - len(settings.axes)]))
        result.setdefault(key, []).append(tuple(index))
    return result.values()


def naive(x, gamma, beta, settings):
    """By loops over groups; differentiable."""
    y = torch.zeros_like(x)
    for members in groups(x, settings):
        values = torch.stack([x[index] for index in members])
        mean = values.mean() if settings.like != "rms_norm" else 0.0
        sigma = (((values - mean) ** 2).mean() + settings.eps).sqrt()
        for index, value in zip(members, (values - mean) / sigma, strict=True):
            place = index[1] if settings.like not in ("layer_norm", "rms_norm") else index[-len(settings.axes) :]
            y = y.index_put(tuple(torch.tensor(i) for i in index), gamma[place] * value + beta[place])
    return y


def drawn(name, seed=0):
    settings, shape = SETTINGS[name]
    generator = torch.Generator().manual_seed(seed)
    sizes = shape[-len(settings.axes) :] if settings.like in ("layer_norm", "rms_norm") else (shape[1],)
    x, g, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    gamma, beta = (torch.randn(sizes, generator=generator, dtype=torch.float64) for _ in range(2))
    return settings, 2 * x + 1, g, v, gamma, beta


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@every_kind
def test_forward_backward_and_double_backward(name):
    settings, x, g, v, gamma, beta = drawn(name)
    oracle = reference(x, settings, State(gamma.reshape(-1), beta.reshape(-1), None, None, None), True)
    leaves = [one.clone().requires_grad_() for one in (x, gamma, beta, g)]
    y = naive(*leaves[:3], settings)
    close(oracle.y, y.detach())
    first = torch.autograd.grad(y, leaves[:3], leaves[3], create_graph=True)
    want = oracle.gradients(g)
    for got, expected in zip((want.x, want.gamma, want.beta), first, strict=True):
        close(got, expected.detach().reshape(got.shape))
    second = torch.autograd.grad(first[0], [leaves[0], leaves[3], leaves[1]], v)
    for got, expected in zip(oracle.second(g, v), second, strict=True):
        close(got, expected.reshape(got.shape))


@every_kind
def test_spectrum_is_that_of_the_jacobian(name):
    settings, x, _, _, gamma, beta = drawn(name)
    oracle = reference(x, settings, State(gamma.reshape(-1), beta.reshape(-1), None, None, None), True)
    columns = [oracle.gradients(one.reshape(x.shape)).x.reshape(-1) for one in torch.eye(x.numel(), dtype=x.dtype)]
    close(singular_values(oracle), torch.linalg.svdvals(torch.stack(columns)))


def test_spectrum_of_one_channel_has_its_known_values():
    """0 once, |gamma| eps / sigma^3 once, |gamma| / sigma m - 2 times; of a constant channel m - 1 times."""
    settings = Settings("batch_norm", eps=0.05)
    state = State(torch.tensor([-1.7], dtype=torch.float64), None, None, None, None)
    x = torch.tensor([[1.0], [2.0], [4.0], [5.0]])
    sigma = math.sqrt(2.5 + 0.05)
    want = torch.tensor([1.7 / sigma, 1.7 / sigma, 1.7 * 0.05 / sigma**3, 0], dtype=torch.float64)
    close(singular_values(reference(x, settings, state, True)), want)
    constant = singular_values(reference(torch.ones(4, 1), Settings("batch_norm"), state, True))
    close(constant, torch.tensor([1.7 / math.sqrt(1e-5)] * 3 + [0], dtype=torch.float64))


def test_evaluation_is_a_line():
    state = State(*(torch.tensor([value], dtype=torch.float64) for value in (2.0, 1.0, 3.0, 4.0)), 7)
    x = torch.tensor([[3.0], [7.0]])
    oracle = reference(x, Settings("batch_norm", eps=0.0), state, False)
    close(oracle.y, torch.tensor([[1.0], [5.0]], dtype=torch.float64))
    close(oracle.gradients(torch.ones(2, 1)).x, torch.ones(2, 1, dtype=torch.float64))
    close(singular_values(oracle), torch.ones(2, dtype=torch.float64))
    of_x, of_g, of_gamma = oracle.second(torch.ones(2, 1), torch.ones(2, 1))
    close(of_x, torch.zeros(2, 1, dtype=torch.float64))
    close(of_g, torch.ones(2, 1, dtype=torch.float64))
    close(of_gamma, torch.ones(1, dtype=torch.float64))


def test_renormalization():
    """Not clipped, the training forward is that of evaluation; with r = 1 and d = 0 it is batch norm."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    state = State(
        *(torch.tensor(value, dtype=torch.float64) for value in ([2.0, 1.0], [0.0, 1.0], [0.3, 1], [4, 0.5])), 1
    )
    free = Settings("batch_renorm", r_max=1e6, d_max=1e6)
    close(reference(x, free, state, True).y, reference(x, free, state, False).y)
    plain = reference(x, Settings("batch_norm"), state, True)
    close(reference(x, Settings("batch_renorm", r_max=1.0, d_max=0.0), state, True).y, plain.y)
    g = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    r = (plain.values.sigma[:, 0] / (state.variance + 1e-5).sqrt())[None]
    close(reference(x, free, state, True).gradients(g).x, r * plain.gradients(g).x)


def start(**kwargs):
    zeros, ones = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    return State(None, None, zeros, ones, 0, **kwargs)


@settings(max_examples=25)
@given(st.sampled_from((0.1, 0.5, 1.0)), st.integers(1, 6), st.integers(0, 9))
def test_moving_average_has_its_closed_form(momentum, steps, seed):
    """r_t = (1 - a)^t r_0 + sum of a (1 - a)^(t - k) v_k."""
    data = [torch.randn(4, 1, generator=torch.Generator().manual_seed(seed + k)) for k in range(steps)]
    after = after_batches(start(), data, Settings("batch_norm", momentum=momentum))
    weights = [momentum * (1 - momentum) ** (steps - 1 - k) for k in range(steps)]
    kept = (1 - momentum) ** steps
    close(after.mean, sum(w * x.double().mean(0) for w, x in zip(weights, data, strict=True)))
    close(after.variance, kept + sum(w * x.double().var(0) for w, x in zip(weights, data, strict=True)))
    assert after.batches == steps


def test_average_of_batches_parts_and_deviations():
    data = [torch.randn(4, 1, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    after = after_batches(start(), data, Settings("batch_norm", momentum=None))
    close(after.mean, torch.stack([x.double().mean(0) for x in data]).mean(0))
    ghosts = after_batches(start(), [torch.cat(data[:2])], Settings("ghost_batch_norm", ghost=4))
    close(ghosts.mean, after_batches(start(), data[:2], Settings("batch_norm")).mean)
    assert ghosts.batches == 2
    at_once = after_batches(start(), [torch.cat(data[:2])], Settings("ghost_batch_norm", ghost=4, ghost_updates="mean"))
    close(at_once.mean, 0.1 * torch.cat(data[:2]).double().mean(0))
    deviations = after_batches(start(), data[:1], Settings("batch_renorm", running="deviation"))
    close(deviations.variance, 0.9 + 0.1 * (data[0].double().var(0, correction=0) + 1e-5).sqrt())


def test_moments_by_part():
    x = torch.arange(12.0).reshape(4, 1, 3)
    means, biased, unbiased = batch_moments(x, Settings("batch_norm"))
    assert means.tolist() == [[5.5]]
    close(biased * 12 / 11, unbiased)
    means, _, _ = batch_moments(x, Settings("instance_norm"))
    assert means.tolist() == [[1], [4], [7], [10]]
    means, _, _ = batch_moments(x, Settings("ghost_batch_norm", ghost=2))
    assert means.tolist() == [[2.5], [8.5]]
