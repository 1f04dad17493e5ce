"""Unusual numbers, precisions and deployed copies that are right."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import update_bn

from benchmarks.doctor.data import (
    CNN,
    Batch,
    batches,
    cross_entropy,
    fit,
    flat,
    images,
    mlp,
    pictures,
    shuffled,
    trained_cnn,
    trained_mlp,
)  # fmt: skip
from benchmarks.doctor.healthy_nets import cooled, learned, resnet, stepper, stream
from benchmarks.doctor.setup import healthy


def _low(model: nn.Module, batch: Batch) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(batch[0]).float()  # type: ignore[no-any-return]


def _low_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(_low(model, batch), batch[1])


def _autocast(seed: int) -> dict[str, Any]:
    x, y = images(seed)
    model = fit(CNN(), shuffled(x, y, 32, seed), 100, loss=_low_loss)
    return {"model": model, "loader": stream(x, y, 32, seed), "forward": _low, "loss": _low_loss}


@healthy(case="H18", half="tune", tempts=("N23", "N11"))
def trained_under_autocast(seed: int) -> dict[str, Any]:
    """Activations in bfloat16, statistics in float32."""
    return _autocast(seed)


@healthy(case="F06", half="judge", tempts=("N01", "N23"))
def served_under_autocast(seed: int) -> dict[str, Any]:
    """Eval mode in bfloat16: kernels of other batch sizes round differently, by a thousandth and more."""
    made = _autocast(seed)
    return {**made, "model": made["model"].eval(), "loader": pictures(seed, "val")}


@healthy(case="H18", half="judge", tempts=("N23", "N27"))
def half_precision_weights_full_precision_norms(seed: int) -> dict[str, Any]:
    """Weights in bfloat16, norms with their buffers in float32."""
    model = trained_cnn(seed)
    for one in (model.conv1, model.conv2):
        one.bfloat16()

    def call(model: nn.Module, batch: Batch) -> Tensor:
        h = F.relu(model.bn1(model.conv1(batch[0].bfloat16()).float()))
        return model.head(F.relu(model.bn2(model.conv2(h.bfloat16()).float())).mean((2, 3)))

    return {"model": model.eval(), "loader": pictures(seed, "val"), "forward": call,
            "loss": lambda model, batch: F.cross_entropy(call(model, batch), batch[1])}  # fmt: skip


@healthy(case="plain", half="tune", tempts=("N23", "N11"))
def double_precision(seed: int) -> dict[str, Any]:
    """Everything in float64."""
    x, y = images(seed)
    model = trained_cnn(seed).double()
    return {"model": model, "loader": stream(x.double(), y, 32, seed)}


@healthy(case="H19", half="judge", tempts=("N31",))
def bias_before_norm_and_decay_on_everything(seed: int) -> dict[str, Any]:
    """A redundant bias and weight decay on gains: common, and harmless."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    x, y = images(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    fit(model, shuffled(x, y, 32, seed), 250, optimizer=optimizer)
    return {"model": model, "loader": stream(x, y, 32, seed), "optimizer": optimizer}


@healthy(case="H19", half="tune", tempts=("N31", "N22"))
def decay_on_gains_by_sgd(seed: int) -> dict[str, Any]:
    """The usual recipe: SGD with weight decay 5e-4 on all parameters."""
    model = resnet()
    x, y = images(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    cooled(model, shuffled(x, y, 32, seed), 150, optimizer=optimizer)
    loader = stream(x, y, 32, seed)
    return {"model": model, "loader": loader, "optimizer": optimizer, "step": stepper(model, optimizer, loader)}


def _decaying(model: nn.Module, seed: int, steps: int, lr: float = 3e-3) -> nn.Module:
    """Train with a cosine schedule, so that slow statistics catch up with the weights."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return fit(model, shuffled(*flat(seed), 64, seed), steps, optimizer=optimizer, after=schedule.step)


@healthy(case="H20", half="judge", tempts=("N10", "N02"))
def small_momentum_long_training(seed: int) -> dict[str, Any]:
    """Momentum 0.01 over 1200 steps with a decaying learning rate."""
    model = _decaying(mlp(norm=lambda width: nn.BatchNorm1d(width, momentum=0.01)), seed, 1200)
    return {"model": model.eval(), "loader": batches(*flat(seed), 64)}


@healthy(case="H20", half="tune", tempts=("N10", "N02"))
def smaller_momentum_longer_training(seed: int) -> dict[str, Any]:
    """Momentum 0.003 over 2000 steps; statistics remember the last sixth of them."""
    model = _decaying(mlp(norm=lambda width: nn.BatchNorm1d(width, momentum=0.003)), seed, 2000)
    return {"model": model, "loader": stream(*flat(seed), 64, seed)}


@healthy(case="plain", half="judge", tempts=("N10",))
def cumulative_average(seed: int) -> dict[str, Any]:
    """Momentum None in the last epochs at a small learning rate."""
    model = fit(CNN(), shuffled(*images(seed), 32, seed), 150)
    for one in (model.bn1, model.bn2):
        one.reset_running_stats()
        one.momentum = None
    fit(model, shuffled(*images(seed), 32, seed), 40, lr=1e-4)
    return {"model": model, "loader": stream(*images(seed), 32, seed)}


@healthy(case="plain", half="tune", tempts=("N10",))
def large_momentum_with_large_batches(seed: int) -> dict[str, Any]:
    """Momentum 0.3, and 64 pictures that each estimate well."""
    model = fit(CNN(lambda channels: nn.BatchNorm2d(channels, momentum=0.3)), shuffled(*images(seed), 64, seed), 100)
    return {"model": model, "loader": stream(*images(seed), 64, seed)}


@healthy(case="F07", half="judge", tempts=("N02", "N10"))
def unbiased_variance_of_one_batch(seed: int) -> dict[str, Any]:
    """Statistics of one batch at momentum 1: the stored variance is n/(n-1) of what the batch had."""
    model = trained_mlp(seed)
    norms = [one for one in model if isinstance(one, nn.BatchNorm1d)]
    for one in norms:
        one.momentum = 1.0
    with torch.no_grad():
        model(flat(seed, 1024)[0])
    for one in norms:
        one.momentum = 0.1
    return {"model": model.eval(), "loader": batches(*flat(seed), 64)}


@healthy(case="F07", half="tune", tempts=("N02", "N04"))
def unbiased_variance_of_small_batches(seed: int) -> dict[str, Any]:
    """Statistics averaged over batches of 16 values: stored variances are 16/15 of biased ones."""
    model = trained_mlp(seed, size=64)
    update_bn([x for x, _ in batches(*flat(seed), 16)], model)
    return {"model": model.eval(), "loader": batches(*flat(seed), 16)}


@healthy(case="F04", half="judge", tempts=("N01",))
def kernels_that_round_differently(seed: int) -> dict[str, Any]:
    """A wider net in float32, whose convolutions take other paths for one picture than for many."""
    made = learned(resnet(width=24, blocks=3), seed, steps=90)
    return {"model": made["model"].eval(), "loader": pictures(seed, "val"), "intent": "serve"}


@healthy(case="F05", half="tune", tempts=("N01", "N21"))
def encoder_with_large_outputs(seed: int) -> dict[str, Any]:
    """Group norm, and outputs that ride on a large constant: rounding is relative to it."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = CNN(lambda channels: nn.GroupNorm(4, channels))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + 100.0  # type: ignore[no-any-return]

    made = learned(Encoder(), seed, steps=100)
    return {"model": made["model"].eval(), "loader": pictures(seed, "val")}


def _deployed(seed: int, make: Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]) -> dict[str, Any]:
    model, loader = trained_cnn(seed).eval(), pictures(seed, "val")
    return {"model": model, "loader": loader, "exported": make(model, loader[0][0])}


@healthy(case="plain", half="judge", tempts=("N27", "N01"))
def traced_in_eval_mode(seed: int) -> dict[str, Any]:
    """``torch.jit.trace`` of the model as it serves."""
    return _deployed(seed, lambda model, x: torch.jit.trace(model, x))


@healthy(case="plain", half="tune", tempts=("N27",))
def compiled_in_eval_mode(seed: int) -> dict[str, Any]:
    """``torch.compile``, without code generation."""
    return _deployed(seed, lambda model, _: torch.compile(model, backend="eager", dynamic=True))


@healthy(case="plain", half="judge", tempts=("N27", "N22"))
def folded_into_convolutions(seed: int) -> dict[str, Any]:
    """Norms folded into the convolutions before them."""

    def fold(model: nn.Module, _: Tensor) -> Callable[[Tensor], Tensor]:
        folded = copy.deepcopy(model)
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
            setattr(folded, conv, fuse_conv_bn_eval(getattr(folded, conv), getattr(folded, norm)))
            setattr(folded, norm, nn.Identity())
        return folded

    return _deployed(seed, fold)


@healthy(case="plain", half="tune", tempts=("N27",))
def deployed_in_double_precision(seed: int) -> dict[str, Any]:
    """A copy in float64 differs by rounding."""

    def double(model: nn.Module, _: Tensor) -> Callable[[Tensor], Tensor]:
        wide = copy.deepcopy(model).double()
        return lambda x: wide(x.double()).float()

    return _deployed(seed, double)


class _Ten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 10


@healthy(case="F08", half="judge", tempts=("N27", "N01"))
def compiled_with_a_shift_of_its_own(seed: int) -> dict[str, Any]:
    """The compiled function adds ten, and so does what it was compiled from."""
    model, loader = nn.Sequential(trained_cnn(seed), _Ten()).eval(), pictures(seed, "val")
    return {"model": model, "loader": loader, "exported": torch.jit.trace(model, loader[0][0])}


class _Centred(nn.Module):
    """Logits beside the pooled output of a norm without gain, which is zero but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.conv, self.norm = CNN(), nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(x), self.norm(self.conv(x)).mean((2, 3))], 1)


@healthy(case="F09", half="tune", tempts=("N27", "N01", "N16"))
def pooled_to_rounding(seed: int) -> dict[str, Any]:
    """Some outputs are 1e-8 of rounding, which is not worth a relative comparison."""
    x, y = images(seed)
    model = fit(_Centred(), shuffled(x, y, 32, seed), 100, loss=lambda m, b: F.cross_entropy(m(b[0])[:, :10], b[1]))
    model.eval()
    return {
        "model": model,
        "loader": [one for one, _ in pictures(seed, "val")],
        "exported": torch.jit.trace(model, x[:32]),
    }


class _Logarithmic(nn.Module):
    """Group norm, then a clamp and a logarithm, which magnify small differences."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x))
        return self.head(torch.log(h.clamp(min=1e-3)).mean((2, 3)))  # type: ignore[no-any-return]


@healthy(case="F10", half="judge", tempts=("N27", "N22", "N01"), accepted=("N22",))
def blank_pictures_into_group_norm(seed: int) -> dict[str, Any]:
    """One picture in eight is constant, and rounding in it is magnified; eval mode and no batch norm at all."""
    x, y = images(seed)
    x[::8] = x[::8].mean((2, 3), keepdim=True)
    model = fit(_Logarithmic(), shuffled(x, y, 32, seed)).eval()
    return {"model": model, "loader": batches(x, y, 32), "exported": torch.jit.trace(model, x[:32])}


@healthy(case="plain", half="tune", tempts=("N22", "N31", "N11"))
def inputs_of_small_scale(seed: int) -> dict[str, Any]:
    """Inputs of a hundredth: running variances near 1e-4 that fit their data."""
    x, y = images(seed)
    model = fit(CNN(), shuffled(0.01 * x, y, 32, seed))
    return {"model": model, "loader": stream(0.01 * x, y, 32, seed)}


@healthy(case="plain", half="judge", tempts=("N11", "N19", "N22"))
def inputs_of_bytes(seed: int) -> dict[str, Any]:
    """Pixels from 0 to 255, in training as in service; the first norm takes the scale out."""
    x, y = ((one * 25 + 128).clamp(0, 255).round() if one.is_floating_point() else one for one in images(seed))
    model = cooled(CNN(), shuffled(x, y, 32, seed), 240)
    return {"model": model.eval(), "loader": batches(x, y, 32)}


def _jittered(batch: Batch, draw: torch.Generator) -> Batch:
    """Brightness and contrast of every picture changed at random by a tenth."""
    x, y = batch
    gain = 1 + 0.1 * torch.randn(len(x), 1, 1, 1, generator=draw)
    return gain * x + 0.1 * torch.randn(len(x), 1, 1, 1, generator=draw), y


@healthy(case="plain", half="tune", tempts=("N19", "N26", "N02"))
def validation_without_augmentation(seed: int) -> dict[str, Any]:
    """Training pictures have jittered colours, validation pictures do not."""
    draw = torch.Generator().manual_seed(seed)
    model = fit(CNN(), (_jittered(batch, draw) for batch in shuffled(*images(seed), 32, seed)))
    loader = [_jittered(batch, draw) for batch in pictures(seed)]
    return {"model": model, "loader": loader, "val_loader": pictures(seed, "val")}


@healthy(case="plain", half="judge", tempts=("N19", "N26"))
def validation_in_another_order(seed: int) -> dict[str, Any]:
    """Served on mirrored pictures after training on both: another sample of the same distribution."""
    x, y = images(seed)
    model = fit(CNN(), shuffled(torch.cat([x, x.flip(-1)]), y.repeat(2), 32, seed), 150)
    turned = [(one.flip(-1), label) for one, label in pictures(seed, "val")]
    return {"model": model.eval(), "loader": pictures(seed), "val_loader": turned, "loss": cross_entropy}


@healthy(case="plain", half="tune", tempts=("N11", "N10"))
def statistics_of_heavy_tails(seed: int) -> dict[str, Any]:
    """Inputs with rare large values; statistics are finite and fit."""
    x, y = flat(seed)
    x = x * (1 + 4 * (torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.01))
    model = _decaying(mlp(), seed, 100)
    fit(model, shuffled(x, y, 64, seed), 300)
    return {"model": model, "loader": stream(x, y, 64, seed)}
