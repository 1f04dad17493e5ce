"""Networks trained as everybody trains them; nothing is wrong and nothing is unusual."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.doctor.data import (
    CNN,
    batches,
    cross_entropy,
    fit,
    flat,
    generator,
    images,
    mlp,
    pictures,
    shuffled,
    trained_cnn,
    trained_mlp,
)  # fmt: skip
from benchmarks.doctor.healthy_nets import Excited, Mobile, Siamese, UNet, cooled, learned, resnet, stepper, stream
from benchmarks.doctor.setup import healthy


@healthy(case="plain", half="tune", tempts=("N01", "N17", "N04", "N06"))
def cnn_in_train_mode(seed: int) -> dict[str, Any]:
    """Between two epochs: train mode, with its shuffled training loader."""
    return {"model": trained_cnn(seed), "loader": stream(*images(seed), 32, seed)}


@healthy(case="plain", half="judge", tempts=("N02", "N17", "N19"))
def cnn_in_eval_mode(seed: int) -> dict[str, Any]:
    """As it serves, on held-out pictures."""
    return {"model": trained_cnn(seed).eval(), "loader": pictures(seed, "val")}


@healthy(case="plain", half="tune", tempts=("N09", "N10", "N18", "N31"))
def cnn_with_all_arguments(seed: int) -> dict[str, Any]:
    """Everything that a careful user can give."""
    x, y = images(seed)
    model = CNN()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    cooled(model, shuffled(x, y, 32, seed), 150, optimizer=optimizer)
    loader = stream(x, y, 32, seed)
    return {
        "model": model, "loader": loader, "loss": cross_entropy, "optimizer": optimizer,
        "step": stepper(model, optimizer, loader), "val_loader": pictures(seed, "val"),
        "state_dict": model.state_dict(), "intent": "train",
    }  # fmt: skip


@healthy(case="plain", half="judge", tempts=("N01", "N04"))
def resnet_in_train_mode(seed: int) -> dict[str, Any]:
    """Residual blocks, the optimizer given."""
    model = resnet()
    x, y = images(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    cooled(model, shuffled(x, y, 32, seed), 150, optimizer=optimizer)
    return {"model": model, "loader": stream(x, y, 32, seed), "optimizer": optimizer}


@healthy(case="plain", half="tune", tempts=("N02", "N22"))
def resnet_in_eval_mode(seed: int) -> dict[str, Any]:
    """Deeper, so that the stored statistics of the last layers lag a little behind the weights."""
    made = learned(resnet(blocks=3), seed)
    return {"model": made["model"].eval(), "loader": pictures(seed, "val"), "loss": cross_entropy}


@healthy(case="plain", half="judge", tempts=("N04", "N06"))
def mlp_in_train_mode(seed: int) -> dict[str, Any]:
    """Norms over the batch axis alone, batches of 64."""
    return {"model": trained_mlp(seed, size=64), "loader": stream(*flat(seed), 64, seed)}


@healthy(case="plain", half="tune", tempts=("N02", "N05"))
def mlp_in_eval_mode(seed: int) -> dict[str, Any]:
    """As it serves, one sample at a time."""
    return {"model": trained_mlp(seed).eval(), "loader": batches(*flat(seed, 64, "val"), 1)}


@healthy(case="plain", half="judge", tempts=("N22", "N28"))
def depthwise_with_relu6(seed: int) -> dict[str, Any]:
    """Channels of depthwise convolutions have very different variances."""
    return learned(Mobile(), seed)


@healthy(case="plain", half="tune", tempts=("N05", "N16", "N04"))
def squeeze_and_excitation(seed: int) -> dict[str, Any]:
    """Maps of one pixel, but no norm on them."""
    return learned(Excited(), seed)


def pixels(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of a class for every pixel."""
    return F.cross_entropy(model(batch[0]), batch[1])


def scenes(seed: int, n: int, part: str) -> tuple[Tensor, Tensor]:
    """Pictures of coarse regions ``[N, 3, 16, 16]`` and the class of each pixel ``[N, 16, 16]``."""
    draw = generator(seed, "scenes", part)
    y = torch.randint(4, (n, 1, 4, 4), generator=draw).repeat_interleave(4, 2).repeat_interleave(4, 3)[:, 0]
    colours = torch.randn(4, 3, generator=generator(seed, "colours"))
    return colours[y].movedim(-1, 1) + 0.5 * torch.randn(n, 3, 16, 16, generator=draw), y


@healthy(case="plain", half="judge", tempts=("N04", "N07"))
def unet_with_batches_of_eight(seed: int) -> dict[str, Any]:
    """A class for every pixel; eight pictures, but two thousand pixels a batch."""
    x, y = scenes(seed, 512, "train")
    model = fit(UNet(), shuffled(x, y, 8, seed), 120, loss=pixels)
    return {"model": model, "loader": stream(x, y, 8, seed), "loss": pixels}


@healthy(case="plain", half="tune", tempts=("N02", "N01"))
def unet_in_eval_mode(seed: int) -> dict[str, Any]:
    """The same, as it serves; labels are maps, and cross entropy takes them without being told."""
    x, y = scenes(seed, 512, "train")
    model = fit(UNet(), shuffled(x, y, 16, seed), 80, loss=pixels)
    return {"model": model.eval(), "loader": batches(*scenes(seed, 256, "val"), 16)}


def _pairs(seed: int, part: str, n: int = 768) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of pictures in random order, and whether they show the same class."""
    (a, ya), (b, yb) = images(seed, n, part, classes=3), images(seed, n, part + "'", classes=3)
    return a, b, (ya == yb).long()


def _alike(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0], batch[1]), batch[2])


def _compare(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Any:
    return model(batch[0], batch[1])


def _siamese(seed: int, together: bool) -> dict[str, Any]:
    a, b, same = _pairs(seed, "train")
    cut = [tuple(one[index] for one in (a, b, same)) for index in torch.arange(len(a)).split(32)]
    model = fit(Siamese(together), cut, 96, loss=_alike)
    return {"model": model, "loader": cut, "forward": _compare, "loss": _alike}


@healthy(case="plain", half="judge", tempts=("N07", "N08", "N09"))
def siamese_two_calls(seed: int) -> dict[str, Any]:
    """One encoder, called on each of two pictures of the same distribution."""
    return _siamese(seed, together=False)


@healthy(case="plain", half="tune", tempts=("N07", "N08"))
def siamese_one_call(seed: int) -> dict[str, Any]:
    """The same with both pictures in one forward pass."""
    return _siamese(seed, together=True)


def _squared(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0])[:, 0], batch[1])


@healthy(case="plain", half="judge", tempts=("N02", "N08"))
def regression_with_its_loss(seed: int) -> dict[str, Any]:
    """Targets are numbers; the loss is given, since none can be guessed."""
    x, _ = flat(seed, 1536)
    y = torch.sin(x[:, 0]) + 0.1 * x[:, 1]
    model = cooled(mlp(classes=1), shuffled(x, y, 64, seed), 400, loss=_squared)
    return {"model": model.eval(), "loader": batches(x, y, 64), "loss": _squared}


@healthy(case="plain", half="tune", tempts=("N02", "N18"))
def unlabelled_batches(seed: int) -> dict[str, Any]:
    """Batches are tensors; only outputs can be compared."""
    return {"model": trained_cnn(seed).eval(), "loader": [x for x, _ in pictures(seed, "val")]}


class _ByName(nn.Module):
    """A model that takes its batch by keywords and returns a dict, as those of Hugging Face do."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.body(pixel_values)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


@healthy(case="plain", half="judge", tempts=("N01", "N02"))
def batches_and_outputs_are_dicts(seed: int) -> dict[str, Any]:
    """Called by keywords; the loss is in the output."""
    loader = [{"pixel_values": x, "labels": y} for x, y in pictures(seed)]
    return {"model": _ByName(trained_cnn(seed)), "loader": loader, "loss": lambda model, batch: model(**batch)["loss"]}


@healthy(case="plain", half="tune", tempts=("N06", "N02"))
def nested_batches_from_a_generator(seed: int) -> dict[str, Any]:
    """Read once, and without end."""
    supply = shuffled(*images(seed), 32, seed)
    return {
        "model": trained_cnn(seed),
        "loader": ({"views": [x], "target": (y,)} for x, y in supply),
        "forward": lambda model, batch: model(batch["views"][0]),
        "loss": lambda model, batch: F.cross_entropy(model(batch["views"][0]), batch["target"][0]),
    }


@healthy(case="F18", half="judge", tempts=("N02", "N15"))
def pictures_that_are_not_square(seed: int) -> dict[str, Any]:
    """Height and width differ, and the doctor's loader has them in the right order."""
    x, y = images(seed)
    model = fit(CNN(), shuffled(x[..., :10], y, 32, seed))
    return {"model": model.eval(), "loader": batches(x[..., :10], y, 32)}


@healthy(case="F24", half="tune", tempts=("N06", "N26"))
def shuffled_test_loader(seed: int) -> dict[str, Any]:
    """Two orders of the test set give one score, since every sample is served alone."""
    loader, shuffled_one = pictures(seed, "val"), stream(*images(seed, 768, "val"), 32, seed)
    return {"model": trained_cnn(seed).eval(), "loader": loader, "val_loader": shuffled_one}


@healthy(case="plain", half="tune", tempts=("N12", "N17"))
def data_parallel_wrapper(seed: int) -> dict[str, Any]:
    """Plain batch norm under a wrapper that has one device to give."""
    return {"model": nn.DataParallel(trained_cnn(seed)), "loader": stream(*images(seed), 32, seed)}
