"""Frozen batch norm that is not frozen (N03), or frozen before it ever saw data (N20)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.doctor.data import Batch, batches, fit, images, pictures, shared, shuffled, trained_cnn
from benchmarks.doctor.setup import sick

# N03 -----------------------------------------------------------------------------------------------------------------


def other_domain(seed: int, n: int, part: str) -> Batch:
    """Pictures of the same classes by another camera: colours exchanged, less contrast, brighter."""
    x, y = images(seed, n, part, noise=1.0)
    return 0.5 * x.flip(1) + 1.0, y


def _freeze(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    for one in model.modules():
        if isinstance(one, kinds):
            for parameter in one.parameters(recurse=False):
                parameter.requires_grad_(False)


@sick("N03", case="C63", half="tune")
def backbone_frozen_by_gradients(seed: int) -> dict[str, Any]:
    """Only the head trains, on another domain; model.train() keeps the statistics of the frozen part moving."""
    model = trained_cnn(seed)
    _freeze(model, (nn.Conv2d, nn.BatchNorm2d))
    x, y = other_domain(seed, 1024, "fine")
    fit(model.train(), shuffled(x, y, 32, seed), 60)
    return {"model": model, "loader": batches(x[:768], y[:768], 32)}


@sick("N03", case="C64", half="judge")
def frozen_norm_switched_back(seed: int) -> dict[str, Any]:
    """Batch norm was frozen once, gamma and beta too; the trainer called model.train() after the first validation."""
    model = trained_cnn(seed)
    _freeze(model, (nn.BatchNorm2d,))
    model.bn1.eval()
    model.bn2.eval()
    x, y = other_domain(seed, 1024, "fine")
    stream = shuffled(x, y, 32, seed)
    fit(model, stream, 30)
    fit(model.train(), stream, 30)
    return {"model": model, "loader": batches(x[:768], y[:768], 32)}


@sick("N03", case="C12", half="judge", accepted={"N02", "N19", "N22"})
def frozen_extractor_in_train_mode(seed: int) -> dict[str, Any]:
    """No parameter trains at all: features are extracted from another domain, in the mode a new model has."""
    model = trained_cnn(seed)
    _freeze(model, (nn.Module,))
    return {"model": model.train(), "loader": batches(*other_domain(seed, 768, "fine"), 32)}


@sick("N03", case="C63", half="tune", accepted={"N02", "N19"})
def freeze_undone_before_the_first_step(seed: int) -> dict[str, Any]:
    """freeze_bn() in the constructor, model.train() in the loop: about to be fine-tuned on noisier pictures."""
    model = trained_cnn(seed)
    _freeze(model, (nn.BatchNorm2d,))
    return {"model": model.train(), "loader": pictures(seed, "fine", noise=1.2)}


# N20 -----------------------------------------------------------------------------------------------------------------


class FrozenBatchNorm2d(nn.Module):
    """Statistics and affine as buffers, as detection libraries have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class Deep(nn.Module):
    """A plain chain of conv(8, 8)-norm-ReLU, with or without skips."""

    def __init__(self, norm: Any, depth: int, skips: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(norm(8) for _ in range(depth))
        self.head = nn.Linear(8, 10)
        self.skips = skips

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = F.relu(norm(conv(x)))
            x = x + y if self.skips else y
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


@sick("N20", case="C66", half="tune")
def frozen_from_scratch_vanishes(seed: int) -> dict[str, Any]:
    """Sixteen layers of FrozenBatchNorm with its defaults around random weights: no normalization, the signal is gone."""
    model = fit(Deep(FrozenBatchNorm2d, 16, skips=False), shuffled(*images(seed), 32, seed), 60)
    return {"model": model, "loader": pictures(seed)}


def _frozen_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels).eval().requires_grad_(False)


@shared
def _exploding(seed: int, depth: int, steps: int) -> Deep:
    model = Deep(_frozen_norm, depth, skips=True)
    for one in model.convs:
        assert isinstance(one, nn.Conv2d)
        nn.init.kaiming_normal_(one.weight)
    fit(model, shuffled(*images(seed), 32, seed), steps)
    return model


@sick("N20", case="C41", half="judge")
def frozen_new_backbone_explodes(seed: int) -> dict[str, Any]:
    """A new residual backbone whose batch norm is silently frozen because batches are small: the signal doubles a block."""
    return {"model": _exploding(seed, 12, 40).eval(), "loader": pictures(seed)}


@sick("N20", case="C41", half="judge")
def frozen_new_backbone_vanishes(seed: int) -> dict[str, Any]:
    """The same without skips, in eval and with gamma and beta frozen."""
    model = fit(Deep(_frozen_norm, 12, skips=False), shuffled(*images(seed), 32, seed), 60)
    return {"model": model.eval(), "loader": pictures(seed)}


@sick("N20", case="C66", half="tune")
def frozen_from_scratch_explodes(seed: int) -> dict[str, Any]:
    """Fourteen residual blocks with frozen defaults."""
    return {"model": _exploding(seed, 14, 40).eval(), "loader": pictures(seed)}
