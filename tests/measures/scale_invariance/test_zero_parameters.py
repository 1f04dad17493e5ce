"""Parameters that are zero, as shifts are at the beginning, make others look invariant that are so only with them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnprobe
from benchmarks.models import resnet


class Written(nn.Module):
    """All in one module: the weight is invariant alone, though the shift beside it is zero and has a gradient."""

    def __init__(self):
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(16, 6)), nn.Parameter(torch.ones(16))
        self.shift, self.head = nn.Parameter(torch.zeros(16)), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(F.batch_norm(x @ self.weight.T, None, None, self.gain, self.shift, True).relu())


def perceptron():
    norms = (nn.BatchNorm1d(16), nn.BatchNorm1d(8))
    return nn.Sequential(
        nn.Linear(6, 16, bias=False), norms[0], nn.ReLU(), nn.Linear(16, 8, bias=False), norms[1], nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def shifted():
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))
    nn.init.zeros_(model[0].bias)
    return model


@pytest.mark.parametrize(
    ("make", "invariant", "only_with"),
    [
        # Behind a ReLU and a linear map stands the next batch norm: gamma and beta of the first may be scaled together.
        (perceptron, {"0.weight", "3.weight"}, {"1.weight": "1.bias"}),
        (Written, {"weight"}, {}),
        # Layer norm takes out the scale of W x + b; of W x alone only while b is zero.
        (shifted, set(), {"0.weight": "0.bias"}),
    ],
)
def test_what_holds_only_with_what_is_zero_now_is_not_invariant(make, invariant, only_with):
    torch.manual_seed(0)
    found = bnprobe.scale_invariance(make(), None, (torch.randn(32, 6), torch.randint(3, (32,))))
    assert found.parameters == invariant
    for name, other in only_with.items():
        assert (found[name].verdict, found[name].why) == ("not", f"only together with {other}, now zero")


def test_a_network_as_it_is_made_costs_few_passes():
    torch.manual_seed(0)
    model = resnet((8, 16), 1)
    batch = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    found = bnprobe.scale_invariance(model, None, batch)
    convolutions = {name for name, one in model.named_parameters() if one.dim() == 4}
    assert found.parameters == convolutions
    assert found.passes <= 6
