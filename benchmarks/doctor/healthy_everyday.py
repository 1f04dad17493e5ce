"""What real projects hand over: odd batches, odd modules and old checkpoints around sound networks."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.doctor.data import (
    CNN,
    Batch,
    batches,
    fit,
    flat,
    generator,
    images,
    mlp,
    pictures,
    shuffled,
    trained_cnn,
)  # fmt: skip
from benchmarks.doctor.healthy_nets import cooled, learned, stream
from benchmarks.doctor.setup import healthy


@healthy(case="plain", half="tune", tempts=("N02", "N10", "N20"))
def counters_at_zero(seed: int) -> dict[str, Any]:
    """Weights older than the counter of batches: statistics are filled, and the counter says zero."""
    model = trained_cnn(seed).eval()
    for one in (model.bn1, model.bn2):
        assert one.num_batches_tracked is not None
        one.num_batches_tracked.zero_()
    return {"model": model, "loader": pictures(seed, "val")}


@healthy(case="plain", half="judge", tempts=("N24", "N10"))
def checkpoint_without_counters(seed: int) -> dict[str, Any]:
    """A checkpoint from before the counter of batches existed; nothing that serves is missing."""
    model = trained_cnn(seed).eval()
    state = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    return {"model": model, "loader": pictures(seed, "val"), "state_dict": state}


@healthy(case="plain", half="tune", tempts=("N10", "N31", "N27"))
def numbers_of_another_framework(seed: int) -> dict[str, Any]:
    """Epsilon 1e-3 and momentum 0.01, as TensorFlow's defaults read in torch, in eval mode."""
    model = mlp(norm=lambda width: nn.BatchNorm1d(width, eps=1e-3, momentum=0.01))
    for rate in (3e-3, 3e-4):
        fit(model, shuffled(*flat(seed), 64, seed), 600, lr=rate)
    return {"model": model.eval(), "loader": batches(*flat(seed), 64)}


@healthy(case="plain", half="judge", tempts=("N20", "N02", "N24"))
def norm_of_standardized_inputs(seed: int) -> dict[str, Any]:
    """The first layer is a norm over inputs that are standardized already: statistics look like the defaults."""
    x, y = flat(seed)
    x = (x - x.mean(0)) / x.std(0)
    norm = nn.BatchNorm1d(16, affine=False)
    model = fit(nn.Sequential(norm, mlp()), shuffled(x, y, 64, seed), 300)
    return {"model": model.eval(), "loader": batches(x, y, 64), "state_dict": model.state_dict()}


class _Auxiliary(nn.Module):
    """A second head that only training sees, as Inception has it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.rest = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.side = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.head, self.side_head = nn.Linear(32, 10), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.stem(x)
        out: Tensor = self.head(self.rest(h).mean((2, 3)))
        return (out, self.side_head(self.side(h).mean((2, 3)))) if self.training else out


@healthy(case="plain", half="tune", tempts=("N02", "N21", "N17"))
def auxiliary_head_in_eval_mode(seed: int) -> dict[str, Any]:
    """A norm that no forward pass of the eval mode reaches."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        main, side = model(batch[0])
        return F.cross_entropy(main, batch[1]) + 0.3 * F.cross_entropy(side, batch[1])

    model = cooled(_Auxiliary(), shuffled(*images(seed), 32, seed), 100, loss=loss)
    return {"model": model.eval(), "loader": pictures(seed, "val")}


@healthy(case="plain", half="judge", tempts=("N01", "N22"))
def outputs_in_a_tuple(seed: int) -> dict[str, Any]:
    """Features beside logits; some features are always zero."""

    class Both(nn.Module):
        def __init__(self, body: CNN) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.body.features(x)
            return self.body.head(features), features

    return {"model": Both(trained_cnn(seed)).eval(), "loader": [x for x, _ in pictures(seed, "val")]}


class _Activated(nn.BatchNorm2d):
    """Norm and nonlinearity in one module, as timm has them."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


@healthy(case="plain", half="tune", tempts=("N22", "N15", "N21"))
def norm_with_its_nonlinearity(seed: int) -> dict[str, Any]:
    """The output of the norm module is not what normalization alone would give."""
    return learned(CNN(_Activated), seed)


class _Ghost(nn.BatchNorm2d):
    """Ghost batch norm (Hoffer et al. 2017): a large batch is normalized in chunks of sixteen."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return torch.cat([super(_Ghost, self).forward(one) for one in x.split(16)])


@healthy(case="plain", half="judge", tempts=("N07", "N09", "N04"))
def ghost_batches(seed: int) -> dict[str, Any]:
    """Four updates a step by chunks of one random batch, at a small momentum."""
    return learned(CNN(lambda channels: _Ghost(channels, momentum=0.02)), seed, size=64, steps=120)


@healthy(case="plain", half="tune", tempts=("N18", "N01", "N03"))
def spectral_norm_in_train_mode(seed: int) -> dict[str, Any]:
    """Power iteration moves buffers at every forward pass of the train mode; they are no statistics of data."""
    model = CNN(lambda channels: nn.GroupNorm(4, channels))
    model.conv2, model.head = spectral_norm(model.conv2), spectral_norm(model.head)
    return learned(model, seed, steps=120)


@healthy(case="plain", half="judge", tempts=("N13", "N31"))
def weight_norm_on_convolutions(seed: int) -> dict[str, Any]:
    """A reparametrized network, served; a norm by name, and none of activations."""
    model = CNN(lambda _: nn.Identity())
    model.conv1, model.conv2 = weight_norm(model.conv1), weight_norm(model.conv2)
    return {"model": learned(model, seed)["model"].eval(), "loader": pictures(seed, "val")}


@healthy(case="plain", half="tune", tempts=("N23", "N01", "N11"))
def served_in_bfloat16(seed: int) -> dict[str, Any]:
    """All of the model in bfloat16, buffers too; in eval mode they only have to be read."""
    loader = [(x.bfloat16(), y) for x, y in pictures(seed, "val")]
    return {"model": trained_cnn(seed).eval().bfloat16(), "loader": loader}


@healthy(case="plain", half="judge", tempts=("N21", "N17"))
def traced_by_fx(seed: int) -> dict[str, Any]:
    """A graph module; functions of the forward pass became nodes."""
    return {"model": fx.symbolic_trace(trained_cnn(seed).eval()), "loader": pictures(seed, "val")}


@healthy(case="plain", half="tune", tempts=("N21", "N01"))
def scripted_in_eval_mode(seed: int) -> dict[str, Any]:
    """A traced module as the model itself; its layers are no longer those of torch.nn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(trained_cnn(seed).eval(), images(seed, 4)[0])
    return {"model": traced, "loader": pictures(seed, "val")}


@healthy(case="plain", half="judge", tempts=("N21", "N17"))
def compiled_model_in_train_mode(seed: int) -> dict[str, Any]:
    """The model is handed over as ``torch.compile`` returned it."""
    model = torch.compile(trained_cnn(seed), backend="eager", dynamic=True)
    return {"model": model, "loader": stream(*images(seed), 32, seed)}


@healthy(case="plain", half="tune", tempts=("N06", "N02"))
def soft_labels(seed: int) -> dict[str, Any]:
    """Mixup (Zhang et al. 2018): every picture is a mixture of two, every label a distribution."""
    x, y = images(seed)
    other = torch.randperm(len(x), generator=generator(seed, "partners"))
    share = torch.rand(len(x), generator=generator(seed, "shares"))
    x = share[:, None, None, None] * x + (1 - share)[:, None, None, None] * x[other]
    soft = share[:, None] * F.one_hot(y, 10) + (1 - share)[:, None] * F.one_hot(y[other], 10)
    return {"model": cooled(CNN(), shuffled(x, soft, 32, seed), 150), "loader": stream(x, soft, 32, seed)}


@healthy(case="plain", half="judge", tempts=("N06",))
def batches_with_names(seed: int) -> dict[str, Any]:
    """Batches also carry indices and file names."""
    loader = [
        (x, y, torch.arange(32) + 32 * k, [f"{k}-{i}.png" for i in range(32)])
        for k, (x, y) in enumerate(pictures(seed))
    ]
    return {"model": trained_cnn(seed), "loader": loader, "forward": lambda model, batch: model(batch[0])}


@healthy(case="plain", half="tune", tempts=("N06", "N04"))
def nine_of_ten_are_one_class(seed: int) -> dict[str, Any]:
    """Labels are pure in most batches, since they are in the data."""
    x, y = images(seed, 4096)
    keep = (y == 0) | (torch.rand(len(y), generator=generator(seed, "rare")) < 0.012)
    x, y = x[keep], y[keep]
    return {"model": cooled(CNN(), shuffled(x, y, 16, seed), 120), "loader": stream(x, y, 16, seed)}


@healthy(case="plain", half="judge", tempts=("N06", "N04"))
def repeated_augmentation(seed: int) -> dict[str, Any]:
    """Every picture three times in its batch of 96, each time with other noise."""
    draw = generator(seed, "repeats")
    x, y = images(seed, 768, noise=0.0)
    loader = []
    for one, label in batches(x, y, 32):
        rows = one.repeat(3, 1, 1, 1)
        loader.append((rows + 0.8 * torch.randn(rows.shape, generator=draw), label.repeat(3)))
    return {"model": cooled(CNN(), loader, 75), "loader": loader}


@healthy(case="plain", half="tune", tempts=("N06", "N02", "N04"))
def five_batches_only(seed: int) -> dict[str, Any]:
    """Too few batches to judge much by; nothing speaks against the model."""
    return {"model": trained_cnn(seed), "loader": pictures(seed, count=5)}


@healthy(case="plain", half="judge", tempts=("N06", "N02"))
def one_batch_only(seed: int) -> dict[str, Any]:
    """A single batch."""
    return {"model": trained_cnn(seed).eval(), "loader": pictures(seed, "val", count=1)}


class _Neck(nn.Module):
    """A norm between the embedding and the classifier, as in person re-identification (Luo et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.neck, self.head = CNN(), nn.BatchNorm1d(32), nn.Linear(32, 10, bias=False)
        self.neck.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck(self.body.features(x)))  # type: ignore[no-any-return]


@healthy(case="plain", half="tune", tempts=("N03", "N04", "N22"))
def neck_with_a_frozen_bias(seed: int) -> dict[str, Any]:
    """Only the bias of the neck is frozen, by design; its gain trains, and so do its statistics."""
    return learned(_Neck(), seed, size=64, steps=120)


class _Language(nn.Module):
    """A causal language model of one layer, over tokens."""

    def __init__(self, tokens: int = 20, width: int = 32) -> None:
        super().__init__()
        self.enter, self.place = nn.Embedding(tokens, width), nn.Parameter(0.1 * torch.randn(16, width))
        self.block = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        h = self.block(self.enter(tokens) + self.place[:length], src_mask=mask, is_causal=True)
        return self.head(self.norm(h))  # type: ignore[no-any-return]


@healthy(case="plain", half="judge", tempts=("N15", "N14", "N19"))
def language_model(seed: int) -> dict[str, Any]:
    """Inputs are integers without labels; sentences often end with the same token."""
    draw = generator(seed, "tokens")
    steps = torch.randint(1, 4, (1024, 1), generator=draw)
    text = (torch.randint(20, (1024, 1), generator=draw) + steps * torch.arange(17)) % 20
    text[:, 13:] = torch.where(torch.rand(1024, 1, generator=draw) < 0.3, 0, text[:, 13:])

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    loader = list(text.split(32))
    model = fit(_Language(), loader, 96, loss=loss)
    return {"model": model, "loader": loader, "loss": loss, "forward": lambda model, batch: model(batch[:, :-1])}


@healthy(case="plain", half="tune", tempts=("N06", "N05"))
def loader_of_pictures_alone(seed: int) -> dict[str, Any]:
    """One tensor in a tuple, from a loader over a data set of pictures alone."""
    loader = DataLoader(TensorDataset(images(seed)[0]), 32, shuffle=True, generator=generator(seed, "stream"))
    return {"model": trained_cnn(seed), "loader": loader}


@healthy(case="plain", half="judge", tempts=("N03", "N09"))
def frozen_stem_in_train_mode_without_norms(seed: int) -> dict[str, Any]:
    """The frozen part has no norm; norms of the rest train in train mode."""
    x, y = images(seed)
    model = trained_cnn(seed)
    model.conv1.requires_grad_(False)
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], 1e-3)
    fit(model, shuffled(x, y, 32, seed), 60, optimizer=optimizer)
    return {"model": model, "loader": stream(x, y, 32, seed), "optimizer": optimizer}
