"""Small networks that people really build, for set-ups in which nothing is wrong."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.doctor.data import CNN, Loss, cross_entropy, fit, generator, images, shuffled

Norm = Callable[[int], nn.Module]


def stream(x: Tensor, y: Tensor, size: int = 32, seed: int = 0, **options: Any) -> DataLoader[tuple[Tensor, ...]]:
    """The samples as a shuffled loader."""
    return DataLoader(TensorDataset(x, y), size, shuffle=True, generator=generator(seed, "stream"), **options)


def cooled(
    model: nn.Module, loader: Iterable[Any], steps: int, *, lr: float = 3e-3, loss: Loss = cross_entropy,
    optimizer: torch.optim.Optimizer | None = None, after: Callable[[], object] | None = None,
) -> nn.Module:  # fmt: skip
    """Train, the last third of the steps at a tenth of the rate, so that statistics catch up with the weights."""
    free = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam(free, lr) if optimizer is None else optimizer
    fit(model, loader, steps - steps // 3, loss=loss, optimizer=optimizer, after=after)
    for group in optimizer.param_groups:
        group["lr"] /= 10
    return fit(model, loader, steps // 3, loss=loss, optimizer=optimizer, after=after)


def learned(model: nn.Module, seed: int, *, steps: int = 150, size: int = 32, **options: Any) -> dict[str, Any]:
    """The model trained on `images` in the mode that it is in, at last with a lower rate, and its training loader."""
    x, y = images(seed, **options)
    cooled(model, shuffled(x, y, size, seed), steps)
    return {"model": model, "loader": stream(x, y, size, seed)}


def stepper(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: Iterable[Any], loss: Loss = cross_entropy
) -> Callable[[], None]:
    """An ordinary training step on the next batch of a loader that starts again where it ends."""
    supply = itertools.cycle(loader)

    def step() -> None:
        optimizer.zero_grad()
        loss(model, next(supply)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


class Residual(nn.Module):
    """A basic residual block (He et al. 2016) that keeps its width."""

    def __init__(
        self, width: int, norm: Norm = nn.BatchNorm2d, zero_last: bool = False, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), norm(width)
        self.drop_path = drop_path
        if zero_last:
            nn.init.zeros_(self.norm2.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.training and self.drop_path:
            keep = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_path
            y = y * keep / (1 - self.drop_path)
        return F.relu(x + y)


def resnet(norm: Norm = nn.BatchNorm2d, width: int = 12, blocks: int = 2, **block: float) -> nn.Sequential:
    """A strided stem, residual blocks, pooling and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1, bias=False),
        norm(width),
        nn.ReLU(),
        *[Residual(width, norm, **block) for _ in range(blocks)],  # type: ignore[arg-type]
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


class Mobile(nn.Sequential):
    """Depthwise separable convolutions with ReLU6 (Howard et al. 2017)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
            nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
            nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
        )  # fmt: skip


class Excited(nn.Module):
    """A convolution whose channels are weighed by squeeze and excitation (Hu et al. 2018): pooling, then 1x1."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1), nn.Sigmoid()
        )
        self.conv, self.norm = nn.Conv2d(width, 2 * width, 3, 1, 1), nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(F.relu(self.norm(self.conv(h * self.gate(h)))).mean((2, 3)))


class UNet(nn.Module):
    """Down, up and one skip: a class for every pixel."""

    def __init__(self, classes: int = 4, width: int = 12, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), norm(width), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), norm(2 * width), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(2 * width, width, 2, 2), norm(width), nn.ReLU())
        self.out = nn.Conv2d(2 * width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.out(torch.cat([h, self.up(self.down(h))], 1))


class Transformer(nn.Module):
    """Pre-norm self-attention over ``[N, L, F]``, averaged over the positions that are not padding."""

    def __init__(self, features: int, width: int = 32, outputs: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.enter = nn.Linear(features, width)
        self.block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=dropout, batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        where = torch.arange(x.shape[1], device=x.device)
        kept = torch.ones(x.shape[:2], dtype=torch.bool) if lengths is None else where < lengths[:, None]
        h = self.norm(self.block(self.enter(x), src_key_padding_mask=~kept)) * kept[..., None]
        return self.head(h.sum(1) / kept.sum(1, keepdim=True))


class Temporal(nn.Module):
    """Convolutions over time with a norm on the feature axis: ``[N, L, F]`` in, transposed to ``[N, C, L]``."""

    def __init__(self, features: int, width: int = 24, outputs: int = 10, norm: Norm = nn.BatchNorm1d) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(features, width, 5, padding=2), norm(width), nn.ReLU(),
            nn.Conv1d(width, width, 5, padding=2), norm(width), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.transpose(1, 2)).mean(2))


class Recurrent(nn.Module):
    """A recurrent net without anything that depends on the mode."""

    def __init__(self, features: int, width: int = 32, outputs: int = 10) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(features, width, batch_first=True), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Siamese(nn.Module):
    """One encoder for both inputs; the output is how far apart they are, as two logits."""

    def __init__(self, together: bool = False) -> None:
        super().__init__()
        self.encoder = CNN()
        self.head, self.together = nn.Linear(10, 2), together

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if self.together:
            left, right = self.encoder(torch.cat([a, b])).chunk(2)
        else:
            left, right = self.encoder(a), self.encoder(b)
        return self.head((left - right).abs())


class FunctionalNorm(nn.Module):
    """Batch normalization written by hand over ``F.batch_norm``, with registered parameters and buffers."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1)


class StandardizedConv(nn.Conv2d):
    """A convolution of standardized kernels (Qiao et al. 2019), by ``F.batch_norm`` over the weights as timm does."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class LastAxisNorm(nn.LayerNorm):
    """Layer normalization over the channels of an image, as ConvNeXt has it (Liu et al. 2022)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class FrozenNorm(nn.Module):
    """Batch normalization with buffers only, so that ``train()`` does not thaw it (as in torchvision's detection)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, trained: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = trained.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(trained, name).detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight * (self.running_var + self.eps).rsqrt()
        return x * gain[:, None, None] + (self.bias - self.running_mean * gain)[:, None, None]


class MaskedNorm(nn.BatchNorm1d):
    """Batch normalization over the valid frames of ``[N, L, C]`` only: its input is not laid out as its base's is."""

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if kept is None:
            kept = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        out = torch.zeros_like(x)
        out[kept] = super().forward(x[kept])
        return out


class AroundNorm(nn.Module):
    """The same around a batch norm that is called on valid frames ``[M, C]`` alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[kept] = self.norm(x[kept])
        return out
