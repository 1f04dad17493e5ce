"""A folded layer is the layer and its batch norm, and is only made where nothing else sees what lies between them."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnprobe.errors import ArgumentError, NotMeasuredError, SelectionError
from bnprobe.remedies import fold, freeze
from tests.cases import Residual, cnn, mlp

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def settled(model):
    """With statistics, gamma and beta as after a training, in eval mode."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.1, 4)
            for parameter in layer.parameters():
                nn.init.normal_(parameter)
    return model.eval()


@given(
    kind=st.sampled_from(CONVS),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    affine=st.sampled_from([{}, {"affine": False}, {"bias": False}]),
    padding=st.integers(0, 1),
)
def test_convolutions(kind, groups, bias, affine, padding):
    dims = 1 + CONVS.index(kind) % 3
    conv = kind(4, 8, 3, groups=groups, bias=bias, padding=padding).double()
    norm = settled(NORMS[dims - 1](8, **affine).double())
    x = torch.randn(2, 4, *[4] * dims, dtype=torch.float64)
    folded = fold(conv.eval(), norm, batch=x)
    torch.testing.assert_close(folded(x), norm(conv(x)), rtol=1e-12, atol=1e-12)
    assert type(folded) is kind
    assert (conv.bias is None) is not bias  # as it was


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [{}, {"affine": False}, {"bias": False}])
def test_linear_layers(bias, affine):
    linear = nn.Linear(4, 3, bias=bias).double().eval()
    norm = settled(nn.BatchNorm1d(3, **affine).double())
    x = torch.randn(5, 4).double()
    torch.testing.assert_close(fold(linear, norm, batch=x)(x), norm(linear(x)), rtol=1e-12, atol=1e-12)


def test_it_is_rounded_once():
    conv, norm = nn.Conv2d(4, 8, 3).half().eval(), settled(nn.BatchNorm2d(8).half())
    conv.weight.requires_grad_(False)
    folded = fold(conv, norm)
    wide = fold(copy.deepcopy(conv).double(), copy.deepcopy(norm).double())
    assert torch.equal(folded.weight, wide.weight.half())
    assert torch.equal(folded.bias, wide.bias.half())
    assert not folded.weight.requires_grad
    last = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last).eval()
    assert fold(last, norm.float()).weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("with_batch", [True, False])
def test_a_model(with_batch):
    model, x = settled(Residual()), torch.randn(4, 3, 6, 6)
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="as they are: 'bn2': no convolution .*feeds it alone"):
        folded = fold(model, batch=(x, 0) if with_batch else None)  # its layer is called twice
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    assert isinstance(folded.bn1, nn.Identity)
    assert isinstance(folded.bn2, nn.BatchNorm2d)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert not any(one.training for one in folded.modules())


def test_linear_layers_of_a_model_need_a_batch():
    model = settled(mlp())
    folded = fold(model, batch=torch.randn(3, 6))
    assert [type(one) for one in folded[:3]] == [nn.Linear, nn.Identity, nn.Sigmoid]
    assert isinstance(folded[4], nn.Identity)
    with pytest.raises(
        SelectionError, match=r"can be folded: '1': no convolution .* alone \(linear layers need batch=\)"
    ):
        fold(model)
    sequences = settled(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)))  # [N, T, F]: T is normalized
    with pytest.raises(SelectionError, match="can be folded"):
        fold(sequences, batch=torch.randn(3, 5, 4))


class Apart(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.sum()


class Bad(nn.Module):
    """Ways in which the output of a convolution is used besides by its batch norm."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), how
        self.other = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        h = self.conv(x)
        return getattr(self, self.how)(x, h)

    def summed(self, x, h):
        return self.norm(h) + h

    def returned(self, x, h):
        return self.norm(h), h

    def in_place(self, x, h):
        return self.norm(h.relu_())

    def method(self, x, h):
        return self.norm(h) * h.mean()

    def indexed(self, x, h):
        return self.norm(h)[:, 0] + h[:, 0]

    def normalized_twice(self, x, h):
        return self.norm(h) + self.norm(x)

    def called_twice(self, x, h):
        return self.norm(h) + self.conv(x + 1)

    def read(self, x, h):
        return self.norm(h) + self.conv.weight.sum()

    def statistics_read(self, x, h):
        return self.norm(h) + self.norm.running_mean.sum()

    def in_a_function_of_its_own(self, x, h):
        return self.norm(h) + Apart.apply(h)

    def viewed(self, x, h):
        return self.norm(h.flatten(2).unflatten(2, h.shape[2:]))


HOW = [name for name in vars(Bad) if not name.startswith("_") and name != "forward"]


@pytest.mark.parametrize("with_batch", [True, False])
@pytest.mark.parametrize("how", HOW)
def test_only_where_nothing_else_uses_it(how, with_batch):
    model = settled(Bad(how))
    with pytest.raises(SelectionError, match=r"'norm': no convolution .*feeds it alone"):
        fold(model, batch=torch.randn(2, 3, 4, 4) if with_batch else None)


def test_numpy_sees_it():
    class Outside(Bad):
        def in_numpy(self, _, h):
            return self.norm(h) + torch.from_numpy(h.detach().numpy()).sum()

    with pytest.raises(SelectionError, match=r"'norm': no convolution .*feeds it alone"):
        fold(settled(Outside("in_numpy")), batch=torch.randn(2, 3, 4, 4))


class Asks(nn.Module):
    """Looks at shapes only; decides by them."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, pixels):
        h = self.conv(pixels)
        if h.shape[1] != 3 or h.dim() != 4 or h.size(0) == 0:
            raise ValueError
        return {"out": [self.norm(h)], "count": h.shape[0]}


def test_what_torch_fx_cannot_follow_needs_a_batch():
    model, x = settled(Asks()), torch.randn(2, 3, 4, 4)
    with pytest.raises(NotMeasuredError, match=r"torch.fx cannot follow Asks \(.*\); batch= shows what feeds what"):
        fold(model)
    folded = fold(model, batch={"pixels": x})
    torch.testing.assert_close(folded(x)["out"][0], model(x)["out"][0])
    assert isinstance(folded.norm, nn.Identity)


def test_what_is_not_pytorchs_own_is_left():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    def hooked(layer):
        layer.register_forward_hook(lambda *_: None)
        return layer

    convs = {
        "Standardized has a forward of its own": Standardized(3, 3, 1),
        "Conv2d: it has hooks": hooked(nn.Conv2d(3, 3, 1)),
        "Conv2d: it has parametrizations": nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)),
    }
    x = torch.randn(2, 3, 4, 4)
    for why, conv in convs.items():
        model = settled(nn.Sequential(conv, nn.BatchNorm2d(3)))
        with pytest.raises(ArgumentError, match=f"cannot fold BatchNorm2d into .*: .*{why}"):
            fold(model[0], model[1])
        for batch in (None, x):
            with pytest.raises(SelectionError, match="can be folded: '1'"):
                fold(model, batch=batch)


def test_frozen_layers_fold_in_a_model_in_eval_mode():
    model = settled(freeze(cnn()))
    assert isinstance(fold(model)[1], nn.Identity)


def test_training_mode_is_refused():
    with pytest.raises(ArgumentError, match=r"fold needs eval mode; in training mode: the model, bn1, bn2"):
        fold(Residual())
    model = Residual().eval()
    model.bn2.train()
    with pytest.raises(ArgumentError, match=r"in training mode: bn2$"):
        fold(model)
    with pytest.raises(ArgumentError, match="by the statistics of a batch the gain is not fixed"):
        fold(model.shared, model.bn2)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((nn.ReLU(), nn.BatchNorm1d(3)), "ReLU is no convolution or linear layer"),
        ((nn.Linear(2, 3), nn.LayerNorm(3)), "LayerNorm is no batch norm"),
        ((nn.Linear(2, 3), nn.BatchNorm1d(4)), "3 channels come, 4 are normalized"),
        ((nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False)), "it keeps no running statistics"),
    ],
)
def test_pairs_that_do_not_fit(layers, message):
    with pytest.raises(ArgumentError, match=message):
        fold(*(layer.eval() for layer in layers))


def test_parity_is_checked():
    model, x = settled(Residual()), torch.randn(4, 3, 6, 6)
    with pytest.raises(NotMeasuredError, match=r"the output of the folded model differs by .* \(tolerance 1e-12\)"):
        fold(model, batch=x, tolerance=1e-12)
    with pytest.raises(NotMeasuredError, match="the output on the batch is not finite"):
        fold(model, batch=x / 0)

    with pytest.raises(SelectionError, match="no batch norm layer in Linear"):
        fold(nn.Linear(2, 2).eval())
