"""Products with a Jacobian are those with the matrix that torch writes out in double precision."""

import warnings
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn

import bnprobe
from bnprobe.errors import NotMeasuredError
from bnprobe.hooks.segments import cut, whole
from bnprobe.measures.jacobian.operator import SegmentOperator
from bnprobe.measures.untouched import untouched
from tests.cases import CASES
from tests.measures.jacobian.oracle import in_double, jacobian


class Hidden(torch.autograd.Function):
    """Its backward pass hides from autograd that it depends on the gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(g.detach().numpy() * np.exp(x.detach().numpy()))


class Honest(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].exp()


class Forward(Hidden):
    """As hidden, but with a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x.exp()

    @staticmethod
    def jvp(ctx, t):
        return t * ctx.saved_tensors[0].exp()


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x * 0.5)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)

    def forward(self, x):
        return self.encoder(x)


class Stacked(nn.Module):
    """Two inputs, two outputs."""

    def forward(self, x, y):
        return x * y.sum(1, keepdim=True), y**2


MODELS = {
    **CASES,
    "attention": (Attention, (2, 4, 8)),
    "in place at once": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 4)), (3, 5)),
    "max pool": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Softmax(1)), (2, 2, 6, 6)),
    "honest function": (lambda: nn.Sequential(nn.Linear(5, 4), Call(Honest)), (3, 5)),
    "forward function": (lambda: nn.Sequential(nn.Linear(5, 4), Call(Forward)), (3, 5)),
}


def operator_of(model, x, layer=None, per_sample=False):
    segment = cut(model, x, layer)
    operator = SegmentOperator(segment, lambda: torch.manual_seed(3))
    operator.split(per_sample)
    return operator


@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_the_matrix(name):
    make, shape = MODELS[name]
    model, x = in_double(make()).train(name != "lstm"), torch.randn(shape, dtype=torch.float64)
    matrix = jacobian(model, x)
    with untouched(model):
        operator = operator_of(model, x)
        (m, n), generator = operator.shape, torch.Generator().manual_seed(0)
        v = torch.randn(1, n, 3, generator=generator, dtype=torch.float64)
        u = torch.randn(1, m, 3, generator=generator, dtype=torch.float64)
        assert (m, n) == tuple(matrix.shape)
        torch.testing.assert_close(operator.matmat(v)[0], matrix @ v[0])
        torch.testing.assert_close(operator.rmatmat(u)[0], matrix.T @ u[0])


@pytest.mark.parametrize("name", ["cnn", "mlp", "residual"])
def test_one_sample_at_a_time_in_one_pass(name):
    make, shape = MODELS[name]
    model, x = in_double(make()).eval(), torch.randn(shape, dtype=torch.float64)
    operator = operator_of(model, x)
    assert not operator.interacts()
    operator.split(True)
    v = torch.randn(operator.samples, operator.shape[1], 2, dtype=torch.float64)
    u = torch.randn(operator.samples, operator.shape[0], 2, dtype=torch.float64)
    forth, back = operator.matmat(v), operator.rmatmat(u)
    for i in range(len(x)):
        matrix = jacobian(model, x[i : i + 1])
        torch.testing.assert_close(forth[i], matrix @ v[i])
        torch.testing.assert_close(back[i], matrix.T @ u[i])


@pytest.mark.parametrize(
    ("make", "shape", "interacts"),
    [
        (lambda: nn.BatchNorm1d(3), (5, 3), True),
        (lambda: nn.BatchNorm1d(3).eval(), (5, 3), False),
        (lambda: nn.LayerNorm(3), (5, 3), False),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 1)), (9, 3), True),
        (lambda: nn.Flatten(0), (5, 3), True),  # the first axis of the output counts no samples
        (lambda: nn.BatchNorm2d(3), (1, 3, 4, 4), False),  # one sample has nobody to interact with
        (lambda: nn.GroupNorm(1, 4), (17, 4, 2), False),
    ],
)
def test_whether_samples_interact_is_measured(make, shape, interacts):
    assert operator_of(make(), torch.randn(shape)).interacts() is interacts


def test_interaction_of_a_single_pair_is_seen():
    class Leak(nn.Module):
        def forward(self, x):
            y = 2 * x
            y[self.reader] = y[self.reader] + 1e-20 * x[self.source]
            return y

    leak = Leak()
    for batch in (2, 6, 7, 13):
        for leak.source, leak.reader in permutations(range(batch), 2):
            assert operator_of(leak, torch.randn(batch, 2)).interacts()


def test_several_inputs_and_outputs_stand_one_behind_the_other():
    x, y = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    operator = SegmentOperator(whole(Stacked(), (x, y)), lambda: None)
    assert not operator.interacts()
    operator.split(True)
    assert operator.shape == (6, 6)
    matrix = operator.rmatmat(torch.eye(6, dtype=torch.float64).expand(3, 6, 6)).mT
    torch.testing.assert_close(matrix[0, :2, :2], torch.eye(2).double() * y[0].sum())
    torch.testing.assert_close(matrix[0, :2, 2:], x[0][:, None].expand(2, 4))
    torch.testing.assert_close(matrix[0, 2:, 2:], torch.diag(2 * y[0]))


def test_a_function_that_hides_its_derivative_is_found_out():
    operator = operator_of(nn.Sequential(nn.Linear(5, 4), Call(Hidden)), torch.randn(3, 5))
    with pytest.raises(NotMeasuredError, match="neither second nor forward derivatives"):
        operator.matmat(torch.randn(1, 15, 1))


def test_a_function_with_a_wrong_derivative_is_found_out():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.exp()

        @staticmethod
        def backward(ctx, g):
            return g.detach() * ctx.saved_tensors[0].exp()

        @staticmethod
        def jvp(ctx, t):
            return t * 3

    operator = operator_of(nn.Sequential(nn.Linear(5, 4), Call(Wrong)), torch.randn(3, 5))
    with pytest.raises(NotMeasuredError, match="contradict one another"):
        operator.matmat(torch.randn(1, 15, 1))


def test_functions_without_vmap_go_one_by_one_and_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator = operator_of(nn.Sequential(nn.Linear(5, 4), Call(Hidden)), torch.randn(3, 5))
        assert operator.rmatmat(torch.randn(1, 12, 4)).shape == (1, 15, 4)


@pytest.mark.parametrize(
    ("model", "x", "layer", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.zeros(0, 2), "1", "holds no values"),
        (nn.Identity(), torch.zeros(0, 2), None, "holds no values"),
    ],
)
def test_what_has_no_jacobian_is_said(model, x, layer, message):
    with pytest.raises(NotMeasuredError, match=message):
        operator_of(model, x, layer)


def test_no_dependence_is_said():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.a(x) + self.b(x)

    with pytest.raises(NotMeasuredError, match="the output of 'b' does not depend on the input of 'a'"):
        operator_of(Apart(), torch.randn(3, 2), ("a", "b"))


def test_modes_of_the_user_do_not_matter():
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Tanh()), torch.randn(4, 3)
    expected = operator_of(model, x).rmatmat(torch.ones(1, 8, 2))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(operator_of(model, x.clone()).rmatmat(torch.ones(1, 8, 2)), expected)


def test_a_pooling_window_of_padding_alone_ends_no_process():
    """Its gradient would be written outside of the tensor."""
    layer, x = nn.MaxPool2d(2, 1, 1, dilation=2), torch.randn(2, 2, 1, 3)
    assert not layer(x).isfinite().all()
    for method in (None, "dense", "Lanczos"):
        with pytest.raises(NotMeasuredError, match="max pooling has values that are not finite"):
            bnprobe.spectrum(layer, x, k=1, method=method)
