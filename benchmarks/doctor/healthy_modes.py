"""Modes that look wrong, and outputs that vary for reasons other than normalization."""

import copy
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
    images,
    mlp,
    pictures,
    sequences,
    shuffled,
    trained_cnn,
)  # fmt: skip
from benchmarks.doctor.healthy_nets import (
    FunctionalNorm,
    Recurrent,
    Transformer,
    UNet,
    learned,
    resnet,
    stepper,
    stream,
)  # fmt: skip
from benchmarks.doctor.setup import healthy


@healthy(case="F01", half="tune", tempts=("N02", "N10"))
def one_step_old(seed: int) -> dict[str, Any]:
    """Train and eval mode differ, since running statistics have had one update."""
    model = fit(CNN(), shuffled(*images(seed), 32, seed), 1)
    return {"model": model, "loader": stream(*images(seed), 32, seed)}


@healthy(case="H25", half="judge", tempts=("N02", "N17", "N20", "N10"))
def freshly_built(seed: int) -> dict[str, Any]:
    """Nothing was trained yet."""
    return {"model": resnet(), "loader": stream(*images(seed), 32, seed)}


@healthy(case="H25", half="tune", tempts=("N20", "N02", "N24"))
def freshly_built_in_eval_mode(seed: int) -> dict[str, Any]:
    """The same, looked at before training in eval mode."""
    return {"model": CNN().eval(), "loader": pictures(seed)}


@healthy(case="H24", half="judge", tempts=("N17", "N01"))
def no_norm_at_all(seed: int) -> dict[str, Any]:
    """Convolutions only, left in train mode."""
    return {**learned(CNN(lambda _: nn.Identity()), seed, steps=100), "intent": "serve"}


@healthy(case="F11", half="tune", tempts=("N17", "N01"))
def recurrent_left_in_eval_mode(seed: int) -> dict[str, Any]:
    """``train()`` was not restored after validation; no layer has modes."""
    x, y = sequences(seed)
    model = Recurrent(8, outputs=4)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    fit(model, shuffled(x, y, 32, seed), 80, optimizer=optimizer)
    model.eval()
    loader = stream(x, y, 32, seed)
    return {"model": model, "loader": loader, "optimizer": optimizer, "step": stepper(model, optimizer, loader)}


@healthy(case="F12", half="judge", tempts=("N17", "N25"))
def teacher_without_modes(seed: int) -> dict[str, Any]:
    """A teacher of plain convolutions beside its source; nobody set its mode."""
    model = CNN(lambda _: nn.Identity())
    fit(model, shuffled(*images(seed), 32, seed), 100)
    teacher = copy.deepcopy(model)
    fit(model, shuffled(*images(seed), 32, seed), 10)
    return {"model": teacher.train(), "loader": pictures(seed), "reference": model.eval()}


@healthy(case="F15", half="tune", tempts=("N01", "N17"))
def eval_by_train_false(seed: int) -> dict[str, Any]:
    """``train(False)`` is ``eval()``."""
    return {"model": trained_cnn(seed).train(False), "loader": pictures(seed, "val"), "intent": "serve"}


@healthy(case="F16", half="judge", tempts=("N01", "N18"))
def dropped_paths_without_batch_norm(seed: int) -> dict[str, Any]:
    """Outputs vary from call to call by stochastic depth, whoever the mates are."""
    model = resnet(lambda channels: nn.GroupNorm(4, channels), drop_path=0.2)
    return {**learned(model, seed, steps=100), "intent": "serve"}


@healthy(case="F16", half="tune", tempts=("N01",))
def dropout_in_a_transformer(seed: int) -> dict[str, Any]:
    """Left in train mode: dropout makes outputs vary."""
    x, y = sequences(seed)
    model = fit(Transformer(8, outputs=4, dropout=0.3), shuffled(x, y, 32, seed), 100)
    return {"model": model, "loader": stream(x, y, 32, seed), "intent": "serve"}


class _AlwaysDrops(nn.Module):
    """Dropout by function that stays on in eval mode."""

    def __init__(self, norm: Any = nn.BatchNorm2d) -> None:
        super().__init__()
        self.body = CNN(norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.body.head(F.dropout(self.body.features(x), 0.3, training=True))  # type: ignore[no-any-return]


@healthy(case="F17", half="judge", tempts=("N01", "N21"))
def functional_dropout_stays_on(seed: int) -> dict[str, Any]:
    """Eval mode differs from call to call, by dropout; batch norm is in eval mode."""
    made = learned(_AlwaysDrops(), seed)
    return {"model": made["model"].eval(), "loader": pictures(seed, "val")}


@healthy(case="F17", half="tune", tempts=("N01", "N17"))
def functional_dropout_with_group_norm(seed: int) -> dict[str, Any]:
    """The same without batch norm."""
    made = learned(_AlwaysDrops(lambda channels: nn.GroupNorm(4, channels)), seed)
    return {"model": made["model"].eval(), "loader": pictures(seed, "val"), "loss": cross_entropy}


class _Uncertain(nn.Module):
    """A CNN with dropout before its last layer."""

    def __init__(self, rate: float = 0.2) -> None:
        super().__init__()
        self.body, self.drop = CNN(), nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.body.head(self.drop(self.body.features(x)))  # type: ignore[no-any-return]


@healthy(case="plain", half="judge", tempts=("N01", "N17", "N28"))
def monte_carlo_dropout_done_right(seed: int) -> dict[str, Any]:
    """Eval mode with only the dropout layers switched back on."""
    model = learned(_Uncertain(), seed)["model"].eval()
    model.drop.train()
    return {"model": model, "loader": pictures(seed, "val")}


@healthy(case="plain", half="tune", tempts=("N28", "N02"))
def dropout_behind_the_last_norm(seed: int) -> dict[str, Any]:
    """Where it belongs."""
    made = learned(_Uncertain(0.5), seed)
    return {"model": made["model"].eval(), "loader": pictures(seed, "val")}


@healthy(case="plain", half="judge", tempts=("N28",))
def little_dropout_before_a_norm(seed: int) -> dict[str, Any]:
    """A rate of 0.05 on centred features: a variance shift of a few per cent."""
    model = nn.Sequential(nn.Linear(16, 48), nn.Tanh(), nn.Dropout(0.05), mlp(48))
    x, y = flat(seed)
    return {"model": fit(model, shuffled(x, y, 64, seed), 300).eval(), "loader": batches(*flat(seed), 64)}


@healthy(case="plain", half="tune", tempts=("N28", "N02"))
def dropout_before_a_norm_refreshed(seed: int) -> dict[str, Any]:
    """Statistics were estimated anew with dropout off, so that they are those that serve."""
    model = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Dropout(0.2), mlp(48))
    x, y = flat(seed)
    fit(model, shuffled(x, y, 64, seed), 300).eval()
    norms = [one for one in model.modules() if isinstance(one, nn.BatchNorm1d)]
    for one in norms:
        one.reset_running_stats()
        one.train().momentum = None
    with torch.no_grad():
        for _, (rows, _) in zip(range(32), shuffled(x, y, 64, seed), strict=False):
            model(rows)
    for one in norms:
        one.momentum = 0.1
    return {"model": model.eval(), "loader": batches(x, y, 64)}


def _as_if(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Predict in eval mode and leave the modes as they were."""
    modes = {one: one.training for one in model.modules()}
    model.eval()
    try:
        return model(batch[0])  # type: ignore[no-any-return]
    finally:
        for one, mode in modes.items():
            one.training = mode


@healthy(case="plain", half="judge", tempts=("N18", "N01", "N17"))
def predict_function_that_restores_modes(seed: int) -> dict[str, Any]:
    """The forward that the user gives switches to eval mode and back."""
    loader = pictures(seed, "val")

    def evaluate(model: nn.Module) -> float:
        right = [(_as_if(model, batch).argmax(1) == batch[1]).float().mean() for batch in loader[:4]]
        return float(torch.stack(right).mean())

    return {"model": trained_cnn(seed), "loader": loader, "forward": _as_if, "evaluate": evaluate}


@healthy(case="H22", half="tune", tempts=("N01", "N13"))
def evaluated_by_batch_statistics(seed: int) -> dict[str, Any]:
    """Test batches of 64 of the training distribution; the difference to eval mode is below a per cent."""
    return {
        "model": trained_cnn(seed), "loader": pictures(seed, "val", count=16, size=64),
        "intent": "batch-stats-at-test",
    }  # fmt: skip


@healthy(case="H22", half="judge", tempts=("N13", "N01"))
def built_without_running_statistics(seed: int) -> dict[str, Any]:
    """``track_running_stats=False`` from the start, batches of 64, and the user says that it is meant."""
    norm = {"track_running_stats": False}
    made = learned(CNN(lambda channels: nn.BatchNorm2d(channels, **norm)), seed, size=64, steps=100)
    return {
        "model": made["model"].eval(), "loader": pictures(seed, "val", count=16, size=64),
        "intent": "batch-stats-at-test",
    }  # fmt: skip


@healthy(case="H04", half="tune", tempts=("N01", "N04", "N17"))
def translated_by_batch_statistics(seed: int) -> dict[str, Any]:
    """Pix2pix: generator in train mode with batches of one, which makes its norms instance norms."""
    x, _ = images(seed, 256, size=32, offset=0.6)
    y = x.flip(1) * 0.7
    model = UNet(classes=3, width=8)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.l1_loss(model(batch[0]), batch[1])

    fit(model, shuffled(x, y, 1, seed), 200, loss=loss)
    return {"model": model, "loader": batches(x, y, 1)[:64], "loss": loss, "intent": "batch-stats-at-test"}


@healthy(case="H04", half="judge", tempts=("N01", "N17"))
def corrected_for_batch_effects(seed: int) -> dict[str, Any]:
    """Every batch comes from one instrument with a gain of its own, which batch statistics take out, as intended."""
    x, y = images(seed)
    gains = torch.linspace(0.6, 1.6, 32)
    loader = [(gain * one, label) for gain, (one, label) in zip(gains, batches(x, y, 32), strict=True)]
    return {"model": fit(CNN(), loader, 160), "loader": loader, "intent": "batch-stats-at-test"}


@healthy(case="plain", half="tune", tempts=("N21", "N01"))
def norm_written_by_hand(seed: int) -> dict[str, Any]:
    """A user's own module over ``F.batch_norm`` with registered buffers, in eval mode."""
    made = learned(CNN(FunctionalNorm), seed)
    return {"model": made["model"].eval(), "loader": pictures(seed, "val")}


@healthy(case="plain", half="judge", tempts=("N21", "N24"))
def lazily_built_norm(seed: int) -> dict[str, Any]:
    """Layers that learned their width from the first batch, all of them registered."""
    model = nn.Sequential(
        nn.LazyConv2d(16, 3, 2, 1), nn.LazyBatchNorm2d(), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10),
    )  # fmt: skip
    model(images(seed, 32)[0])
    made = learned(model, seed, steps=250)
    return {**made, "state_dict": made["model"].state_dict()}


@healthy(case="plain", half="tune", tempts=("N17", "N21"))
def norms_in_containers(seed: int) -> dict[str, Any]:
    """Norms in a ModuleList and a ModuleDict, in eval mode."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList([nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)])
            self.norms = nn.ModuleDict({"first": nn.BatchNorm2d(16), "second": nn.BatchNorm2d(16)})
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            for conv, norm in zip(self.convs, self.norms.values(), strict=True):
                x = F.relu(norm(conv(x)))
            return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    made = learned(Listed(), seed)
    return {"model": made["model"].eval(), "loader": pictures(seed, "val")}
