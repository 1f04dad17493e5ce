"""Recipes of layers."""

import pytest
import torch
from hypothesis import given, settings

from bnprobe.errors import ArgumentError
from bnprobe.testing.strategies import NormLayer, norm_layers


@settings(max_examples=40)
@given(norm_layers())
def test_layers_have_their_settings_and_print_as_code(recipe):
    module = recipe.module()
    assert type(module).__name__ == recipe.kind
    for name, value in recipe.settings.items():
        assert getattr(module, name) == value
    again = eval(repr(recipe), {"NormLayer": NormLayer}).module()
    for one, other in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_unknown_layer_is_refused():
    with pytest.raises(ArgumentError, match="kind must be one of BatchNorm1d"):
        NormLayer("SwitchableNorm", 3)
