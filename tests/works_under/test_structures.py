"""What flows between layers, and layers that are not what they seem."""

import collections
import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bnprobe
from tests.cases import Residual, batches
from tests.works_under.naive import DEFAULT, EXACT, LARGE, Naive, agree, check, plain_loop, snapshot, why

pytestmark = pytest.mark.usefixtures("no_hooks_left")


@pytest.mark.works_under("in-place activations behind a layer", group="Structures")
def test_in_place_activations():
    """Each layer's output is overwritten before the next hook sees it; gradients are those before and after."""
    make = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), nn.ReLU6(inplace=True),
        nn.GroupNorm(2, 4), nn.Hardswish(inplace=True), nn.Dropout(0.2, inplace=True), nn.Flatten(), nn.Linear(64, 3),
        nn.LeakyReLU(0.1, inplace=True),
    )  # fmt: skip
    probe = check(make, plain_loop(batches((8, 3, 6, 6), 3)))
    assert not why(probe)


class Adds(nn.Module):
    """Residuals added in place, once into a layer's output and once into a slice of one."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.second, self.head = (
            nn.Linear(6, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(x)
        y += x
        z = self.second(y)
        z[:, :3] *= 2.0
        z.relu_()
        return self.head(z)


@pytest.mark.works_under("residual += and other writes", group="Structures")
@pytest.mark.parametrize(("make", "shape"), [(Adds, (8, 6)), (Residual, (4, 3, 6, 6))])
def test_writes_into_outputs(make, shape):
    probe = check(make, plain_loop(batches(shape, 3)))
    assert not why(probe)


# Nested structures.


@dataclasses.dataclass
class Pair:
    hidden: torch.Tensor
    extras: dict


class Named(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class ModelOutput(collections.OrderedDict):
    """As Hugging Face's: a mapping with attributes that leaves out what is None."""

    def __init__(self, **fields):
        super().__init__({key: value for key, value in fields.items() if value is not None})

    def __getattr__(self, name):
        return self.get(name)


def hugging_face(**fields):
    outputs = pytest.importorskip("transformers.modeling_outputs", reason="transformers is not installed")
    return outputs.BaseModelOutput(**fields)


class Block(nn.Linear):
    """A layer that takes and gives structures."""

    def __init__(self, wrap):
        super().__init__(6, 6)
        self.wrap = wrap

    def forward(self, batch, *, scale=None):
        return self.wrap(super().forward(batch["x"][0] * scale))


class Structured(nn.Module):
    def __init__(self, wrap, read):
        super().__init__()
        self.stem, self.block, self.head, self.read = nn.Linear(6, 6), Block(wrap), nn.Linear(6, 3), read

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.read(self.block({"x": [x, x.abs()], "label": None}, scale=x.new_full((1,), 2.0))))


STRUCTURES = {
    "tuple": (lambda x: (x, (x * 2, [x + 1])), lambda y: y[0] + y[1][1][0], ["", ".1.0", ".1.1.0"]),
    "dict": (lambda x: {"b": x, "a": {"z": x * 3}}, lambda y: y["b"] * y["a"]["z"], ["", ".a.z"]),
    "named tuple": (lambda x: Named(x, -x), lambda y: y.first + 2 * y.second, ["", ".second"]),
    "dataclass": (lambda x: Pair(x, {"k": x**2}), lambda y: y.hidden + y.extras["k"], ["", ".extras.k"]),
    "ModelOutput": (
        lambda x: ModelOutput(last=x, past=None, states=(x + 1, x + 2)),
        lambda y: y.last + y.states[1],
        ["", ".states.0", ".states.1"],
    ),
    "Hugging Face": (
        lambda x: hugging_face(last_hidden_state=x, hidden_states=(x + 1, x + 2)),
        lambda y: y.last_hidden_state + y.hidden_states[1],
        ["", ".hidden_states.0", ".hidden_states.1"],
    ),
}


@pytest.mark.works_under("nested tuples, dicts, dataclasses, ModelOutput", group="Structures")
@pytest.mark.parametrize("name", STRUCTURES)
def test_nested_structures(name):
    wrap, read, paths = STRUCTURES[name]
    probe = check(lambda: Structured(wrap, read), plain_loop(batches((8, 6), 2)))
    places = set(probe.run.frame(layer="block", statistic="mean").place)
    outputs = {f"output{path}" for path in paths}
    assert {"input", "input.0.x.1", "input.scale", "grad_output"} | outputs <= places
    assert not why(probe)


# Recurrent layers.


class Packed(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.norm, self.head = kind(6, 5, num_layers=2), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x):  # [L, N, 6]
        packed = pack_padded_sequence(x, lengths=[4, 3, 3, 1], enforce_sorted=True)
        states, _ = self.rnn(packed)
        padded, _ = pad_packed_sequence(states)
        return self.head(self.norm(padded).sum(0))


@pytest.mark.works_under("LSTM, GRU with packed sequences", group="Structures")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_packed_sequences(kind):
    """Of a packed sequence the data are measured: 4 + 3 + 3 + 1 positions, without padding."""
    data = [(x, y[:4]) for x, y in batches((4, 4, 6), 2)]
    probe = check(lambda: Packed(kind), plain_loop(data))
    places = probe.run.frame(layer="rnn", statistic="mean").set_index("place")
    hidden = {"output.1.0", "output.1.1"} if kind is nn.LSTM else {"output.1"}
    assert set(places.index) == {"input", "output", "grad_output"} | hidden
    assert set(places.loc["input"]["count"]) == {11 * 6}
    assert set(places.loc["output"]["count"]) == {11 * 5}


# Attention.


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.norm, self.head = (
            nn.MultiheadAttention(6, 2, batch_first=True),
            nn.LayerNorm(6),
            nn.Linear(6, 3),
        )

    def forward(self, x):
        y, weights = self.attention(x, x, x, need_weights=True)
        return self.head(self.norm(x + y).mean(1)) + weights.mean((1, 2))[:, None]


@pytest.mark.works_under("nn.MultiheadAttention", group="Structures")
def test_multihead_attention():
    probe = check(Attends, plain_loop(batches((8, 5, 6), 2)))
    places = set(probe.run.frame(layer="attention", statistic="mean").place)
    assert {"input", "input.1", "input.2", "output", "output.1", "grad_output"} <= places
    assert set(why(probe)) == {"attention.out_proj"}


@pytest.mark.works_under(
    "projections inside nn.MultiheadAttention", group="Structures", verdict="not observed, listed why"
)
def test_the_projection_inside_attention_is_said_to_be_unobserved():
    model = Attends()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bnprobe.attach(model, *EXACT, layers="*", optimizer=optimizer) as probe:
        plain_loop(batches((8, 5, 6), 1))(model, optimizer)
    assert why(probe) == {"attention.out_proj": "its forward was not called through the module"}


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
    return nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3))


@pytest.mark.works_under("nn.TransformerEncoderLayer", group="Structures")
def test_an_encoder_in_training():
    def loop(model, optimizer):
        for x, y in batches((4, 5, 6), 2):
            optimizer.zero_grad()
            F.cross_entropy(model(x).mean(1), y).backward()
            optimizer.step()

    probe = check(encoder, loop)
    assert set(why(probe)) == {"1.self_attn.out_proj"}
    assert {"1.self_attn", "1.norm1", "1.linear1", "1.norm2"} <= set(probe.run.layers.name)


@pytest.mark.works_under(
    "layers that a fused kernel skips (an encoder's fast path)", group="Structures", verdict="not observed, listed why"
)
def test_the_fast_path_stays_on_and_what_it_skips_is_listed():
    model, x, calls = encoder().eval(), torch.randn(4, 5, 6), []
    fast = torch._transformer_encoder_layer_fwd

    def counted(*args, **kwargs):
        calls.append(1)
        return fast(*args, **kwargs)

    torch._transformer_encoder_layer_fwd = counted
    try:
        with torch.no_grad():
            plain = model(x)
            with bnprobe.attach(model, *EXACT) as probe:
                probed = model(x)
    finally:
        torch._transformer_encoder_layer_fwd = fast
    assert len(calls) == 2
    assert torch.equal(plain, probed)
    layers = probe.run.layers.set_index("name")
    inner = [name for name in layers.index if name.startswith("1.")]
    assert inner
    assert not layers.observed[inner].any()
    assert (layers.why[inner] == "its forward was not called").all()
    recorded = probe.run.frame(layer="2", place="output", statistic="variance", phase="eval").value.item()
    assert recorded == pytest.approx(float(plain.double().var(correction=0)), rel=1e-9)


# Layers that change.


@pytest.mark.works_under("lazy modules", group="Structures")
def test_lazy_modules():
    make = lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))  # noqa: E731
    data = batches((8, 3, 6, 6), 3)

    def sgd(parameters):
        return torch.optim.SGD(parameters, 0.05)

    def run(listen):
        torch.manual_seed(0)
        model = make()
        optimizer = sgd(model.parameters())
        with listen(model, optimizer) as listener:
            plain_loop(data)(model, optimizer)
        return model, optimizer, listener

    probes = [run(lambda m, o, s=s: bnprobe.attach(m, *s, optimizer=o, sample=LARGE)) for s in (EXACT, DEFAULT)]

    torch.manual_seed(0)
    twin = make()
    naive_optimizer = sgd(twin.parameters())
    naive = Naive(twin)
    naive_optimizer.register_step_post_hook(naive.tick)
    plain_loop(data)(twin, naive_optimizer)
    for (model, _, probe), rel in zip(probes, (1e-9, 2e-5), strict=True):
        agree(probe.run, naive.seen, rel)
        for name, value in snapshot(twin).items():
            assert torch.equal(value, snapshot(model)[name])
    layers = probes[0][2].run.layers.set_index("name")
    assert layers.kind.tolist() == ["Conv2d", "BatchNorm2d", "ReLU", "Linear"]
    assert layers.channels.tolist()[:2] == [4, 4]


def weight_normed():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        parametrizations.spectral_norm(nn.Linear(64, 5)),
        parametrizations.orthogonal(nn.Linear(5, 3)),
    )


@pytest.mark.works_under("weight norm, spectral norm and other parametrisations", group="Structures")
def test_parametrised_layers():
    """Spectral norm's buffers move at each forward in training: they must not move more for being watched."""
    probe = check(weight_normed, plain_loop(batches((8, 3, 6, 6), 3)))
    assert probe.run.layers.name.tolist() == ["0", "1", "2", "4", "5"]
    assert not why(probe)
    model = weight_normed()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    truth = model[0].parametrizations.weight
    expected = float(torch.cat([truth.original0.flatten(), truth.original1.flatten()]).detach().norm())
    with bnprobe.attach(model, *EXACT, optimizer=optimizer) as probe:
        plain_loop(batches((8, 3, 6, 6), 1))(model, optimizer)
    assert probe.run.frame(layer="0", statistic="norm").value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.works_under("weight norm by hooks (torch.nn.utils.weight_norm)", group="Structures")
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_of_old():
    def make():
        first, last = nn.utils.weight_norm(nn.Linear(6, 6)), nn.utils.spectral_norm(nn.Linear(6, 3))
        return nn.Sequential(first, nn.ReLU(), last)

    check(make, plain_loop(batches((8, 6), 3)))


@pytest.mark.works_under("modules removed after attaching", group="Structures")
def test_modules_removed_after_attaching():
    def loop(model, optimizer):
        for step, (x, y) in enumerate(batches((8, 6), 4)):
            if step == 2:
                model[2] = nn.Identity()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    probe = check(lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 3)), loop)
    assert set(probe.run.frame(layer="2", place="output").step) == {0, 1}
    assert set(probe.run.frame(layer="3", place="output").step) == {0, 1, 2, 3}


@pytest.mark.works_under("modules added after attaching", group="Structures", verdict="not observed, listed why")
def test_modules_added_after_attaching():
    """Attach again to see them."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    with bnprobe.attach(model, *EXACT) as probe:
        model(torch.randn(8, 6))
        model.append(nn.Linear(6, 3))
        model(torch.randn(8, 6))
        with bnprobe.attach(model, *EXACT) as again:
            y = model(torch.randn(8, 6))
    assert probe.run.layers.name.tolist() == ["0", "1", "2"]
    assert why(probe) == {"2": "it was added after attaching"}
    assert set(probe.run.frame(layer="1", place="output").step) == {0, 1, 2}
    recorded = again.run.frame(layer="2", place="output", statistic="mean").value.item()
    assert recorded == pytest.approx(y.double().mean().item(), rel=1e-9)


# Rectifiers with a lid.


def test_relu6_is_a_rectifier():
    """Its flat half is what it is for: dead units are counted, saturation is not."""
    model, x = nn.Sequential(nn.ReLU6(), nn.Hardtanh(-1, 1)), torch.randn(400, 3)
    x[:, 1] = -1.0
    with bnprobe.attach(model) as probe:
        model(x)
    assert set(probe.run.frame(statistic="saturated").layer) == {"1"}
    dead = probe.run.frame(layer="0", statistic="dead")
    assert dead.value.tolist() == [pytest.approx(1 / 3)]
    np.testing.assert_array_equal(probe.run.channels("0", "dead", "output"), [[0, 1, 0]])
