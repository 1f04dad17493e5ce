"""Eigenvalues of the Hessian: those of quadratics, those of the whole matrix, each within its error."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_landscape import Point, quadratic, symmetric
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import bnprobe
from bnprobe.errors import ArgumentError, NotMeasuredError
from tests.cases import CASES, Recurrent, batches, mlp

ORDER = {"largest": lambda v: -v, "smallest": lambda v: v, "magnitude": lambda v: -abs(v)}


def expected(values, which, k):
    return values[np.argsort(ORDER[which](values))][:k]


@given(st.integers(2, 90), st.integers(0, 999), st.sampled_from(sorted(ORDER)), st.integers(1, 4))
@settings(max_examples=30)
def test_of_a_quadratic(size, seed, which, k):
    k = min(k, size)
    matrix, vector = symmetric(size, seed)
    found = bnprobe.hessian_eigenvalues(Point(vector), quadratic, (matrix, vector), k, which=which)
    true = expected(torch.linalg.eigvalsh(matrix).numpy(), which, k)
    assert found.method == ("dense" if size <= 64 or k >= size - 1 else "Lanczos")
    assert found.parameters == size
    # In magnitude two values of either sign may be nearer to each other than the error.
    assert (abs(abs(found.values) - abs(true)) <= found.error + 1e-12).all()
    if which != "magnitude":
        assert (abs(found.values - true) <= found.error + 1e-12).all()
    assert (found.error <= 1e-3 * abs(true).max()).all()


def test_of_low_rank_and_of_none():
    spectrum = torch.zeros(100, dtype=torch.float64)
    spectrum[:2] = torch.tensor([3.0, -5.0])
    matrix, vector = symmetric(100, 1, spectrum)
    found = bnprobe.hessian_eigenvalues(Point(vector), quadratic, (matrix, vector), 3)
    np.testing.assert_allclose(found.values, [3, 0, 0], atol=1e-9)
    for loss in (lambda net, _: net().sum(), lambda net, _: (net() ** 3).sum() * 0 + net().sum()):
        flat = bnprobe.hessian_eigenvalues(Point(vector), loss, None, 2)
        assert flat.values.tolist() == [0, 0]
        assert flat.error.tolist() == [0, 0]
        assert flat.frame().columns.tolist() == ["value", "error"]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.norm, self.head = (
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.LayerNorm(4),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        return self.head(self.norm(x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


def pooled():
    norm = nn.InstanceNorm2d(2, affine=True)
    return nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.MaxPool2d(2), nn.SiLU(), nn.Flatten(), nn.Linear(8, 3))


NETS = {
    "batch norm": (lambda: mlp(4), (7, 6)),
    "group norm": (lambda: mlp(4, lambda width: nn.GroupNorm(2, width)), (7, 6)),
    "layer norm": (lambda: mlp(4, nn.LayerNorm), (7, 6)),
    "max pooling": (pooled, (5, 1, 6, 6)),
    "attention": (Attention, (4, 3, 4)),
}


def whole(model, batch):
    """The Hessian by autograd's own hand."""
    parameters = dict(model.named_parameters())
    names, sizes = list(parameters), [one.numel() for one in parameters.values()]

    def loss(flat):
        pieces = [part.view_as(one) for part, one in zip(flat.split(sizes), parameters.values(), strict=True)]
        out = torch.func.functional_call(copy.deepcopy(model), dict(zip(names, pieces, strict=True)), (batch[0],))
        return F.cross_entropy(out, batch[1])

    flat = torch.cat([one.detach().flatten() for one in parameters.values()])
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, flat)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [True, False])
def test_as_of_the_whole_matrix(name, training):
    make, shape = NETS[name]
    model = make().double().train(training)
    x, y = batches(shape, 1)[0]
    batch = (x.double(), y)
    true = torch.linalg.eigvalsh(whole(model, batch)).numpy()
    for which in ORDER:
        found = bnprobe.hessian_eigenvalues(model, None, batch, 3, which=which)
        wanted = expected(true, which, 3)
        assert (abs(found.values - wanted) <= found.error + 1e-9 * abs(true).max()).all()
        assert (found.error <= 1e-3 * abs(true).max()).all()
        assert found.products > 3
    rough = bnprobe.hessian_eigenvalues(model.float(), None, (x, y), 3)
    assert (abs(rough.values - expected(true, "largest", 3)) <= rough.error + 1e-4 * abs(true).max()).all()


def test_recurrent_layers_have_second_derivatives():
    model, (x, y) = Recurrent().double().eval(), batches((4, 5, 6), 1)[0]
    found = bnprobe.hessian_eigenvalues(model, None, (x.double(), y), 2)
    assert (found.error < 1e-3 * found.values[0]).all()


def test_nothing_changes():
    model, (x, y) = CASES["cnn"][0](), batches(CASES["cnn"][1], 1)[0]
    F.cross_entropy(model(x), y).backward()
    before = [one.detach().clone() for one in (*model.state_dict().values(), *(p.grad for p in model.parameters()))]
    stream = torch.get_rng_state()
    one, other = (bnprobe.hessian_eigenvalues(model, None, (x, y), 2) for _ in range(2))
    np.testing.assert_array_equal(one.values, other.values)

    def failing(net, pair):
        net.train(False)(pair[0].add_(1))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bnprobe.hessian_eigenvalues(model, failing, (x, y))
    after = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), stream)
    assert model.training


def test_what_does_not_converge_is_missing():
    matrix, vector = symmetric(400, 3, torch.linspace(0.99, 1, 400, dtype=torch.float64))
    found = bnprobe.hessian_eigenvalues(Point(vector), quadratic, (matrix, vector), 4, tolerance=1e-13, products=25)
    lost = np.isnan(found.values)
    assert lost.any()
    assert np.isnan(found.error[lost]).all()
    assert found.products < 80
    assert (abs(found.values[~lost] - 1) < 0.02).all()


class Hides(torch.autograd.Function):
    """A square whose backward hides from autograd that it depends on the input."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return (x * x * y).sum()

    @staticmethod
    def backward(ctx, gradient):
        x, y = ctx.saved_tensors
        return gradient * 2 * x * y.detach(), gradient * x * x


def test_derivatives_that_a_custom_function_hides_are_noticed():
    model = Point(torch.randn(8, dtype=torch.float64))
    with pytest.raises(NotMeasuredError, match="no symmetric matrix: a custom function"):
        bnprobe.hessian_eigenvalues(model, lambda net, _: Hides.apply(net.first, net.last), None)


def test_refusals():
    model, batch = mlp(4), batches((7, 6), 1)[0]
    with pytest.raises(ArgumentError, match="which must be one of largest, smallest, magnitude; got 'LA'"):
        bnprobe.hessian_eigenvalues(model, None, batch, which="LA")
    for k in (0, 80, 1.0, True):
        with pytest.raises(ArgumentError, match=rf"k must be an int from 1 to the number of parameters, 79; got {k!r}"):
            bnprobe.hessian_eigenvalues(model, None, batch, k)
    with pytest.raises(NotMeasuredError, match="the loss is nan: it has no Hessian"):
        bnprobe.hessian_eigenvalues(model, None, (batch[0] * torch.nan, batch[1]))
    with pytest.raises(NotMeasuredError, match="second derivatives that are not finite"):
        bnprobe.hessian_eigenvalues(Point(torch.zeros(4)), lambda net, _: net().abs().pow(1.5).sum(), None)


class Fused(torch.autograd.Function):
    """A loss whose kernel gives the gradient as well, as fused cross entropies do."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x)
        return (x**4).sum() * scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 4 * ctx.saved_tensors[0] ** 3, None


class Cubed(torch.autograd.Function):
    """As it should be."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3 * ctx.saved_tensors[0] ** 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fused_loss_without_second_derivatives_is_noticed(dtype):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    x = torch.randn(5, 3, dtype=dtype)
    for power in (1, 2):
        with pytest.raises(
            NotMeasuredError, match="the gradient changes otherwise than by the second derivatives: a c"
        ):
            bnprobe.hessian_eigenvalues(model, lambda net, batch, p=power: Fused.apply(net(batch), 1.0) ** p, x)
    found = bnprobe.hessian_eigenvalues(model, lambda net, batch: Cubed.apply(net(batch)).square().sum(), x)
    plain = bnprobe.hessian_eigenvalues(model, lambda net, batch: (net(batch) ** 3).square().sum(), x)
    np.testing.assert_allclose(found.values, plain.values, rtol=1e-4)
