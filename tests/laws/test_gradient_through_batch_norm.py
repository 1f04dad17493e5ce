"""The gradient's norm through batch norm: the bound of Santurkar et al. 2018, theorem 4.1, is an equality with eps."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

# With rho = s^2 / (s^2 + eps), x^ the normalized values of a channel with m of them and g the gradient at its output:
# |dL/dx|^2 = gamma^2 / (s^2 + eps) (|g|^2 - <1, g>^2 / m - (2 - rho) <x^, g>^2 / m).


def law(x, gradient, gamma, eps):
    """Of ``[C, m]``: squared norms ``[C]``, the paper's bound, and the size of the terms whose difference they are."""
    m = x.shape[1]
    variance = x.var(1, correction=0)
    rho = variance / (variance + eps)
    normal = (x - x.mean(1, keepdim=True)) / (variance + eps).sqrt()[:, None]
    factor = gamma**2 / (variance + eps)
    whole = gradient.square().sum(1)
    less, along = gradient.sum(1) ** 2 / m, (normal * gradient).sum(1) ** 2 / m
    return factor * (whole - less - (2 - rho) * along), factor * (whole - less - along), factor * whole


def by_channel(tensor):
    return tensor.transpose(0, 1).flatten(1)


@given(
    rows=st.integers(1, 6),
    spatial=st.integers(1, 4),
    channels=st.integers(1, 4),
    log_eps=st.floats(-12, -1),
    log_scale=st.floats(-3, 3),
    constant=st.booleans(),
    seed=st.integers(0, 9999),
)
def test_it_is_an_equality(rows, spatial, channels, log_eps, log_scale, constant, seed):
    if rows * spatial < 2:
        rows = 2
    torch.manual_seed(seed)
    eps, scale = 10**log_eps, 10**log_scale
    norm = nn.BatchNorm2d(channels, eps=eps).double()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(rows, channels, 1, spatial, dtype=torch.float64) * scale
    if constant:
        x[:, 0] = 0.5  # exactly representable, so that its variance is 0
    x.requires_grad_()
    y = norm(x)
    loss = (torch.tanh(y) * torch.randn_like(y)).sum() + y.square().mean()  # whatever comes after
    at_input, at_output = torch.autograd.grad(loss, [x, y])
    found = by_channel(at_input).square().sum(1)
    expected, bound, terms = law(by_channel(x.detach()), by_channel(at_output), norm.weight.detach(), eps)
    # With m = 2, or a gradient along 1 and x^, they cancel: then rounding is relative to what cancels.
    assert ((found - expected).abs() <= 1e-10 * terms).all()
    assert (found <= bound + 1e-10 * terms).all()  # which has 1 in place of 2 - rho


def test_the_numbers_are_those_of_the_paper_where_eps_vanishes():
    """Without eps the bound of theorem 4.1 holds with equality for the same upstream gradient."""
    torch.manual_seed(0)
    x, g = torch.randn(2, 1, 50, dtype=torch.float64)
    x.requires_grad_()
    norm = nn.BatchNorm1d(1, eps=1e-300).double()
    (at_input,) = torch.autograd.grad(norm(x.T), x, g.T)
    sigma, normal = x.detach().std(correction=0), (x - x.mean()).detach() / x.detach().std(correction=0)
    bound = (g.square().sum() - g.sum() ** 2 / 50 - (g * normal).sum() ** 2 / 50) / sigma**2
    torch.testing.assert_close(at_input.square().sum(), bound, rtol=1e-12, atol=0)
