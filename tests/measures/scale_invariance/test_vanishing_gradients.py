"""Layers whose gradient is nothing but rounding: two values a channel, a channel that never changes, kinks at six."""

import pytest
import torch
from torch import nn

import bnprobe


@pytest.mark.parametrize("samples", [2, 16])
def test_a_channel_that_is_always_the_same_is_undecided_and_the_others_are_invariant(samples):
    # Behind batch norm over two values, a sign, the gradient vanishes up to epsilon: its direction says nothing.
    torch.manual_seed(0)
    linear, norm = nn.Linear(5, 4, bias=False).double(), nn.BatchNorm1d(4, eps=1e-3).double()
    with torch.no_grad():
        linear.weight[1, :4] = 0  # reads the constant input alone
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    net = nn.Sequential(linear, norm, nn.Tanh(), nn.Linear(4, 3).double())
    x = torch.randn(samples, 5, dtype=torch.float64)
    x[:, 4] = 1

    measured = bnprobe.scale_invariance(net, None, (x, torch.randint(3, (samples,))))

    rows = measured.frame().query("parameter == '0.weight' and channel == channel")
    verdicts = dict(zip(rows["channel"].astype(int), rows["verdict"], strict=True))
    assert verdicts == {channel: "undecided" if channel == 1 else "scale-invariant" for channel in range(4)}
    assert rows.loc[rows["channel"] == 1, "why"].item() == "its weights or its gradient are exactly zero"
    assert not measured.parameters & {"1.weight", "1.bias", "3.weight", "3.bias"}


class Inverted(nn.Module):
    """An inverted residual block with ReLU6."""

    def __init__(self, inputs, outputs):
        super().__init__()
        hidden = 4 * inputs
        self.residual = inputs == outputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x):
        return x + self.body(x) if self.residual else self.body(x)


def test_convolutions_of_a_mobile_network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), Inverted(8, 8), Inverted(8, 16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    batch = (torch.randn(8, 3, 12, 12), torch.randint(5, (8,)))
    convolutions = {name for name, one in net.named_parameters() if one.dim() == 4}
    assert bnprobe.scale_invariance(net, None, batch).parameters == convolutions
