"""Norms that are frozen on purpose, or that only look so."""

from typing import Any

import torch
import torch.ao.nn.intrinsic.qat as qat
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao import quantization

from benchmarks.doctor.data import CNN, Batch, batches, fit, images, pictures, shuffled, trained_cnn
from benchmarks.doctor.healthy_nets import FrozenNorm, cooled, learned, resnet, stream
from benchmarks.doctor.setup import healthy


def _new_domain(seed: int, part: str = "train", scale: float = 0.4, shift: float = 1.5) -> Batch:
    """The pictures of other cameras: darker contrast, brighter."""
    x, y = images(seed, 1024, part)
    return scale * x + shift, y


def _freeze(model: nn.Module, affine: bool = True) -> nn.Module:
    """The model in train mode with its batch norms in eval mode; with `affine`, their weights are frozen, too."""
    model.train()
    for one in model.modules():
        if isinstance(one, nn.BatchNorm2d):
            one.eval()
            for parameter in one.parameters():
                parameter.requires_grad_(not affine)
    return model


@healthy(case="H01", half="tune", tempts=("N02", "N03", "N17"))
def frozen_on_purpose(seed: int) -> dict[str, Any]:
    """A pretrained network fine-tuned with its norms in eval mode, handed over while it trains."""
    x, y = _new_domain(seed, scale=0.8, shift=0.3)
    model = fit(_freeze(trained_cnn(seed)), shuffled(x, y, 32, seed), 100)
    return {"model": model, "loader": stream(x, y, 32, seed)}


@healthy(case="H01", half="judge", tempts=("N02", "N03", "N17"))
def frozen_and_said_so(seed: int) -> dict[str, Any]:
    """The same with the intention told and affine parameters that train."""
    x, y = _new_domain(seed, scale=0.8, shift=0.3)
    model = _freeze(trained_cnn(seed), affine=False)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    fit(model, shuffled(x, y, 32, seed), 100, optimizer=optimizer)
    return {"model": model, "loader": stream(x, y, 32, seed), "optimizer": optimizer, "intent": "frozen"}


@healthy(case="H02", half="tune", tempts=("N03", "N17"))
def all_frozen_but_the_last(seed: int) -> dict[str, Any]:
    """Only the last norm and the classifier adapt to a new domain; everything else is frozen whole."""
    x, y = _new_domain(seed, scale=0.8, shift=0.3)
    model = _freeze(trained_cnn(seed)).requires_grad_(False)
    for part in (model.bn2, model.head):
        part.train().requires_grad_(True)
    cooled(model, shuffled(x, y, 32, seed), 150)
    return {"model": model, "loader": stream(x, y, 32, seed), "intent": "train"}


@healthy(case="H03", half="judge", tempts=("N02", "N20"))
def frozen_from_the_start_but_shallow(seed: int) -> dict[str, Any]:
    """Norms that never normalize: two layers train well without."""
    x, y = images(seed)
    model = fit(_freeze(CNN()), shuffled(x, y, 32, seed))
    return {"model": model, "loader": stream(x, y, 32, seed), "intent": "frozen"}


@healthy(case="H03", half="tune", tempts=("N02", "N20"))
def frozen_from_the_start_affine_free(seed: int) -> dict[str, Any]:
    """The same where gain and bias train, served in eval mode."""
    x, y = images(seed)
    model = fit(_freeze(CNN(), affine=False), shuffled(x, y, 32, seed))
    return {"model": model.eval(), "loader": pictures(seed, "val")}


@healthy(case="H27", half="judge", tempts=("N02", "N19", "N26"))
def frozen_on_another_domain(seed: int) -> dict[str, Any]:
    """Weights have adapted to statistics of the old domain, which no re-estimation would improve."""
    x, y = _new_domain(seed)
    model = fit(_freeze(trained_cnn(seed)), shuffled(x, y, 32, seed), 150)
    return {"model": model, "loader": stream(x, y, 32, seed)}


@healthy(case="H27", half="tune", tempts=("N02", "N19"))
def frozen_on_another_domain_served(seed: int) -> dict[str, Any]:
    """The same as it serves, on held-out pictures of the new domain."""
    x, y = _new_domain(seed)
    model = fit(_freeze(trained_cnn(seed)), shuffled(x, y, 32, seed), 150)
    return {"model": model.eval(), "loader": batches(*_new_domain(seed, "val"), 32)}


def _replace(model: nn.Module) -> nn.Module:
    for name, one in model.named_children():
        if isinstance(one, nn.BatchNorm2d):
            setattr(model, name, FrozenNorm(one))
    return model


@healthy(case="F13", half="judge", tempts=("N03", "N18", "N17"))
def teacher_with_frozen_norms(seed: int) -> dict[str, Any]:
    """A teacher in train mode under ``no_grad`` whose norms are buffers only: nothing drifts."""
    return {"model": _replace(trained_cnn(seed)).requires_grad_(False), "loader": stream(*images(seed), 32, seed)}


@healthy(case="F13", half="tune", tempts=("N20", "N31"))
def frozen_norms_fine_tuned(seed: int) -> dict[str, Any]:
    """Detection's frozen norms, with the layers around them trained on."""
    x, y = _new_domain(seed, scale=0.8, shift=0.3)
    model = fit(_replace(trained_cnn(seed)), shuffled(x, y, 32, seed), 80)
    return {"model": model, "loader": stream(x, y, 32, seed)}


@healthy(case="H12", half="judge", tempts=("N03", "N18"))
def teacher_in_train_mode(seed: int) -> dict[str, Any]:
    """Distillation from a teacher that normalizes by the batch, which its authors measured to be better."""
    teacher = trained_cnn(seed).requires_grad_(False).train()
    return {"model": teacher, "loader": stream(*images(seed), 64, seed), "intent": "batch-stats-at-test"}


class _Distilled(nn.Module):
    """A student that trains beside a frozen teacher in eval mode."""

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        super().__init__()
        self.teacher, self.student = teacher.requires_grad_(False), student

    def train(self, mode: bool = True) -> "_Distilled":
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)  # type: ignore[no-any-return]

    def distance(self, x: Tensor) -> Tensor:
        """Cross entropy of the student under the teacher's beliefs."""
        return F.cross_entropy(self.student(x), self.teacher(x).softmax(1))


@healthy(case="H12", half="tune", tempts=("N03", "N17", "N07"))
def distillation(seed: int) -> dict[str, Any]:
    """Frozen eval teacher, student in train mode, one root module over both."""
    x, y = images(seed)
    model = _Distilled(trained_cnn(seed), CNN()).train()
    fit(model, shuffled(x, y, 32, seed), 100, loss=lambda model, batch: model.distance(batch[0]))
    return {"model": model, "loader": stream(x, y, 32, seed), "loss": lambda model, batch: model.distance(batch[0])}


@healthy(case="H16", half="judge", tempts=("N03", "N17"))
def quantization_aware_with_frozen_statistics(seed: int) -> dict[str, Any]:
    """Fused convolutions in train mode whose statistics were frozen after some epochs by their own flag."""
    x, y = images(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip
    fit(model, shuffled(x, y, 32, seed), 150)
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    model = quantization.prepare_qat(quantization.fuse_modules_qat(model, [["0", "1", "2"]]))
    fit(model, shuffled(x, y, 32, seed), 60, lr=1e-3)
    model.apply(qat.freeze_bn_stats)
    fit(model, shuffled(x, y, 32, seed), 20, lr=1e-4)
    return {"model": model, "loader": stream(x, y, 32, seed)}


@healthy(case="plain", half="tune", tempts=("N03", "N31"))
def head_only_in_eval_mode(seed: int) -> dict[str, Any]:
    """Feature extraction: the backbone in eval mode and frozen, a new head on the same distribution."""
    x, y = images(seed)
    model = trained_cnn(seed).eval().requires_grad_(False)
    model.head = nn.Linear(32, 10)
    fit(model, shuffled(x, y, 32, seed), 150, lr=1e-2)
    return {"model": model, "loader": stream(x, y, 32, seed), "intent": "frozen"}


@healthy(case="plain", half="judge", tempts=("N03", "N09"))
def affine_parameters_that_do_not_exist(seed: int) -> dict[str, Any]:
    """``affine=False`` in train mode: there is nothing to freeze, and nothing is frozen."""
    return learned(CNN(lambda channels: nn.BatchNorm2d(channels, affine=False)), seed)


@healthy(case="H15", half="tune", tempts=("N22", "N20"))
def zero_initialised_last_gain(seed: int) -> dict[str, Any]:
    """Every residual block starts as the identity; after 60 steps gains are still small."""
    return learned(resnet(zero_last=True), seed, steps=60)


@healthy(case="H15", half="judge", tempts=("N22", "N31"))
def sparse_gains(seed: int) -> dict[str, Any]:
    """Network slimming: an L1 penalty drives many gains to zero."""
    x, y = images(seed)
    model = CNN()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        gains = torch.cat([one.weight for one in model.modules() if isinstance(one, nn.BatchNorm2d)])
        return F.cross_entropy(model(batch[0]), batch[1]) + 1e-2 * gains.abs().sum()

    for rate in (1e-2, 1e-3):
        fit(model, shuffled(x, y, 32, seed), 150, lr=rate, loss=loss)
    return {"model": model.eval(), "loader": pictures(seed, "val")}


@healthy(case="plain", half="tune", tempts=("N22", "N02"))
def pruned_and_recalibrated(seed: int) -> dict[str, Any]:
    """Filters are zeroed together with their gain and bias, and the network is trained on."""
    model = trained_cnn(seed)
    dead = torch.arange(0, 16, 4)
    x, y = images(seed)

    def prune() -> None:
        with torch.no_grad():
            for tensor in (model.conv1.weight, model.bn1.weight, model.bn1.bias):
                tensor[dead] = 0.0

    prune()
    cooled(model, shuffled(x, y, 32, seed), 100, after=prune)
    return {"model": model.eval(), "loader": pictures(seed, "val")}
