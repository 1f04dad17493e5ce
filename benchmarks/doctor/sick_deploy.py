"""What is deployed is not what was trained (N27); dropout that the statistics have seen (N28)."""

import copy
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.doctor.data import CNN, batches, fit, flat, images, pictures, shared, shuffled, trained_cnn
from benchmarks.doctor.setup import sick

# N27 -----------------------------------------------------------------------------------------------------------------


@sick("N27", case="C86", half="tune")
def traced_in_train_mode(seed: int) -> dict[str, Any]:
    """Traced before eval() was called: batch statistics are part of the graph."""
    model = trained_cnn(seed)
    loader = pictures(seed, "val")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.jit.trace(copy.deepcopy(model).train(), loader[0][0], check_trace=False)
    return {"model": model.eval(), "loader": loader, "exported": exported}


@torch.no_grad()
def _folded(conv: nn.Conv2d, norm: nn.Module, *, eps: float | None = None, bias: bool = True) -> nn.Conv2d:
    """The norm's affine in the weights of the convolution, by a hand-written fold."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    gain = norm.weight / (norm.running_var + (norm.eps if eps is None else eps)).sqrt()
    out = nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, 1, groups=conv.groups)
    out.weight.copy_(conv.weight * gain.view(-1, 1, 1, 1))
    offset = 0.0 if conv.bias is None or not bias else conv.bias
    assert out.bias is not None
    out.bias.copy_(norm.bias + gain * (offset - norm.running_mean))
    return out


class Biased(CNN):
    """With biases before the norms, and weights of small scale."""

    def __init__(self) -> None:
        super().__init__(lambda channels: nn.BatchNorm2d(channels, eps=1e-3))
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        with torch.no_grad():
            for one in (self.conv1, self.conv2):
                one.weight *= 0.05


@shared
def _trained_biased(seed: int) -> Biased:
    model = Biased()
    fit(model, shuffled(*images(seed), 32, seed))
    return model.eval()  # type: ignore[return-value]


@sick("N27", case="C87", half="judge")
def fold_forgets_the_bias(seed: int) -> dict[str, Any]:
    """The fold takes the running mean off and not the convolution's own bias into account."""
    model = _trained_biased(seed)
    exported = copy.deepcopy(model)
    exported.conv1, exported.bn1 = _folded(model.conv1, model.bn1, bias=False), nn.Identity()
    exported.conv2, exported.bn2 = _folded(model.conv2, model.bn2, bias=False), nn.Identity()
    return {"model": model, "loader": pictures(seed, "val"), "exported": exported}


@sick("N27", case="C88", half="tune")
def fold_by_another_eps(seed: int) -> dict[str, Any]:
    """The port folds by eps 1e-5 where the network was trained with 1e-3, and variances are small."""
    model = _trained_biased(seed)
    exported = copy.deepcopy(model)
    exported.conv1, exported.bn1 = _folded(model.conv1, model.bn1, eps=1e-5), nn.Identity()
    return {"model": model, "loader": pictures(seed, "val"), "exported": exported}


def _eight_bits(weight: Tensor) -> Tensor:
    scale = weight.abs().max() / 127
    return (weight / scale).round() * scale


class Separable(nn.Module):
    """conv-BN-ReLU-depthwise conv-BN-ReLU-mean-linear; channels of very unequal scale before the second norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)
        with torch.no_grad():
            self.bn1.weight *= torch.exp(torch.linspace(-4.0, 2.0, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


@sick("N27", case="C87", half="judge", accepted={"N22"})
def folded_to_eight_bits_a_tensor(seed: int) -> dict[str, Any]:
    """Gains of the fold differ by hundreds between channels that share one scale of eight bits."""
    model = Separable()
    fit(model, shuffled(*images(seed), 32, seed))
    model.eval()
    exported = copy.deepcopy(model)
    exported.conv2, exported.bn2 = _folded(model.conv2, model.bn2), nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        exported.conv2.weight.copy_(_eight_bits(exported.conv2.weight))
    return {"model": model, "loader": pictures(seed, "val"), "exported": exported}


# N28 -----------------------------------------------------------------------------------------------------------------


def _dropped(dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner in (16, 64, 64):
        layers += [nn.Linear(inner, 64), nn.ReLU(), nn.Dropout(dropout), nn.BatchNorm1d(64)]
    return nn.Sequential(*layers, nn.Linear(64, 10))


@sick("N28", case="C89", half="tune", accepted={"N02"})
def dropout_before_norm(seed: int) -> dict[str, Any]:
    """Dropout doubles the variance that the norms store; in eval there is none."""
    model = fit(_dropped(0.5), shuffled(*flat(seed), 32, seed), 300)
    return {"model": model.eval(), "loader": batches(*flat(seed, 24 * 32), 32)}


class DroppedMaps(nn.Module):
    """conv-ReLU-dropout of whole maps-BN, three times, mean, linear."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner in (3, 16, 16):
            conv = nn.Conv2d(inner, 16, 3, stride=2, padding=1)
            layers += [conv, nn.ReLU(), nn.Dropout2d(dropout), nn.BatchNorm2d(16)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).mean(dim=(2, 3)))
        return logits


@sick("N28", case="C89", half="judge", accepted={"N02"})
def dropout_of_maps_before_norm(seed: int) -> dict[str, Any]:
    """Whole maps are dropped before each norm."""
    model = fit(DroppedMaps(), shuffled(*images(seed), 32, seed), 200)
    return {"model": model.eval(), "loader": pictures(seed)}
