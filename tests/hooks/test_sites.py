import pytest
import torch
from torch import nn

from bnprobe.errors import ArgumentError, SelectionError
from bnprobe.hooks.sites import find_sites, named_layers, unwrap
from tests.cases import Residual, cnn, mlp


class LlamaRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = 1e-6

    def forward(self, x):
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


class QuickGELUActivation(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def names(sites):
    return [site.name for site in sites]


def test_default_is_norms_leaves_with_parameters_and_nonlinearities():
    model = nn.Sequential(cnn(), nn.Dropout(), nn.Softmax(-1), nn.Flatten(), QuickGELUActivation(), LlamaRMSNorm(4))
    found = find_sites(model)
    assert names(found) == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.8", "0.9", "4", "5"]
    assert [site.family for site in found] == [
        "conv", "batch_norm", "nonlinearity", "conv", "group_norm", "nonlinearity", "layer_norm", "linear",
        "nonlinearity", "rms_norm",
    ]  # fmt: skip


def test_names_are_those_of_named_modules():
    model = Residual()
    assert dict(named_layers(model)) == dict(model.named_modules())


@pytest.mark.parametrize(
    "wrap", [lambda m: nn.DataParallel(m), lambda m: torch.compile(m), lambda m: torch.optim.swa_utils.AveragedModel(m)]
)
def test_wrappers_are_looked_through(wrap):
    plain = mlp()
    wrapped = wrap(plain)
    assert names(find_sites(wrapped)) == names(find_sites(plain))
    assert type(unwrap(wrapped)) is nn.Sequential


def test_wrappers_inside_are_looked_through():
    model = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(2, 2))), nn.Linear(2, 2))
    assert names(find_sites(model)) == ["0.0", "1"]


def test_an_attribute_called_module_is_no_wrapper():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    assert names(find_sites(Holder())) == ["module"]


def test_choice_by_glob_class_predicate_and_lists():
    model = nn.ModuleDict({"features": cnn(), "head": mlp()})
    assert names(find_sites(model, "features.[01]")) == ["features.0", "features.1"]
    assert names(find_sites(model, nn.BatchNorm2d)) == ["features.1"]
    assert names(find_sites(model, [nn.GroupNorm, "head.1"])) == ["features.4", "head.1"]
    assert names(find_sites(model, lambda name, module: isinstance(module, nn.LayerNorm))) == ["features.8"]
    assert names(find_sites(model, "features")) == ["features"]


def test_nothing_matched_lists_near_names():
    model = nn.ModuleDict({"layer1": mlp(), "layer2": mlp()})
    with pytest.raises(SelectionError, match=r"'layr1\.1' matches no layer; near names: .*layer1\.1"):
        find_sites(model, "layr1.1")
    with pytest.raises(SelectionError, match="Conv3d matches no layer; the model has"):
        find_sites(model, ["layer1.1", nn.Conv3d])
    with pytest.raises(SelectionError, match=r"layers=.*lambda.* found in ModuleDict"):
        find_sites(model, lambda name, module: False)


def test_a_model_without_layers():
    with pytest.raises(
        SelectionError, match="no layer with parameters, normalization or nonlinearity found in Identity"
    ):
        find_sites(nn.Identity())


@pytest.mark.parametrize("layers", [3, [3], 2.5])
def test_wrong_choice(layers):
    with pytest.raises(ArgumentError, match="layers"):
        find_sites(mlp(), layers)


@pytest.mark.parametrize(
    ("module", "shape", "axis"),
    [
        (nn.BatchNorm1d(4), (3, 4), 1),
        (nn.BatchNorm1d(4), (3, 4, 5), 1),
        (nn.BatchNorm2d(4), (3, 4, 5, 5), 1),
        (nn.Conv1d(2, 4, 1), (3, 4, 5), 1),
        (nn.Conv2d(2, 4, 1), (4, 5, 5), 0),
        (nn.ConvTranspose2d(2, 4, 1), (3, 4, 5, 5), 1),
        (nn.Linear(2, 4), (3, 5, 4), 2),
        (nn.LayerNorm(4), (3, 5, 4), 2),
        (nn.LSTM(4, 4), (3, 5, 4), 2),
        (nn.Embedding(9, 4), (3, 5, 4), 2),
        (nn.ReLU(), (3, 4, 5, 5), 1),
        (nn.ReLU(), (3, 4), 1),
        (nn.ReLU(), (4,), None),
        (nn.ReLU(), (), None),
    ],
)
def test_channel_axis(module, shape, axis):
    (site,) = find_sites(nn.ModuleDict({"it": module}), "it")
    assert site.channel_axis(torch.zeros(shape)) == axis


def test_channels_first_layer_norm():
    class LayerNorm2d(nn.LayerNorm):
        pass

    (site,) = find_sites(LayerNorm2d(4))
    assert site.channel_axis(torch.zeros(2, 4, 7, 7)) == 1
    assert site.channel_axis(torch.zeros(2, 7, 7, 4)) == 3


def test_description():
    (site,) = find_sites(nn.ModuleDict({"bn": nn.BatchNorm2d(4, eps=1e-3, momentum=0.2)}))
    layer = site.describe(feeds=["x"], observed=True)
    assert (layer.name, layer.kind, layer.family, layer.channels) == ("bn", "BatchNorm2d", "batch_norm", 4)
    assert (layer.eps, layer.momentum, layer.feeds, layer.observed, layer.why) == (1e-3, 0.2, ("x",), True, "")


def test_a_lazy_layer_is_described_as_it_has_become():
    model = nn.Sequential(nn.LazyBatchNorm1d())
    (site,) = find_sites(model)
    model(torch.randn(4, 7))
    assert (site.describe().kind, site.describe().channels) == ("BatchNorm1d", 7)


def test_parametrised_layers_stay_one_leaf():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Tanh())
    assert names(find_sites(model)) == ["0", "1"]


def test_a_property_that_raises_is_an_attribute_that_is_not_there():
    class Strange(nn.Linear):
        @property
        def eps(self):
            raise RuntimeError("ask me later")

    (site,) = find_sites(Strange(2, 3))
    assert site.describe().eps is None
    assert site.channels == 3
