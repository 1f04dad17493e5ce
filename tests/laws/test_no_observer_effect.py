"""A run with a probe is bitwise the run without it: weights, buffers, gradients, optimizer state, RNG states."""

import functools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import bnprobe
from bnprobe import statistics as s
from tests.cases import CASES, batches


def everything(model, optimizer, losses):
    """All that training leaves behind, as tensors."""
    state = [*model.state_dict().values(), *(p.grad for p in model.parameters() if p.grad is not None), *losses]
    for slot in optimizer.state.values():
        state += [value for value in slot.values() if isinstance(value, torch.Tensor)]
    _, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global stream is what must not move
    streams = [torch.get_rng_state(), torch.from_numpy(keys.astype(np.int64)), torch.tensor(rest[:2])]
    return [tensor.detach().clone() for tensor in (*state, *streams)], random.getstate()


def run(make, data, optimizer_of, steps, **probe):
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    model = make()
    optimizer, losses = optimizer_of(model.parameters()), []
    listening = bnprobe.attach(model, *probe.pop("statistics", ()), optimizer=optimizer, **probe) if probe else None
    for step, (x, y) in enumerate(data[:steps]):
        model.train(step % 5 != 4)  # now and then a step in eval mode
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss)
    if listening:
        listening.detach()
        assert len(listening.run.steps)
    return everything(model, optimizer, losses)


def assert_bitwise(a, b):
    assert len(a[0]) == len(b[0])
    for one, other in zip(a[0], b[0], strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.view(-1).contiguous().view(torch.uint8), other.view(-1).contiguous().view(torch.uint8))
    assert a[1] == b[1]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, 0.1, 0.9), lambda p: torch.optim.Adam(p, 0.01)])
def test_fifty_steps_with_the_default_statistics(name, optimizer):
    make, shape = CASES[name]
    data = batches(shape, 50)
    assert_bitwise(run(make, data, optimizer, 50), run(make, data, optimizer, 50, every=1))


class Checkpointed(nn.Module):
    """Norm layers under activation checkpointing: reading their saved tensors would run the block again."""

    def __init__(self, reentrant, policy=False):
        super().__init__()
        self.reentrant, self.policy = reentrant, policy
        self.stem = nn.Linear(6, 6)
        self.body = nn.Sequential(
            nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.LayerNorm(6), nn.Linear(6, 3)
        )

    def forward(self, x):
        if not self.policy:
            return checkpoint(self.body, self.stem(x), use_reentrant=self.reentrant)
        keep = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.mul.Tensor]
        contexts = functools.partial(create_selective_checkpoint_contexts, keep)
        return checkpoint(self.body, self.stem(x), use_reentrant=False, context_fn=contexts)


class Noisy(nn.Module):
    """A parametrisation that draws from the global stream and counts how often it is asked."""

    def __init__(self):
        super().__init__()
        self.register_buffer("asked", torch.zeros(1))

    def forward(self, weight):
        self.asked += 1
        return weight + 1e-3 * torch.randn_like(weight)


def parametrised():
    norm = nn.BatchNorm1d(6)
    nn.utils.parametrize.register_parametrization(norm, "weight", Noisy())
    return nn.Sequential(nn.Linear(6, 6), norm, nn.Linear(6, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Checkpointed(reentrant=False),
        lambda: Checkpointed(reentrant=True),
        lambda: Checkpointed(reentrant=False, policy=True),
        parametrised,
    ],
    ids=["checkpoint", "reentrant checkpoint", "selective checkpoint", "parametrised norm"],
)
def test_reading_runs_no_code_of_the_users(make):
    data = batches((16, 6), 6)

    def sgd(parameters):
        return torch.optim.SGD(parameters, 0.1)

    assert_bitwise(run(make, data, sgd, 6), run(make, data, sgd, 6, every=1))


@st.composite
def networks(draw):
    """Small networks of random layers, as a function that builds one, with the shape of a batch."""
    width = draw(st.integers(2, 5))
    norms = {
        "batch": nn.BatchNorm2d,
        "group": lambda c: nn.GroupNorm(1, c),
        "instance": nn.InstanceNorm2d,
        "none": None,
    }
    plan = draw(
        st.lists(
            st.tuples(
                st.sampled_from(sorted(norms)), st.sampled_from(["relu", "inplace", "gelu", "sigmoid", "dropout"])
            ),
            min_size=1,
            max_size=4,
        )
    )
    after = {
        "relu": nn.ReLU,
        "inplace": lambda: nn.ReLU(inplace=True),
        "gelu": nn.GELU,
        "sigmoid": nn.Sigmoid,
        "dropout": lambda: nn.Dropout(0.3),
    }

    def build():
        layers, inner = [], 2
        for norm, activation in plan:
            layers.append(nn.Conv2d(inner, width, 3, padding=1))
            layers += [norms[norm](width)] if norms[norm] else []
            layers.append(after[activation]())
            inner = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))

    return build, (draw(st.integers(2, 5)), 2, draw(st.integers(2, 6)), draw(st.integers(2, 6)))


STATISTICS = st.sampled_from(
    [
        (),
        (s.Moments(),),
        (s.Moments(exact=True), s.Quantiles(exact=True), s.Gradients(exact=True), s.Saturation(exact=True)),
        (s.Quantiles(channels=(0, 1)), s.RunningGap()),
    ]
)


@settings(max_examples=25)
@given(network=networks(), statistics=STATISTICS, every=st.integers(1, 3), sample=st.sampled_from([2, 50, 2048]))
def test_random_networks_statistics_and_schedules(network, statistics, every, sample):
    build, shape = network
    data = batches(shape, 6)

    def adam(parameters):
        return torch.optim.Adam(parameters, 0.01)

    probed = run(build, data, adam, 6, statistics=statistics, every=every, sample=sample)
    assert_bitwise(run(build, data, adam, 6), probed)
