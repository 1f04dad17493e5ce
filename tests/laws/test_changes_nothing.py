"""Whatever happens in a training, it happens in the same bits with a probe; and nothing is left on the model."""

import contextlib
import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.utils.checkpoint import checkpoint

import bnprobe
from bnprobe import statistics as s
from bnprobe.errors import BnprobeError
from bnprobe.schedule import first, log_spaced
from tests.cases import CASES, batches, mlp

STEPS = 20


class Stop(Exception):  # noqa: N818 - it is no error
    """Thrown into the middle of a training."""


class Trap(nn.Module):
    """Raises in the forward or the backward when it is told to."""

    def __init__(self):
        super().__init__()
        self.armed = None

    def forward(self, x):
        if self.armed == "forward":
            raise Stop
        if self.armed == "backward" and x.requires_grad:
            x.register_hook(self._raise)
        return x

    def _raise(self, gradient):
        raise Stop


class Network(nn.Module):
    """Random layers with a trap somewhere between them, perhaps under a checkpoint, perhaps run twice."""

    def __init__(self, layers, width, checkpointing, twice):
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, width, 3, padding=1), nn.Sequential(*layers)
        self.head, self.checkpointing, self.twice = nn.Linear(width, 3), checkpointing, twice

    def forward(self, x):
        x = self.stem(x)
        for _ in range(1 + self.twice):
            if self.checkpointing == "none":
                x = self._block(x)
            else:
                x = checkpoint(self._block, x, use_reentrant=self.checkpointing == "reentrant")
        return self.head(x.mean((2, 3)))

    def _block(self, x):
        return self.body(x + 0)  # under a reentrant checkpoint the input is a leaf, which allows no writes


LAYERS = {
    "conv": lambda c: nn.Conv2d(c, c, 3, padding=1),
    "batch": nn.BatchNorm2d,
    "cumulative batch": lambda c: nn.BatchNorm2d(c, momentum=None, affine=False),
    "group": lambda c: nn.GroupNorm(1, c),
    "instance": lambda c: nn.InstanceNorm2d(c, track_running_stats=True),
    "spectral": lambda c: nn.utils.parametrizations.spectral_norm(nn.Conv2d(c, c, 1)),
    "relu": lambda c: nn.ReLU(),
    "inplace": lambda c: nn.Sequential(nn.Conv2d(c, c, 1), nn.ReLU6(inplace=True)),  # behind what allows it
    "sigmoid": lambda c: nn.Sigmoid(),
    "dropout": lambda c: nn.Dropout(0.3),
    "alpha dropout": lambda c: nn.AlphaDropout(0.3),  # no RReLU: under a checkpoint it is not repeatable by itself
}


@st.composite
def networks(draw):
    """A function that builds a network, and the shape of its batches."""
    plan = draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4))
    width, trap = draw(st.integers(2, 5)), draw(st.integers(0, len(plan)))
    checkpointing, twice = draw(st.sampled_from(["none", "plain", "reentrant"])), draw(st.booleans())

    def build():
        layers = [LAYERS[name](width) for name in plan]
        layers.insert(trap, Trap())
        return Network(layers, width, checkpointing, twice)

    return build, (draw(st.integers(3, 5)), 2, draw(st.integers(2, 5)), draw(st.integers(2, 5)))


EVENTS = ["plain"] * 4 + [
    "eval step", "evaluation", "accumulation", "forward raises", "backward raises", "detach", "attach", "closure",
]  # fmt: skip
STATISTICS = st.sampled_from(
    [
        (),
        (s.Moments(),),
        (s.Moments(exact=True), s.Quantiles(exact=True), s.Gradients(exact=True), s.Saturation(exact=True)),
        (s.Quantiles(channels=(0, 1)), s.RunningGap(), s.Gradients()),
    ]
)
SCHEDULES = st.sampled_from([1, 2, 3, first(5), log_spaced(), lambda step: step % 7 == 2])
OPTIMIZERS = st.sampled_from(
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
        lambda p: torch.optim.Adam(p, 0.01, fused=True, amsgrad=True),
    ]
)


class Loop:
    """A training of events; ``listen`` attaches a probe, or does nothing."""

    def __init__(self, model, optimizer, listen):
        self.model, self.optimizer, self.listen, self.trace, self.probe = model, optimizer, listen, [], listen()

    def run(self, events, data):
        for event, (x, y) in zip(events, data, strict=True):
            self._event(event, x, y)
        self._detach()

    def _detach(self):
        if self.probe is not None:
            self.probe.detach()

    def _event(self, event, x, y):
        self._arm(None)
        if event == "detach":
            self._detach()
        elif event == "attach":  # in the middle of a step
            loss = F.cross_entropy(self.model(x), y)
            self._detach()
            self.probe = self.listen()
            loss.backward()
        elif event == "evaluation":
            self.model.eval()
            with torch.no_grad():
                self.trace.append(self.model(x))
        self.model.train(event != "eval step")
        armed = event.split()[0] if event.endswith("raises") else None
        self._arm(armed)
        with pytest.raises(Stop) if armed else contextlib.nullcontext():
            self._step(event, x, y)
        self.trace += [p.grad.clone() for p in self.model.parameters() if p.grad is not None]

    def _arm(self, armed):
        for trap in self.model.modules():
            if isinstance(trap, Trap):
                trap.armed = armed

    def _step(self, event, x, y):
        if event == "closure":
            self.optimizer.step(lambda: self._backward(x, y))
            return
        self._backward(x, y)
        if event == "accumulation":
            (F.cross_entropy(self.model(x[:2]), y[:2]) / 2).backward()
        self.optimizer.step()

    def _backward(self, x, y):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        self.trace.append(loss)
        loss.backward()
        return loss


def streams():
    """The states of all global random streams."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global stream is what must not move
    found = [torch.get_rng_state(), torch.from_numpy(keys.astype(np.int64)), torch.tensor(rest[:2])]
    found += torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return found, random.getstate()


def trained(build, make_optimizer, events, data, listen=lambda model, optimizer: None):
    """Everything that a training leaves: trace, weights, buffers, gradients, optimizer state, random streams."""
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    model = build()
    optimizer = make_optimizer(model.parameters())
    loop = Loop(model, optimizer, lambda: listen(model, optimizer))
    loop.run(events, data)
    left = [*loop.trace, *model.state_dict().values(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for slot in optimizer.state.values():
        left += [value for value in slot.values() if isinstance(value, torch.Tensor)]
    tensors, state = streams()
    return [tensor.detach() for tensor in (*left, *tensors)], state, loop


def assert_bitwise(one, other):
    assert len(one[0]) == len(other[0])
    for a, b in zip(one[0], other[0], strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
    assert one[1] == other[1]


@settings(max_examples=25)
@given(
    network=networks(),
    events=st.lists(st.sampled_from(EVENTS), min_size=STEPS, max_size=STEPS),
    statistics=STATISTICS,
    every=SCHEDULES,
    optimizer=OPTIMIZERS,
    sample=st.sampled_from([2, 50, 2048]),
    clock=st.booleans(),
)
def test_twenty_steps_of_whatever_happens(network, events, statistics, every, optimizer, sample, clock):
    build, shape = network
    data = batches(shape, STEPS)

    def listen(model, stepper):
        given = {"optimizer": stepper} if clock else {}
        return bnprobe.attach(model, *statistics, every=every, sample=sample, **given)

    plain = trained(build, optimizer, events, data)
    probed = trained(build, optimizer, events, data, listen)
    assert_bitwise(plain, probed)
    assert_nothing_left(plain[2], probed[2])


# Nothing is left.


def bones(*things):
    """What modules, parameters, optimizers and PyTorch itself have in their dictionaries; hooks by their functions."""
    found = []
    for thing in things:
        found.append((type(thing).__qualname__, sorted(thing.__dict__), _hooks(thing.__dict__)))
        if isinstance(thing, nn.Module):
            for parameter in (*thing._parameters.values(), *thing._buffers.values()):
                if parameter is not None:
                    hooks = parameter._backward_hooks, parameter._post_accumulate_grad_hooks
                    found.append((type(parameter), sorted(parameter.__dict__), [len(one or ()) for one in hooks]))
    return found


def _hooks(attributes):
    return {
        name: [getattr(hook, "__qualname__", type(hook).__name__) for hook in value.values()]
        for name, value in attributes.items()
        if "hook" in name and isinstance(value, dict)
    }


def of_torch():
    """Global hooks, and the functions that a tool may have put itself in the place of."""
    hooks = {name: dict(value) for name, value in vars(module_hooks).items() if name.startswith("_global") and value}
    places = (nn.Module, torch.Tensor, torch.autograd.Function, torch.optim.Optimizer, torch.amp.GradScaler)
    functions = {f"{place.__name__}.{name}": value for place in places for name, value in vars(place).items()}
    return hooks, functions


def parts(loop):
    return [*loop.model.modules(), loop.optimizer]


def assert_nothing_left(plain, probed):
    assert bones(*parts(plain)) == bones(*parts(probed))
    assert not of_torch()[0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ending", ["detach", "exception", "inside a forward", "failed start", "interrupted"])
def test_nothing_is_left(name, ending, tmp_path):
    make, shape = CASES[name]
    model, ((x, y),) = make(), batches(shape, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    things = [*model.modules(), optimizer]
    before, torch_before = bones(*things), of_torch()
    values = [{key: id(value) for key, value in one.__dict__.items()} for one in things]

    def step():
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    if ending == "failed start":
        with bnprobe.attach(model, out=tmp_path / "run"):
            with pytest.raises(BnprobeError):
                bnprobe.attach(model, optimizer=optimizer, out=tmp_path / "run")
            with pytest.raises(RuntimeError):
                bnprobe.attach(model, optimizer=optimizer, every=_never)
    elif ending == "inside a forward":
        probe = bnprobe.attach(model, optimizer=optimizer)
        handle = next(iter(model.children())).register_forward_hook(lambda *_: probe.detach())
        step()
        handle.remove()
        del probe
    else:
        error = {"exception": Stop, "interrupted": KeyboardInterrupt, "detach": None}[ending]
        expected = pytest.raises(error) if error else contextlib.nullcontext()
        with expected, bnprobe.attach(model, optimizer=optimizer):
            step()
            loss = model(x).sum()
            if error:
                raise error
        if not error:
            loss.backward()
    assert bones(*things) == before
    assert of_torch() == torch_before
    after = [{key: id(value) for key, value in one.__dict__.items()} for one in things]
    assert after == values


def _never(step):
    raise RuntimeError("no schedule")


def test_the_check_for_leftovers_finds_them():
    """Each of these is what a careless tool leaves behind."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before, clean = bones(*model.modules(), optimizer), of_torch()
    careless = {
        "hook": lambda m, o: m[0].register_forward_hook(lambda *_: None),
        "backward hook": lambda m, o: m[0].register_full_backward_hook(lambda *_: None),
        "attribute": lambda m, o: setattr(m[1], "recorded", []),
        "wrapper": lambda m, o: setattr(m[1], "forward", lambda x: x),
        "parameter hook": lambda m, o: m[0].weight.register_hook(lambda gradient: None),
        "accumulation hook": lambda m, o: m[0].weight.register_post_accumulate_grad_hook(lambda p: None),
        "optimizer hook": lambda m, o: o.register_step_post_hook(lambda *_: None),
        "optimizer wrapper": lambda m, o: setattr(o, "step", lambda: None),
    }
    for name, leave in careless.items():
        twin = copy.deepcopy(model)
        stepper = torch.optim.SGD(twin.parameters(), 0.1)
        assert bones(*twin.modules(), stepper) == before
        leave(twin, stepper)
        assert bones(*twin.modules(), stepper) != before, name
    handle = module_hooks.register_module_forward_pre_hook(lambda *_: None)
    assert of_torch() != clean
    handle.remove()
    assert of_torch() == clean


# On a GPU.


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("exact", [False, True])
def test_deterministic_training_on_a_gpu(name, exact, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    make, shape = CASES[name]
    data = [(x.cuda(), y.cuda()) for x, y in batches(shape, STEPS)]
    chosen = (s.Moments(exact=True), s.Quantiles(exact=True), s.Gradients(exact=True)) if exact else ()
    events = (["plain", "accumulation", "evaluation", "eval step"] * STEPS)[:STEPS]

    def listen(model, optimizer):
        return bnprobe.attach(model, *chosen, optimizer=optimizer)

    def adam(parameters):
        return torch.optim.Adam(parameters, 0.01, fused=True)

    torch.use_deterministic_algorithms(True)
    try:
        runs = [trained(lambda: make().cuda(), adam, events, data, one) for one in (lambda *_: None, listen)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert_bitwise(*runs)
