"""Numbers that break: non-finite statistics (N11), gains that explode (N22), buffers of too few bits (N23)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.doctor.data import CNN, batches, fit, flat, images, mlp, pictures, shuffled, trained_cnn, trained_mlp
from benchmarks.doctor.setup import sick

# N11 -----------------------------------------------------------------------------------------------------------------


@sick("N11", case="C84", half="tune", accepted={"N02"})
def overflow_stays_in_statistics(seed: int) -> dict[str, Any]:
    """One batch overflowed; the loss scaler skipped the step and not the statistics. Training goes on and looks fine."""
    model = trained_cnn(seed).train()
    loader = pictures(seed)
    with torch.no_grad():
        bad = loader[0][0].clone()
        bad[3, 1, 5, 5] = torch.inf
        model(bad)
        for x, _ in loader:
            model(x)
    return {"model": model, "loader": loader}


class OwnBatchNorm(nn.Module):
    """Batch norm as people write it themselves: unbiased variance, no guard for a batch of one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(var, 0.1)
        return (x - mean) * (var + 1e-5).rsqrt() * self.weight + self.bias


@sick("N11", case="C40", half="judge", accepted={"N02", "N05"})
def variance_of_one_value(seed: int) -> dict[str, Any]:
    """The last batch of the epoch held one point, whose unbiased variance is NaN; its step was skipped as not finite."""
    model = fit(mlp(norm=OwnBatchNorm), shuffled(*flat(seed), 32, seed), 300)
    with torch.no_grad():
        model(flat(seed)[0][:1])
    return {"model": model.eval(), "loader": batches(*flat(seed, 24 * 32, "val"), 32)}


@sick("N11", case="C84", half="judge", accepted={"N02"})
def missing_value_in_a_batch(seed: int) -> dict[str, Any]:
    """One missing value, NaN, in one point of a batch that was noticed and left out of training only after the forward."""
    model = trained_mlp(seed).train()
    bad = flat(seed)[0][:32].clone()
    bad[7, 2] = torch.nan
    with torch.no_grad():
        model(bad)
    return {"model": model.eval(), "loader": batches(*flat(seed, 24 * 32, "val"), 32)}


@sick("N11", case="C67", half="tune", accepted={"N02", "N22"})
def task_arithmetic_of_variances(seed: int) -> dict[str, Any]:
    """Weights extrapolated away from another model, buffers with them: some variances come out below zero."""
    model = trained_cnn(seed).eval()
    other = copy.deepcopy(model).train()
    x, y = images(seed, 1024, "other", noise=1.2)
    fit(other, shuffled(2 * x, y, 32, seed), 60, lr=3e-4)
    state = {
        name: value + 1.5 * (value - other.state_dict()[name]) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return {"model": model, "loader": pictures(seed, "val")}


# N22 -----------------------------------------------------------------------------------------------------------------


def _points_with_sensors(seed: int, n: int, part: str, spread: float) -> list[Any]:
    """Points of which the last four features carry nothing but `spread` of noise."""
    x, y = flat(seed, n, part)
    x[:, -4:] = 1.0 + spread * torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return batches(x, y, 32)


@sick("N22", case="C34", half="tune", accepted={"N02", "N26"})
def sensors_silent_in_training(seed: int) -> dict[str, Any]:
    """Four features were constant in training, so batch norm at the input multiplies whatever they do now by hundreds."""
    model = nn.Sequential(nn.BatchNorm1d(16), mlp())
    fit(model, _points_with_sensors(seed, 1024, "train", 1e-4), 300)
    return {"model": model.eval(), "loader": _points_with_sensors(seed, 768, "val", 0.3)}


def _with_alpha(loader: list[Any], seed: int, spread: float) -> list[Any]:
    draw = torch.Generator().manual_seed(seed)
    return [(torch.cat([x, 1 + spread * torch.randn(len(x), 1, 16, 16, generator=draw)], 1), y) for x, y in loader]


@sick("N22", case="C34", half="judge", accepted={"N02", "N26"})
def alpha_channel_opaque_in_training(seed: int) -> dict[str, Any]:
    """A fourth channel that was opaque, hence constant, in all training pictures; batch norm stands at the input."""
    model = nn.Sequential(nn.BatchNorm2d(4), CNN(inner=4))
    fit(model, _with_alpha(pictures(seed), seed, 1e-4), 150)
    return {"model": model.eval(), "loader": _with_alpha(pictures(seed, "val"), seed + 1, 0.1)}


# N23 -----------------------------------------------------------------------------------------------------------------


class LowPrecision(nn.Module):
    """Batch norm wholly in a narrow type between layers of float32, as sharded mixed precision casts it."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = norm.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.to(self.dtype)).to(x.dtype)
        return y


def _bright(batch: Any) -> Any:
    return batch[0] + 3.0, batch[1]


@sick("N23", case="C85", half="tune", accepted={"N02"})
def statistics_in_bfloat16(seed: int) -> dict[str, Any]:
    """Small momentum and buffers of eight bits: increments are below half a unit in the last place, means stop half way."""
    model = CNN(lambda channels: LowPrecision(nn.BatchNorm2d(channels, momentum=0.01), torch.bfloat16))
    x, y = images(seed)
    fit(model, shuffled(x + 3.0, y, 32, seed), 300)
    return {"model": model, "loader": [_bright(one) for one in pictures(seed)]}


@sick("N23", case="C85", half="judge", accepted={"N02"})
def statistics_of_points_in_bfloat16(seed: int) -> dict[str, Any]:
    """The same for points, with a batch norm at the input and features that are far from zero."""
    norm = LowPrecision(nn.BatchNorm1d(16, momentum=0.01), torch.bfloat16)
    model = nn.Sequential(norm, mlp())
    x, y = flat(seed)
    fit(model, shuffled(x + 5.0, y, 32, seed), 400)
    return {"model": model, "loader": batches(x[:768] + 5.0, y[:768], 32)}
