"""Dense Jacobians in double precision, and what a closed form must satisfy against them."""

import copy

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from bnprobe.measures.jacobian.closed import closed_form

EPS = np.finfo(np.float64).eps


def jacobians(module, x, coupled=False):
    """``[N, outputs, inputs]`` by reverse mode, one output at a time, on a copy in double precision."""
    twin, samples = copy.deepcopy(module).double(), 1 if coupled else len(x)
    whole = torch.autograd.functional.jacobian(lambda z: twin(z.clone()), x.double())
    whole = whole.reshape(samples, -1, samples, x.numel() // samples)
    for i in range(samples):
        for j in range(samples):
            assert i == j or not whole[i, :, j].any(), "samples interact"
    return torch.stack([whole[i, :, i] for i in range(samples)]).numpy()


def check(module, x, coupled=False, oracle_scale=0.0):
    """Every value within its bound of the dense one; the bound of a typical value below 100 times its true error.

    Both sides round: the dense way by a few units in its largest value, or in ``oracle_scale`` where the entries of its
    Jacobian are differences of numbers of that size.
    """
    found = closed_form(module, x)
    assert found is not None
    dense = jacobians(module, x, coupled)
    expected = np.linalg.svd(dense, compute_uv=False)
    assert found.shape == dense.shape[1:]
    assert found.coupled == coupled
    assert found.method == "closed form"
    assert found.which == (min(found.shape), 0)
    values, error = found.values.double().numpy(), found.error.double().numpy()
    assert values.shape == error.shape == expected.shape
    assert found.values.dtype == found.error.dtype
    assert (np.diff(values, axis=1) <= 0).all()
    assert (error >= 0).all()
    own = EPS * max(expected.max(initial=0), oracle_scale)
    rounding = own * (4 + max(found.shape) ** 0.5)
    wrong = np.abs(values - expected)
    assert (wrong <= error + rounding).all(), (wrong - error - rounding).max()
    if own > 0:
        assert np.median(error / (wrong + own)) <= 100
    return found


def oracle_scale(layer, x, groups):
    """What normalization by its own statistics subtracts: |gamma| / sigma, and x^ with the digits an offset costs."""
    values = x.double().reshape(groups, -1)
    variance = values.square().mean(1) if isinstance(layer, nn.RMSNorm) else values.var(1, correction=0)
    sigma = (variance + layer.eps).min().item() ** 0.5
    gamma = 1.0 if layer.weight is None else layer.weight.abs().max().item()
    return 2 * gamma / sigma * (1 + values.abs().max().item() / sigma)


def normal(shape, seed, scale=1.0, offset=0.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + offset).to(dtype)


def filled(module, seed, zero=False):
    """The module with random parameters (gammas of both signs, some of them zero) and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
            if zero:
                parameter *= torch.rand(parameter.shape, generator=generator) < 0.6
        for name, buffer in module.named_buffers():
            if name == "running_var":
                buffer.uniform_(0.01, 4, generator=generator)
            elif name == "running_mean":
                buffer.normal_(generator=generator)
    return module


seeds = st.integers(0, 2**20)
epsilons = st.sampled_from([1e-5, 1e-3, 0.5, 1e-8])
dtypes = st.sampled_from([torch.float32, torch.float64])
