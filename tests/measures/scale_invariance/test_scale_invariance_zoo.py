"""On many architectures the parameters found are those that a derivation by hand says."""

import pytest
import torch
from invariance_zoo import ZOO, case

import bnprobe


@pytest.mark.parametrize("dtype", [None, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ZOO)
def test_the_parameters_are_those_derived_by_hand(name, dtype):
    model, batch, (invariant, groups, shifted) = case(name)
    found = bnprobe.scale_invariance(model, None, batch, dtype=dtype)
    assert found.parameters == invariant
    assert found.groups == groups
    assert found.translation_invariant == shifted
