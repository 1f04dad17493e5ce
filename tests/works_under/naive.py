"""A naive twin of the probe: hooks of our own on every layer, float64 copies, and formulas as they stand in a book."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bnprobe
from bnprobe import statistics as s

EXACT = (s.Moments(exact=True), s.Quantiles(exact=True), s.Gradients(exact=True))
DEFAULT = ()
LARGE = 2**14  # a sample that holds all values of the tensors here


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


class Naive:
    """Copies of every layer's inputs, outputs and gradients under the keys of records."""

    def __init__(self, model):
        self.seen, self.step = {}, 0
        self._root, self._inside, self._training, self._calls = model, False, model.training, {}
        model.register_forward_pre_hook(self._begin)
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.RecursiveScriptModule) and not isinstance(
                module, torch.jit.TopLevelTracedModule
            ):
                continue  # takes no hooks of its own
            module.register_forward_pre_hook(self._before(name), with_kwargs=True)
            module.register_forward_hook(self._after(name), with_kwargs=True)
        model.register_forward_hook(self._end)

    def tick(self, *_):
        self.step += 1

    def _begin(self, module, args):
        self._inside, self._training, self._calls = True, module.training, {}

    def _end(self, *_):
        self._inside = False

    def _key(self, name, place):
        training = self._training if self._inside else self._root.training
        return self.step, "train" if training else "eval", name, max(self._calls.get(name, 0), 0), place

    def _keep(self, key, tensor):
        if tensor.dtype.is_floating_point:
            self.seen.setdefault(key, []).append(tensor.detach().double().flatten().clone())

    def _before(self, name):
        def hook(module, args, kwargs):
            self._calls[name] = self._calls.get(name, -1) + 1 if self._inside else 0
            for place, tensor in places("input", {**dict(enumerate(args)), **kwargs}):
                self._keep(self._key(name, place), tensor)

        return hook

    def _after(self, name):
        def hook(module, args, kwargs, output):
            for place, tensor in places("output", output):
                self._keep(self._key(name, place), tensor)
                if tensor.requires_grad and torch.is_grad_enabled() and tensor.dtype.is_floating_point:
                    key = self._key(name, f"grad_{place}")[1:]
                    tensor.register_hook(lambda g, key=key: self._keep((self.step, *key), g))

        return hook


def places(prefix, value):
    """Tensors in a structure and the places that records give them: the first has no path."""
    found = list(_flat(value, ""))
    return [(f"{prefix}{path}" if i else prefix, tensor) for i, (path, tensor) in enumerate(found)]


def _flat(value, path):
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, torch.nn.utils.rnn.PackedSequence):
        items = [("data", value.data)]
    elif hasattr(value, "_fields"):
        items = value._asdict().items()
    elif isinstance(value, tuple | list):
        items = enumerate(value)
    elif dataclasses.is_dataclass(value):
        items = vars(value).items()
    else:
        items = ()
    for key, inner in items:
        yield from _flat(inner, f"{path}.{key}")


def snapshot(model, *optimizers):
    """Everything that training leaves on a model and its optimizers."""
    state = dict(model.state_dict())
    state |= {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    for i, optimizer in enumerate(optimizers):
        for j, slot in enumerate(optimizer.state.values()):
            state |= {f"{i}.{j}.{key}": value for key, value in slot.items() if isinstance(value, torch.Tensor)}
    return {name: value.detach().clone() for name, value in state.items() if isinstance(value, torch.Tensor)}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if value.device.type != "meta":
            flat = (tensor.contiguous().view(-1).view(torch.uint8) for tensor in (value, other[name]))
            assert torch.equal(*flat), name


def agree(run, seen, rel=1e-9, without=()):
    """The run holds exactly the keys that were seen, and their numbers.

    Args:
        run: what the probe recorded.
        seen: lists of float64 tensors by key.
        rel: relative to the spread and the size of the values.
        without: layers that are known not to be observed.
    """
    inventory = set(run.layers.name) - set(without)
    expected = {key: torch.cat(parts) for key, parts in seen.items() if key[2] in inventory}
    expected = {key: values for key, values in expected.items() if len(values)}
    frame = run.frame()
    frame = frame[frame.place != "weight"]
    rows = {
        key: part.set_index("statistic") for key, part in frame.groupby(["step", "phase", "layer", "call", "place"])
    }
    assert set(rows) == set(expected), sorted(set(rows) ^ set(expected))[:6]
    assert expected, "nothing was seen: the test tests nothing"
    for key, values in expected.items():
        row, finite = rows[key], values[values.isfinite()]
        assert (row["count"] == len(values)).all(), key
        _same(key, row, "nonfinite", 1 - len(finite) / len(values), 1e-12)
        if len(finite):
            spread = float(finite.std(correction=0) + finite.abs().mean())
            _same(key, row, "mean", float(finite.mean()), rel * spread)
            _same(key, row, "variance", float(finite.var(correction=0)), rel * spread**2)
            _same(key, row, "min", float(finite.min()), rel * spread)
            _same(key, row, "max", float(finite.max()), rel * spread)


def _same(key, row, statistic, value, tolerance):
    recorded = row.value[statistic]
    assert np.isscalar(recorded), (key, statistic, recorded)
    assert recorded == pytest.approx(value, rel=0, abs=tolerance + 1e-300), (key, statistic)


def trained(make, loop, optimizer=sgd, listen=None):
    """A model trained by ``loop(model, optimizer)``, with what ``listen(model, optimizer)`` made beside it."""
    torch.manual_seed(0)
    model = make()
    torch.manual_seed(1)
    stepper = optimizer(model.parameters())
    listener = listen(model, stepper) if listen else None
    loop(model, stepper)
    return model, stepper, listener


def check(make, loop, optimizer=sgd, *, without=(), rel=(1e-9, 2e-5), **settings):
    """Train without a probe, under naive hooks, and with a probe, exact and default.

    The weights must be the same bits, and the records hold what the naive hooks saw: rounding apart, also with the
    default statistics, whose samples hold all values of these small tensors.

    Returns:
        The probe with exact statistics, detached.
    """

    def naively(model, stepper):
        naive = Naive(model)
        stepper.register_step_post_hook(naive.tick)
        return naive

    plain = snapshot(*trained(make, loop, optimizer)[:2])
    naive = trained(make, loop, optimizer, naively)[2]
    probes, settings = [], {"sample": LARGE} | settings
    for statistics, tolerance in zip((EXACT, DEFAULT), rel, strict=True):

        def listen(model, stepper, statistics=statistics):
            return bnprobe.attach(model, *statistics, optimizer=stepper, **settings)

        model, stepper, probe = trained(make, loop, optimizer, listen)
        probe.detach()
        assert_same(plain, snapshot(model, stepper))
        agree(probe.run, naive.seen, tolerance, without)
        probes.append(probe)
    return probes[0]


def plain_loop(data):
    """The loop that everybody writes."""

    def loop(model, optimizer):
        for x, y in data:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    return loop


def why(probe):
    """Reasons by layer, of layers of which something was not observed."""
    layers = probe.run.layers.set_index("name")
    return {name: reason for name, reason in layers.why.items() if reason}
