"""Norms that look at samples one by one, and norms over the right axis of whatever shape."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.doctor.data import CNN, Batch, batches, fit, generator, images, mlp, pictures, sequences, shuffled
from benchmarks.doctor.healthy_nets import (
    AroundNorm,
    LastAxisNorm,
    MaskedNorm,
    StandardizedConv,
    Temporal,
    Transformer,
    UNet,
    cooled,
    learned,
    resnet,
    stream,
)  # fmt: skip
from benchmarks.doctor.healthy_ordinary import pixels, scenes
from benchmarks.doctor.setup import healthy


def _on_sequences(model: nn.Module, seed: int, size: int = 32, steps: int = 120, **options: Any) -> dict[str, Any]:
    x, y = sequences(seed, 1024, **options)
    fit(model, shuffled(x, y, size, seed), steps)
    return {"model": model, "loader": stream(x, y, size, seed)}


@healthy(case="H08", half="tune", tempts=("N04", "N06", "N15"))
def transformer_read_in_order(seed: int) -> dict[str, Any]:
    """Layer norm only: neither the order nor the size of batches can matter."""
    x, y = sequences(seed, 512)
    model = fit(Transformer(8, outputs=4), shuffled(x, y, 32, seed), 100)
    return {"model": model, "loader": batches(x, y, 16, y.argsort())}


@healthy(case="H08", half="judge", tempts=("N09", "N04", "N28"))
def transformer_accumulated(seed: int) -> dict[str, Any]:
    """Layer norm only: accumulation over micro-batches of two is exactly a larger batch."""
    x, y = sequences(seed, 512)
    model = Transformer(8, outputs=4)
    fit(model, shuffled(x, y, 32, seed), 100)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    supply = shuffled(x, y, 2, seed)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(8):
            one, label = next(supply)
            (F.cross_entropy(model(one), label) / 8).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return {"model": model, "loader": batches(x, y, 2)[:64], "optimizer": optimizer, "step": step}


@healthy(case="plain", half="tune", tempts=("N14", "N01"))
def transformer_with_padding(seed: int) -> dict[str, Any]:
    """Padded sequences whose padding is masked in attention and pooling; layer norm looks at single frames."""
    x, y = sequences(seed, 512)
    lengths = torch.randint(10, 25, (len(x),), generator=generator(seed, "lengths"))
    x = x * (torch.arange(24) < lengths[:, None])[..., None]
    loader = [({"x": x[index], "lengths": lengths[index]}, y[index]) for index in torch.arange(len(x)).split(32)]

    def loss(model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        return F.cross_entropy(model(**batch[0]), batch[1])

    model = fit(Transformer(8, outputs=4), loader, 100, loss=loss)
    return {"model": model.eval(), "loader": loader, "loss": loss, "forward": lambda model, batch: model(**batch[0])}


@healthy(case="H09", half="judge", tempts=("N04", "N05", "N06"))
def group_norm_with_batches_of_one(seed: int) -> dict[str, Any]:
    """Train mode, one picture at a time, sorted by class."""
    x, y = images(seed, 512)
    model = fit(CNN(lambda channels: nn.GroupNorm(4, channels)), shuffled(x, y, 16, seed), 150)
    order = y.argsort()[::8]
    return {"model": model, "loader": batches(x, y, 1, order)}


@healthy(case="F19", half="tune", tempts=("N01", "N17"))
def group_norm_validated_in_train_mode(seed: int) -> dict[str, Any]:
    """Nobody called ``eval()``, and nothing depends on it."""
    model = resnet(lambda channels: nn.GroupNorm(4, channels))
    made = learned(model, seed, steps=100)
    return {**made, "val_loader": pictures(seed, "val"), "intent": "serve"}


@healthy(case="plain", half="judge", tempts=("N16", "N13"))
def instance_norm_on_maps(seed: int) -> dict[str, Any]:
    """One channel a group, but 256 and 64 pixels each; no running statistics, by default."""
    x, y = scenes(seed, 512, "train")
    model = cooled(
        UNet(norm=lambda width: nn.InstanceNorm2d(width, affine=True)), shuffled(x, y, 16, seed), 90, loss=pixels
    )
    return {"model": model, "loader": stream(x, y, 16, seed), "loss": pixels}


@healthy(case="plain", half="tune", tempts=("N16", "N13"))
def group_norm_of_every_channel(seed: int) -> dict[str, Any]:
    """``GroupNorm(C, C)`` on maps is instance norm."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(16, 16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))
    made = learned(model, seed, steps=90)
    return {"model": made["model"].eval(), "loader": pictures(seed, "val")}


@healthy(case="plain", half="judge", tempts=("N16", "N04"))
def group_norm_of_vectors(seed: int) -> dict[str, Any]:
    """Groups of 16 features of a vector."""
    made = learned(
        nn.Sequential(nn.Conv2d(3, 16, 3, 4), nn.Flatten(), mlp(256, norm=lambda width: nn.GroupNorm(2, width))), seed
    )
    return {"model": made["model"], "loader": made["loader"]}


@healthy(case="plain", half="tune", tempts=("N15", "N16"))
def layer_norm_of_pixels(seed: int) -> dict[str, Any]:
    """Layer norm over the channels of each pixel, which are moved to the last axis for it."""
    return learned(CNN(LastAxisNorm), seed)


class _TimeFirst(nn.Module):
    """Layer norm on ``[L, N, C]``, the order that torch's attention took at first."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm1 = nn.Linear(8, 32), nn.LayerNorm(32)
        self.mix, self.norm2, self.head = nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.enter(x.transpose(0, 1))))
        return self.head(F.relu(self.norm2(self.mix(h))).mean(0))  # type: ignore[no-any-return]


@healthy(case="F20", half="judge", tempts=("N15", "N01"))
def layer_norm_on_time_first(seed: int) -> dict[str, Any]:
    """The last axis is normalized, whatever lies before it."""
    return _on_sequences(_TimeFirst(), seed)


@healthy(case="F20", half="tune", tempts=("N15", "N04"))
def layer_norm_where_length_is_width(seed: int) -> dict[str, Any]:
    """As many frames as features, so that no shape tells the axes apart."""
    made = _on_sequences(Transformer(8, width=24, outputs=4), seed, length=24, steps=80)
    return {"model": made["model"].eval(), "loader": made["loader"]}


@healthy(case="plain", half="judge", tempts=("N14", "N15"))
def batch_norm_over_time(seed: int) -> dict[str, Any]:
    """``[N, C, L]``, all sequences of one length."""
    return _on_sequences(Temporal(8, outputs=4), seed)


@healthy(case="plain", half="tune", tempts=("N15", "N14"))
def batch_norm_where_length_is_width(seed: int) -> dict[str, Any]:
    """As many frames as channels, transposed as it should be."""
    return _on_sequences(Temporal(8, width=24, outputs=4), seed, length=24, size=32)


class _Frames(nn.Module):
    """Features of frames are normalized after all frames were folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.head = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.enter(x).flatten(0, 1))).unflatten(0, x.shape[:2])
        return self.head(h.mean(1))  # type: ignore[no-any-return]


@healthy(case="plain", half="judge", tempts=("N15", "N06"))
def frames_folded_into_the_batch(seed: int) -> dict[str, Any]:
    """Rows of the norm's input are not samples: 24 in a row belong together."""
    return _on_sequences(_Frames(), seed)


def _vignetted(seed: int, part: str = "train") -> Batch:
    """Objects on black: pictures are exactly zero outside a disc, as digits and medical images are."""
    x, y = images(seed, 1024, part)
    place = torch.linspace(-1, 1, 16)
    disc = (place[:, None] ** 2 + place**2) < 0.6
    return x * disc, y


@healthy(case="plain", half="tune", tempts=("N14", "N15"))
def objects_on_black(seed: int) -> dict[str, Any]:
    """The border is constant in every picture, and rows differ in variance; neither is padding or a wrong axis."""
    x, y = _vignetted(seed)
    model = fit(CNN(), shuffled(x, y, 32, seed))
    return {"model": model, "loader": stream(x, y, 32, seed)}


@healthy(case="plain", half="judge", tempts=("N14", "N22"))
def objects_on_black_served(seed: int) -> dict[str, Any]:
    """The same in eval mode, on held-out pictures."""
    model = fit(CNN(), shuffled(*_vignetted(seed), 32, seed))
    return {"model": model.eval(), "loader": batches(*_vignetted(seed, "val"), 32)}


class _Masked(nn.Module):
    """A norm over valid frames, and a mean over them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.enter, self.norm, self.head = nn.Linear(8, 32), norm, nn.Linear(32, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        kept = torch.arange(x.shape[1]) < lengths[:, None]
        h = F.relu(self.norm(self.enter(x), kept)) * kept[..., None]
        return self.head(h.sum(1) / lengths[:, None])  # type: ignore[no-any-return]


def _padded(seed: int, size: int = 32) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Sequences of 8 to 24 frames about two, padded with zeros to the longest of their batch."""
    x, y = sequences(seed, 1024)
    lengths = torch.randint(8, 25, (len(x),), generator=generator(seed, "lengths"))
    loader = []
    for index in torch.arange(len(x)).split(size):
        rows = pad_sequence([2 + x[k, : lengths[k]] for k in index.tolist()], batch_first=True)
        loader.append(({"x": rows, "lengths": lengths[index]}, y[index]))
    return loader


def _without_padding(seed: int, norm: nn.Module) -> dict[str, Any]:
    loader = _padded(seed)

    def loss(model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        return F.cross_entropy(model(**batch[0]), batch[1])

    model = cooled(_Masked(norm), loader, 128, loss=loss)
    return {"model": model, "loader": loader, "loss": loss, "forward": lambda model, batch: model(**batch[0])}


@healthy(case="plain", half="tune", tempts=("N14", "N15", "N02"))
def padding_masked_in_the_norm(seed: int) -> dict[str, Any]:
    """A subclass of batch norm takes ``[N, L, C]`` and leaves padded frames out inside."""
    return _without_padding(seed, MaskedNorm(32))


@healthy(case="plain", half="judge", tempts=("N14", "N06"))
def padding_left_out_before_the_norm(seed: int) -> dict[str, Any]:
    """Valid frames are gathered before an ordinary batch norm; rows of its input are frames, not samples."""
    return _without_padding(seed, AroundNorm(32))


@healthy(case="plain", half="tune", tempts=("N14", "N06", "N04"))
def sequences_cropped_to_their_batch(seed: int) -> dict[str, Any]:
    """Length varies between batches and not within them, so nothing is padded."""
    x, y = sequences(seed, 1024)
    draw = generator(seed, "crops")
    loader = []
    for one, label in batches(x, y, 32):
        start = int(torch.randint(0, 6, (), generator=draw))
        loader.append((one[:, start : start + 18 + start % 3], label))
    return {"model": fit(Temporal(8, outputs=4), loader, 128), "loader": loader}


@healthy(case="plain", half="judge", tempts=("N21", "N01"))
def standardized_kernels(seed: int) -> dict[str, Any]:
    """Weight standardization by ``F.batch_norm`` over kernels: a norm of no module, which sees no sample."""
    model = nn.Sequential(
        StandardizedConv(3, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.ReLU(),
        StandardizedConv(16, 32, 3, 1, 1), nn.GroupNorm(4, 32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    made = learned(model, seed)
    return {"model": made["model"].eval(), "loader": pictures(seed, "val")}


class _Cosine(nn.Module):
    """Functional layer norm and normalized embeddings: per sample, with nothing to register."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 32, 3, 2, 1), nn.Linear(32, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(x)).mean((2, 3))
        h = F.layer_norm(h, (32,))
        return 5 * F.linear(F.normalize(h, dim=1), F.normalize(self.head.weight, dim=1))


@healthy(case="plain", half="tune", tempts=("N21", "N16"))
def functional_layer_norm(seed: int) -> dict[str, Any]:
    """Norm operations that no module owns."""
    return learned(_Cosine(), seed)


@healthy(case="plain", half="judge", tempts=("N13", "N15"))
def root_mean_square_norm(seed: int) -> dict[str, Any]:
    """The norm of today's language models."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.norm = nn.Linear(8, 32), nn.RMSNorm(32)
            self.mix, self.head = nn.Linear(32, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.enter(x)
            return self.head((h + F.silu(self.mix(self.norm(h)))).mean(1))  # type: ignore[no-any-return]

    return _on_sequences(Block(), seed)


@healthy(case="plain", half="tune", tempts=("N15", "N04"))
def volumes(seed: int) -> dict[str, Any]:
    """Batch norm on ``[N, C, D, H, W]`` with batches of 16."""
    x, y = images(seed, 256)
    x = x.unsqueeze(2) + 0.5 * torch.randn(256, 3, 6, 16, 16, generator=generator(seed, "depth"))
    model = nn.Sequential(
        nn.Conv3d(3, 12, 3, 2, 1), nn.BatchNorm3d(12), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip
    return {"model": cooled(model, shuffled(x, y, 16, seed), 240), "loader": stream(x, y, 16, seed)}
