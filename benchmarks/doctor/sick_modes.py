"""Mode mistakes: eval forgotten (N01), left over or mixed (N17), a side forward that moves the statistics (N18)."""

from collections.abc import Callable, Iterator
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
    pictures,
    shuffled,
    trained_cnn,
    trained_mlp,
)  # fmt: skip
from benchmarks.doctor.setup import sick

# N01 -----------------------------------------------------------------------------------------------------------------


@sick("N01", case="C03", half="tune")
def eval_forgotten(seed: int) -> dict[str, Any]:
    """A good network that predicts in train mode: the same picture differs alone and in company."""
    return {"model": trained_cnn(seed).train(), "loader": pictures(seed, "val"), "intent": "serve"}


@sick("N01", case="C04", half="judge", accepted={"N04", "N06"})
def eval_forgotten_folder_by_folder(seed: int) -> dict[str, Any]:
    """Predicts in train mode, from pictures that come sorted by class in batches of eight."""
    x, y = images(seed, 256, "val")
    loader = batches(x, y, 8, order=y.argsort())
    return {"model": trained_cnn(seed).train(), "loader": loader, "intent": "serve"}


@sick("N01", case="C05", half="judge", accepted={"N04"})
def eval_forgotten_flat_features(seed: int) -> dict[str, Any]:
    """A classifier of points that predicts in train mode."""
    loader = batches(*flat(seed, 24 * 16, "val"), 16)
    return {"model": trained_mlp(seed).train(), "loader": loader, "intent": "serve"}


class MonteCarlo(CNN):
    """Dropout before the head, kept on at test by switching the whole network to train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.features(x)))
        return logits


@sick("N01", case="C15", half="tune", accepted={"N18"})
def monte_carlo_dropout_by_train(seed: int) -> dict[str, Any]:
    """Twenty drawn predictions averaged, each by the network in train mode: batch norm is switched with the dropout."""
    model = fit(MonteCarlo(), shuffled(*images(seed), 32, seed))

    def predict(model: nn.Module, batch: Any) -> Tensor:
        model.train()
        with torch.no_grad():
            drawn: Tensor = torch.stack([model(batch[0]) for _ in range(20)]).mean(0)
        model.eval()
        return drawn

    return {"model": model.eval(), "loader": pictures(seed, "val"), "forward": predict, "intent": "serve"}


# N17 -----------------------------------------------------------------------------------------------------------------


def _stepper(model: nn.Module, loader: list[Any], lr: float = 1e-3) -> dict[str, Any]:
    """A training step as users write it: it switches no mode. With the optimizer that it uses."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    stream = _cycle(loader)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model, next(stream)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return {"step": step, "optimizer": optimizer}


def _cycle(loader: list[Any]) -> Iterator[Any]:
    while True:
        yield from loader


@sick("N17", case="C06", half="tune", accepted={"N02"})
def eval_left_over_after_validation(seed: int) -> dict[str, Any]:
    """The loop validated after a few steps and never went back to train mode: statistics stopped, gamma and beta train."""
    model, loader = CNN(), pictures(seed)
    fit(model, shuffled(*images(seed), 32, seed), 20)
    fit(model.eval(), shuffled(*images(seed), 32, seed + 1), 80)
    return {"model": model, "loader": loader, **_stepper(model, loader)}


class Backbone(nn.Module):
    """A network whose features are validated on their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = CNN()
        self.body.head = nn.Linear(32, 32, bias=False)
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.norm(self.body(x))))
        return logits


@sick("N17", case="C06", half="judge", accepted={"N02"})
def eval_left_over_in_the_backbone(seed: int) -> dict[str, Any]:
    """A nearest-neighbour validation put the backbone in eval early on; the root and the head train on."""
    model, loader = Backbone(), pictures(seed)
    stream = shuffled(*images(seed), 32, seed)
    fit(model, stream, 20)
    model.body.eval()
    fit(model, stream, 80)
    return {"model": model, "loader": loader, **_stepper(model, loader)}


@sick("N17", "N01", case="C13", half="tune", accepted={"N01", "N17"})
def head_replaced_after_eval(seed: int) -> dict[str, Any]:
    """A block was exchanged after the call of eval(): new modules are in train mode."""
    model = trained_cnn(seed).eval()
    norm = nn.BatchNorm2d(32)
    norm.load_state_dict(model.bn2.state_dict())
    model.bn2 = norm
    return {"model": model, "loader": pictures(seed, "val"), "intent": "serve"}


class Shielded(nn.Module):
    """A container that forgets to pass the mode on (bindings and wrappers of others do)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def train(self, mode: bool = True) -> "Shielded":
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


@sick("N17", "N01", case="C13", half="judge", accepted={"N01", "N17"})
def eval_does_not_reach(seed: int) -> dict[str, Any]:
    """eval() on the parent sets the parent only; it serves by batch statistics."""
    model = Shielded(trained_cnn(seed).train()).eval()
    return {"model": model, "loader": pictures(seed, "val"), "intent": "serve"}


# N18 -----------------------------------------------------------------------------------------------------------------


def _validation(model: nn.Module, loader: list[Any]) -> Callable[[], float]:
    def evaluate() -> float:
        with torch.no_grad():
            return float(torch.stack([cross_entropy(model, batch) for batch in loader]).mean())

    return evaluate


@sick("N18", case="C07", half="tune", accepted={"N26"})
def validation_in_train_mode(seed: int) -> dict[str, Any]:
    """The validation loss is computed under no_grad but in train mode: validation pictures enter the statistics."""
    model = trained_cnn(seed).train()
    x, y = images(seed, 24 * 32, "val", noise=1.6)
    return {"model": model, "loader": pictures(seed), "evaluate": _validation(model, batches(x, y, 32))}


class Attack:
    """Perturbs pictures along the gradient, and restores the mode that it saw when it was built."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.mode = model, model.training

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.model.eval()
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(self.model(x), y), x)
        self.model.train(self.mode)
        return (x + 0.1 * gradient.sign()).detach()


@sick("N18", case="C09", half="judge")
def attack_restores_train_mode(seed: int) -> dict[str, Any]:
    """Robust accuracy of a model in eval, by an attack built while it was still training: attacked pictures move it."""
    model = trained_cnn(seed).train()
    attack, loader = Attack(model), pictures(seed, "val")
    model.eval()

    def evaluate() -> float:
        right = [(model(attack(x, y)).argmax(1) == y).float().mean() for x, y in loader]
        return float(torch.stack(right).mean())

    return {"model": model, "loader": loader, "evaluate": evaluate}


@sick("N18", case="C10", half="judge")
def summary_moves_statistics(seed: int) -> dict[str, Any]:
    """A tool that prints the shapes of all layers feeds noise in train mode."""
    model = trained_cnn(seed).eval()

    def evaluate() -> int:
        modes = {one: one.training for one in model.modules()}
        model.train()
        model(torch.randn(2, 3, 16, 16))
        for one, mode in modes.items():
            one.training = mode
        return sum(one.numel() for one in model.parameters())

    return {"model": model, "loader": pictures(seed, "val"), "evaluate": evaluate}


@sick("N18", case="C08", half="tune", accepted={"N04"})
def policy_acts_in_train_mode(seed: int) -> dict[str, Any]:
    """A policy rolled out in train mode, two observations at a time, one place after the other."""
    model = trained_mlp(seed).train()
    x, y = flat(seed, 512, "rollout")
    rollout = batches(x, y, 2, order=y.argsort())
    loader = batches(*flat(seed, 24 * 32), 32)
    return {"model": model, "loader": loader, "evaluate": _validation(model, rollout)}
