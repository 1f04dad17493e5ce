"""Statistics are those of all values together, layer by layer, and nothing else changes."""

import copy
import random
import warnings
from collections import UserDict
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from bnprobe.errors import ArgumentError, SelectionError
from bnprobe.remedies import freeze, recalibrate
from tests.cases import CASES, cnn, mlp


class Twice(nn.Module):
    """One batch norm in two places, a residual sum and one that is never called."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.norm, self.last, self.unused = nn.BatchNorm1d(5), nn.BatchNorm1d(2), nn.BatchNorm1d(5)

    def forward(self, x):
        h = self.norm(self.a(x))
        return self.last(self.head(h + self.norm(self.b(h.relu()))))


class Feedback(nn.Module):
    """The output of the batch norm comes back to it, and grows."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        nn.init.constant_(self.norm.weight, 3.0)

    def forward(self, x):
        return self.norm(x + 2 * self.norm(x))


def norms(model):
    return {name: one for name, one in model.named_modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)}


def whole_data_twin(model, x, names):
    """From the definition: layers one after the other, each with the moments of all its inputs, in float64."""
    twin = copy.deepcopy(model).double().eval()
    layers = norms(twin)
    for name in names:
        inputs = []
        handle = layers[name].register_forward_pre_hook(lambda _, args, kept=inputs: kept.append(args[0]))
        twin(x.double())
        handle.remove()
        values = torch.cat([one.transpose(0, 1).flatten(1) for one in inputs], 1)
        layers[name].running_mean.copy_(values.mean(1).detach())
        layers[name].running_var.copy_(values.var(1).detach())
    return {name: (layers[name].running_mean, layers[name].running_var) for name in names}


def assert_statistics(model, expected, rtol=1e-9):
    for name, (mean, variance) in expected.items():
        layer = norms(model)[name]
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=rtol, atol=rtol)
        torch.testing.assert_close(layer.running_var.double(), variance, rtol=rtol, atol=rtol * 1e-3)


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3), nn.BatchNorm1d(3),
    )  # fmt: skip


@given(st.sampled_from([(mlp, (6,)), (convnet, (3, 6, 6))]), st.lists(st.integers(1, 7), min_size=2, max_size=5))
def test_layer_by_layer_over_all_values(case, sizes):
    make, shape = case
    model, n = make().double(), sum(sizes)
    x = torch.randn(n, *shape, dtype=torch.float64) * 2 + torch.arange(n).reshape(-1, *[1] * len(shape))
    result = recalibrate(model, x.split(sizes), tolerance=0)
    assert result.settled
    assert result.passes <= len(norms(model)) + 1
    assert_statistics(model, whole_data_twin(model, x, list(norms(model))))
    assert [one.count for one in result.layers][-1] == n
    assert all(int(one.num_batches_tracked) == len(sizes) for one in norms(model).values())
    # What the pass brought still, and what was changed, both for the worst channel.
    assert all(one.change == 0 and one.d_mu.max() > 0.01 for one in result.layers)


def test_k_passes_make_k_layers_exact():
    x = torch.randn(40, 6).double() + torch.arange(40.0)[:, None]
    deep = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(4))).double()
    names = list(norms(deep))
    expected = whole_data_twin(deep, x, names)
    for passes in (1, 2, 3, 4):
        model = copy.deepcopy(deep)
        result = recalibrate(model, x.split(10), passes=passes)
        assert (result.passes, result.settled) == (passes, False)
        assert all(np.isnan(one.change) for one in result.layers)
        assert_statistics(model, {name: expected[name] for name in names[:passes]})
        off = [(norms(model)[name].running_mean - expected[name][0]).abs().max() > 1e-3 for name in names[passes:]]
        assert all(off)
    assert recalibrate(copy.deepcopy(deep), x.split(10), passes=9).settled
    one = copy.deepcopy(deep)
    assert recalibrate(one, [x], passes=1).passes == 1  # one batch with all samples
    assert_statistics(one, expected)


def test_deep_nets_do_not_diverge():
    """Were all layers replaced at once, each pass would amplify what the one before was off, by factors of ten."""
    layers = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(20)]
    model, x = nn.Sequential(*layers), torch.randn(6, 32, 8) + torch.arange(6.0)[:, None, None]
    for passes in (1, 3, 10):
        quick, exact = copy.deepcopy(model), copy.deepcopy(model)
        recalibrate(quick, x, passes=passes)
        recalibrate(exact, x)
        again = recalibrate(exact, x, batches=None)
        assert again.settled
        ratios = [
            a.running_var / b.running_var for a, b in zip(norms(quick).values(), norms(exact).values(), strict=True)
        ]
        assert torch.cat(ratios).nan_to_num(1.0).log().abs().median() < 1


def test_batches_do_not_matter():
    x = torch.randn(60, 6).double() + torch.arange(60.0)[:, None] // 20
    found = []
    for batches in (x.split(20), x[torch.randperm(60)].split(20), x.split([1, 58, 1]), [x]):
        model = Twice().double()
        model.load_state_dict({**found[0].state_dict()} if found else model.state_dict())
        with pytest.warns(UserWarning, match="layers were left as they were: 'unused': it was not called"):
            assert recalibrate(model, batches, tolerance=1e-12).settled
        found.append(model)
    for model in found[1:]:
        assert_statistics(model, {k: (v.running_mean, v.running_var) for k, v in norms(found[0]).items()}, 1e-10)


def test_calls_of_a_shared_layer_are_pooled():
    model, x = Twice().double(), torch.randn(30, 6).double()
    with pytest.warns(UserWarning, match="'unused'"):
        result = recalibrate(model, x.split(7), tolerance=1e-12)
    assert 5 < result.passes <= 24
    assert {one.name: (one.count, one.calls) for one in result.layers} == {"norm": (60, 10), "last": (30, 5)}
    assert result.left == {"unused": "it was not called"}
    # A layer that feeds itself has a fixed point: the stored moments are those of what comes under them.
    fixed = copy.deepcopy(model)
    assert_statistics(model, whole_data_twin(fixed, x, ["norm"]), 1e-9)


def test_swa_utils_misses_the_variance_between_batches():
    """LITERATURE: an average of batches' variances, (B m - 1) v = B (m - 1) mean(v_b) + m sum (mu_b - mu)^2."""
    per, classes = 8, 5
    x = torch.randn(classes, per, 6).double() + 3 * torch.randn(classes, 1, 6).double()
    ours, theirs = (nn.Sequential(nn.BatchNorm1d(6).double()) for _ in range(2))
    recalibrate(ours, list(x))
    update_bn(list(x), theirs)
    means = x.mean(1)
    between = per * (means - means.mean(0)).square().sum(0)
    expected = classes * (per - 1) * theirs[0].running_var + between
    torch.testing.assert_close(ours[0].running_var * (classes * per - 1), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours[0].running_mean, theirs[0].running_mean)
    assert (ours[0].running_var > 2 * theirs[0].running_var).all()


def test_one_batch_is_swa_utils():
    """Of deeper layers too, but for Bessel's factor: in training the layer before normalizes by the biased variance."""
    x = torch.randn(4000, 6).double()
    ours = mlp().double()
    theirs = copy.deepcopy(ours)
    recalibrate(ours, [x])
    update_bn([x], theirs)
    torch.testing.assert_close(ours[1].running_var, theirs[1].running_var, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours[4].running_var, theirs[4].running_var, rtol=2 / 4000, atol=0)
    assert not torch.equal(ours[4].running_var, theirs[4].running_var)


def precise_bn(model, batches):
    """fvcore's: moments of each batch, in one pass in training mode, averaged as E[mu^2 + v] - E[mu]^2."""
    model = copy.deepcopy(model).train()
    moments = {name: [] for name in norms(model)}
    for name, layer in norms(model).items():
        layer.register_forward_pre_hook(
            lambda _, args, kept=moments[name]: kept.append((args[0].mean(0), args[0].var(0, correction=0)))
        )
    for x in batches:
        model(x)
    found = {}
    for name, kept in moments.items():
        mean, variance = (torch.stack(one) for one in zip(*kept, strict=True))
        found[name] = mean.mean(0), (mean.square() + variance).mean(0) - mean.mean(0).square()
    return found


def test_precise_bn_lets_the_layers_before_normalize_by_the_batch():
    x = (torch.randn(10, 20, 6) + 2 * torch.randn(10, 1, 6)).double()
    model = mlp().double()
    theirs = precise_bn(model, list(x))
    recalibrate(model, list(x))
    mean, variance = theirs["1"]
    assert_statistics(model, {"1": (mean, variance * 200 / 199)})
    assert_statistics(model, whole_data_twin(model, x.flatten(0, 1), ["1", "4"]), 1e-3)
    assert ((model[4].running_var / theirs["4"][1]).log().abs() > 0.1).any()  # sorted batches: theirs is wrong there


BATCH = {
    "tensor": lambda x: x,
    "pair": lambda x: (x, torch.zeros(len(x))),
    "alone in a list": lambda x: [x],
    "mapping": lambda x: {"x": x},
    "pair of a mapping": lambda x: ({"x": x}, 0, "more"),
    "mapping as one argument": lambda x: UserDict(pixels=x, labels=None),
    "positional": lambda x: ((x, x), 0),
}


class Anything(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.norm, self.how = nn.BatchNorm1d(6), how
        self.forward = getattr(self, how)

    def one(self, x):
        assert not isinstance(x, tuple)
        return self.norm(x["pixels"] if isinstance(x, UserDict) else x)

    def two(self, x, y):
        return self.norm((x + y) / 2)


@pytest.mark.parametrize("kind", BATCH)
def test_batches_of_every_kind(kind):
    x = torch.randn(30, 6)
    model = Anything("two" if kind == "positional" else "one")
    recalibrate(model, [BATCH[kind](one) for one in x.split(10)])
    torch.testing.assert_close(model.norm.running_var, x.var(0))


def test_a_function_of_the_users_calls_the_model():
    x = torch.randn(30, 6)
    model = AveragedModel(nn.Sequential(nn.BatchNorm1d(6)))
    recalibrate(model, [{"deep": (one,)} for one in x.split(10)], forward=lambda net, batch: net(batch["deep"][0]))
    torch.testing.assert_close(model.module[0].running_mean, x.mean(0))


def test_a_loader_that_can_be_read_once_and_one_without_end():
    x = torch.randn(8, 5, 6)
    model = mlp()
    once = copy.deepcopy(model)
    recalibrate(model, list(x))
    assert recalibrate(once, (one for one in x)).passes > 1
    assert_statistics(
        once, {k: (v.running_mean.double(), v.running_var.double()) for k, v in norms(model).items()}, 1e-6
    )
    read = []
    endless = (read.append(i) or x[i % 8] for i in count())
    result = recalibrate(model, endless, batches=3)
    assert (result.batches, read) == (3, [0, 1, 2])


def test_a_model_that_writes_into_its_input():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6))
    batches = [torch.randn(9, 6) for _ in range(3)]
    before = [one.clone() for one in batches]
    recalibrate(model, batches)
    recalibrate(model, batches, forward=lambda net, x: net(x))
    assert all(map(torch.equal, batches, before))


def state(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {name: one.clone() for name, one in tensors.items()},
        {name: None if one.grad is None else one.grad.clone() for name, one in model.named_parameters()},
        [(one.training, dict(one._forward_pre_hooks), set(one.__dict__)) for one in model.modules()],
        [one.requires_grad for one in model.parameters()],
        (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()),  # noqa: NPY002
    )


def assert_same_state(now, was, but=()):
    assert [name for name in was[0] if not torch.equal(now[0][name], was[0][name]) and name not in but] == []
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(now[1].values(), was[1].values(), strict=True))
    assert now[2:4] == was[2:4]
    assert torch.equal(now[4][0], was[4][0])
    assert (now[4][1] == was[4][1]).all()
    assert now[4][2] == was[4][2]


def busy_model():
    """Dropout in training mode, a frozen batch norm, gradients, a norm with buffers that is no batch norm."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.InstanceNorm2d(4, track_running_stats=True),
        nn.BatchNorm2d(4, momentum=None), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
    ).train()  # fmt: skip
    model(torch.randn(5, 3, 8, 8)).sum().backward()
    model[1].eval()
    model[0].requires_grad_(False)
    return model


def test_nothing_else_changes():
    model = busy_model()
    was = state(model)
    objects = [*model.parameters(), *model.buffers()]
    result = recalibrate(model, [torch.randn(6, 3, 8, 8) + 1 for _ in range(3)])
    torch.set_rng_state(was[4][0])  # the line above drew
    assert result.left == {"1": "frozen; frozen=True includes it"}
    own = [f"{layer}.{name}" for layer in "46" for name in ("running_mean", "running_var", "num_batches_tracked")]
    assert_same_state(state(model), was, own)
    assert not any(torch.equal(dict(model.named_buffers())[name], was[0][name]) for name in own)
    assert all(a is b for a, b in zip(objects, [*model.parameters(), *model.buffers()], strict=True))
    assert model[4].momentum is None


def test_random_streams_are_left_and_dropout_is_off():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(6))
    x = torch.randn(20, 6)
    before = torch.get_rng_state()
    recalibrate(model, (x + 0 * torch.rand(()) for _ in range(2)), layers="1")
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(model[1].running_mean, x.mean(0))


def test_a_failure_changes_nothing():
    model = busy_model()
    was = state(model)

    def data():
        yield torch.ones(6, 3, 8, 8)
        raise OSError("the disk is gone")

    for bad, error in ((data(), OSError), ([torch.ones(6, 3, 8, 8), torch.ones(6, 2, 8, 8)], RuntimeError)):
        with pytest.raises(error, match=r"disk is gone|to have 3 channels"):
            recalibrate(model, bad)
        assert_same_state(state(model), was)


def test_frozen_layers_are_included_on_demand():
    x = torch.randn(5, 6, 3, 8, 8)
    model = busy_model()
    assert [one.name for one in recalibrate(model, x, frozen=True).layers] == ["1", "4", "6"]
    model.eval()  # now all are alike
    assert [one.name for one in recalibrate(model, x).layers] == ["1", "4", "6"]
    freeze(model, "4")
    assert recalibrate(model, x).left == {"4": "frozen; frozen=True includes it"}
    freeze(model)
    before = state(model)
    result = recalibrate(model, x)
    assert (result.layers, result.passes) == ((), 0)
    assert_same_state(state(model), before)


def test_values_that_are_not_finite():
    x = torch.randn(4, 10, 6)
    model = mlp()
    clean = copy.deepcopy(model)
    recalibrate(clean, x[:3])
    x[3, 0, 0] = torch.nan
    model[1].running_mean.fill_(torch.nan)  # what a bad batch of the training left for ever
    with pytest.warns(UserWarning, match=r"not finite were left out: 1 \(1 of 4\), 4 \(1 of 4\)"):
        result = recalibrate(model, x)
    assert result.settled
    assert np.isinf(result.layers[0].d_mu).all()
    for name, layer in norms(clean).items():
        torch.testing.assert_close(norms(model)[name].running_var, layer.running_var)
        assert int(norms(model)[name].num_batches_tracked) == 3
    was = state(model)
    with pytest.warns(UserWarning, match="left as they were: '1': none of its 2 inputs is finite"):
        assert recalibrate(model, torch.full((2, 5, 6), torch.nan)).layers == ()
    assert_same_state(state(model), was)


def test_one_value_has_no_variance():
    model = mlp()
    was = state(model)
    with pytest.warns(UserWarning, match="'1': one value a channel has no variance"):
        recalibrate(model, [torch.randn(1, 6)])
    torch.set_rng_state(was[4][0])
    assert_same_state(state(model), was)
    recalibrate(model, torch.randn(2, 1, 6))
    assert all((layer.running_var > 0).all() for layer in norms(model).values())


def test_half_precision_is_accumulated_wide():
    x = (torch.randn(64, 50, 6) + 100).half()
    model = nn.Sequential(nn.BatchNorm1d(6)).half()
    recalibrate(model, x)
    torch.testing.assert_close(model[0].running_var.double(), x.double().flatten(0, 1).var(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(model[0].running_mean.double(), x.double().mean((0, 1)), rtol=1e-3, atol=0)
    was = state(model)
    with pytest.warns(UserWarning, match=r"'0': its mean or variance is too large for torch.float16"):
        recalibrate(model, x * torch.tensor(300.0).half())
    assert_same_state(state(model), was)


def test_large_offsets_do_not_cost_digits():
    x = torch.randn(40, 500, 3) + 1e4
    model = nn.Sequential(nn.BatchNorm1d(3))
    recalibrate(model, x)
    torch.testing.assert_close(model[0].running_var.double(), x.double().flatten(0, 1).var(0), rtol=1e-5, atol=0)


def test_layers_without_running_statistics():
    model = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.BatchNorm1d(6))
    result = recalibrate(model, [torch.randn(9, 6)])
    assert result.left == {"0": "it keeps no running statistics (track_running_stats=False)"}
    assert "left alone: 0: it keeps no running statistics" in str(result)
    with pytest.raises(ArgumentError, match=r"layers chooses '0', but it keeps no running statistics"):
        recalibrate(model, [torch.randn(9, 6)], layers="0")


def test_only_chosen_layers():
    model = mlp()
    before = model[4].running_mean.clone()
    assert [one.name for one in recalibrate(model, torch.randn(2, 9, 6), layers=["0", "1"]).layers] == ["1"]
    assert torch.equal(model[4].running_mean, before)


def test_synchronized_batch_norm_and_a_compiled_model():
    x = torch.randn(3, 9, 6)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(mlp())
    expected = whole_data_twin(model, x.flatten(0, 1), ["1", "4"])
    assert recalibrate(torch.compile(model, backend="eager"), x).settled
    assert_statistics(model, expected, 1e-4)


def test_what_does_not_settle_is_said():
    with pytest.warns(UserWarning, match=r"statistics still change by .* after 22 passes \(tolerance 0.0001\)"):
        result = recalibrate(Feedback(), [torch.randn(50, 4)])
    assert not result.settled
    assert "not settled" in str(result)


def test_constant_channels_settle_without_eps():
    model = nn.Sequential(nn.BatchNorm1d(2, eps=0.0))
    assert recalibrate(model, torch.ones(3, 4, 2)).settled
    assert model[0].running_var.tolist() == [0, 0]


def test_the_table():
    result = recalibrate(mlp(), torch.randn(2, 9, 6), batches=1)
    frame = result.frame()
    assert frame["layer"].tolist() == ["1", "4"]
    assert frame["count"].tolist() == [9, 9]
    assert (frame["d_mu_max"] >= frame["d_mu"]).all()
    assert frame["d_mu_max"][0] == result.layers[0].d_mu.max()
    assert str(result).startswith("2 layers recalibrated on 1 batches in 2 passes, settled to 0.0001\nlayer")


def test_what_is_left_is_consistent_with_where_it_was():
    """A second time there is nothing to do."""
    model, x = CASES["residual"][0](), torch.randn(3, 8, 3, 6, 6)
    first, second = recalibrate(model, x), recalibrate(model, x)
    assert max(one.d_mu.max() for one in first.layers) > 0.1
    assert max(max(one.d_mu.max(), one.d_lv.max()) for one in second.layers) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loader": []}, "the loader has no batch"),
        ({"batches": 0}, "batches must be at least 1 or None; got 0"),
        ({"passes": 0}, "passes must be at least 1 or None; got 0"),
        ({"tolerance": float("nan")}, "tolerance must not be negative; got nan"),
        ({"layers": "nothing"}, "'nothing' matches no layer"),
        ({"layers": nn.Linear}, "no batch norm layer in Sequential among the layers that <class"),
        ({"model": cnn()[2:]}, "no batch norm layer in Sequential$"),
        ({"model": nn.Sequential(nn.LazyBatchNorm1d())}, "'0' is a LazyBatchNorm1d; run the model once on a"),
        ({"model": nn.Sequential(nn.LazyLinear(6), nn.BatchNorm1d(6))}, "run it once on a batch before"),
    ],
)  # fmt: skip
def test_arguments(arguments, message):
    with pytest.raises((ArgumentError, SelectionError), match=message):
        recalibrate(**{"model": mlp(), "loader": [torch.randn(5, 6)], **arguments})


def test_silence_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recalibrate(mlp(), torch.randn(2, 9, 6))
