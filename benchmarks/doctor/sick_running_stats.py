"""Running statistics of other weights or none: stale (N02), missing in a checkpoint (N24), copies (N25), EMA (N30)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.doctor.data import (
    CNN,
    Batch,
    batches,
    fit,
    flat,
    images,
    mlp,
    pictures,
    shared,
    shuffled,
    trained_cnn,
)  # fmt: skip
from benchmarks.doctor.setup import sick


@torch.no_grad()
def _average(target: nn.Module, source: nn.Module, decay: float, buffers: bool) -> None:
    """Move `target` towards `source`; without buffers as many loops do it: by zip(parameters(), parameters())."""
    for mine, new in zip(target.parameters(), source.parameters(), strict=True):
        mine.lerp_(new, 1 - decay)
    if buffers:
        for old, now in zip(target.buffers(), source.buffers(), strict=True):
            old.copy_(now if not old.is_floating_point() else torch.lerp(old, now, 1 - decay))


def _default_statistics(model: nn.Module) -> nn.Module:
    for one in model.modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm):
            one.reset_running_stats()
    return model


@shared
def _averaged(seed: int, decay: float, steps: int, buffers: bool) -> tuple[CNN, CNN]:
    """A network in training and its exponential moving average from the first step on."""
    online = CNN()
    mean = copy.deepcopy(online)
    stream = shuffled(*images(seed), 32, seed)
    fit(online, stream, steps, after=lambda: _average(mean, online, decay, buffers))
    return online, mean.eval()


# N02 -----------------------------------------------------------------------------------------------------------------


@sick("N02", case="C17", half="tune", accepted={"N20"})
def ema_of_parameters_only(seed: int) -> dict[str, Any]:
    """The averaged network is served; its buffers are those of step 0."""
    return {"model": _averaged(seed, 0.95, 150, False)[1], "loader": pictures(seed, "val")}


@sick("N02", case="C23", half="judge")
def averaged_weights_without_refresh(seed: int) -> dict[str, Any]:
    """Checkpoints of a large learning rate averaged, buffers too: no forward ever saw these weights."""
    model, stream, kept = CNN(), shuffled(*images(seed), 32, seed), []
    fit(model, stream, 60)
    for _ in range(5):
        fit(model, stream, 25, lr=3e-2)
        kept.append(copy.deepcopy(model.state_dict()))
    mean = {name: torch.stack([one[name].float() for one in kept]).mean(0).to(kept[0][name].dtype) for name in kept[0]}
    model.load_state_dict(mean)
    return {"model": model.eval(), "loader": pictures(seed)}


@sick("N02", case="C28", half="tune")
def adapter_reloaded_onto_the_base(seed: int) -> dict[str, Any]:
    """Trained on shifted pictures in train mode; only what trained was saved, so the base's buffers came back."""
    model = trained_cnn(seed)
    base = {name: value.clone() for name, value in model.named_buffers()}
    x, y = images(seed, 1024, "adapt", noise=1.2, gain=0.5)
    x = 0.5 * x.flip(1) + 1.0
    fit(model, shuffled(x, y, 32, seed), 100)
    model.load_state_dict(base, strict=False)
    return {"model": model.eval(), "loader": batches(x[:768], y[:768], 32)}


@sick("N02", case="C33", half="judge", accepted={"N22"})
def pruned_without_refresh(seed: int) -> dict[str, Any]:
    """Half of the first filters removed, statistics of the next layer are those of the whole network."""
    model = trained_cnn(seed).eval()
    with torch.no_grad():
        weakest = model.conv1.weight.flatten(1).norm(dim=1).argsort()[:8]
        model.conv1.weight[weakest] = 0
        for one in (model.bn1.weight, model.bn1.bias, model.bn1.running_mean):
            assert one is not None
            one[weakest] = 0
    return {"model": model, "loader": pictures(seed, "val")}


@sick("N02", case="C32", half="judge", accepted={"N20"})
def functional_training_loses_buffers(seed: int) -> dict[str, Any]:
    """Trained by functional calls on cloned buffers: the module got the weights, its statistics never moved."""
    model = CNN()
    buffers = {name: value.clone() for name, value in model.named_buffers()}

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        state = {**dict(model.named_parameters()), **buffers}
        logits = torch.func.functional_call(model, state, (batch[0],))
        return nn.functional.cross_entropy(logits, batch[1])

    fit(model, shuffled(*images(seed), 32, seed), loss=loss)
    return {"model": model.eval(), "loader": pictures(seed, "val")}


@sick("N02", "N10", case="C22", half="tune", accepted={"N02", "N10", "N20"})
def refresh_with_momentum_zero(seed: int) -> dict[str, Any]:
    """Statistics were reset and the loader forwarded, with momentum 0 where None was needed: counted, never moved."""
    model = _default_statistics(trained_cnn(seed)).train()
    for one in (model.bn1, model.bn2):
        assert isinstance(one, nn.BatchNorm2d)
        one.momentum = 0.0
    with torch.no_grad():
        for x, _ in pictures(seed):
            model(x)
    return {"model": model.eval(), "loader": pictures(seed, "val")}


# N24 -----------------------------------------------------------------------------------------------------------------


@sick("N24", case="C29", half="tune", accepted={"N02", "N20"})
def checkpoint_of_parameters(seed: int) -> dict[str, Any]:
    """parameters() were saved, and loaded with strict=False."""
    state = dict(trained_cnn(seed).named_parameters())
    state = {name: value.detach() for name, value in state.items()}
    model = CNN()
    model.load_state_dict(state, strict=False)
    return {"model": model.eval(), "loader": pictures(seed, "val"), "state_dict": state}


@sick("N24", case="C28", half="judge", accepted={"N02", "N20"})
def conversion_drops_buffers_of_a_layer(seed: int) -> dict[str, Any]:
    """A conversion of names lost the statistics of the second layer."""
    state = {name: value for name, value in trained_cnn(seed).state_dict().items() if "bn2.running" not in name}
    model = CNN()
    model.load_state_dict(state, strict=False)
    return {"model": model.eval(), "loader": pictures(seed, "val"), "state_dict": state}


@sick("N24", case="C29", half="judge", accepted={"N02", "N20"})
def checkpoint_with_default_statistics(seed: int) -> dict[str, Any]:
    """The first layer of the checkpoint has the statistics of a new layer although it counted as many batches."""
    model = trained_cnn(seed).eval()
    model.bn1.load_state_dict(nn.BatchNorm2d(16).state_dict() | dict(model.bn1.named_parameters()))
    return {"model": model, "loader": pictures(seed, "val"), "state_dict": model.state_dict()}


# N25 -----------------------------------------------------------------------------------------------------------------


@sick("N25", case="C17", half="tune", accepted={"N02", "N20"})
def teacher_without_buffers(seed: int) -> dict[str, Any]:
    """The student is well; its averaged teacher never got the buffers."""
    online, mean = _averaged(seed, 0.95, 150, False)
    return {"model": online.eval(), "loader": pictures(seed), "reference": mean}


def _squared(model: nn.Module, batch: Batch) -> Tensor:
    """Regression of the value of the action taken."""
    return nn.functional.mse_loss(model(batch[0]), nn.functional.one_hot(batch[1], 10).float())


@sick("N25", case="C21", half="judge", accepted={"N02", "N20"})
def target_network_without_buffers(seed: int) -> dict[str, Any]:
    """A value network and its target, moved by Polyak averaging of parameters."""
    online = mlp()
    target = copy.deepcopy(online)
    x, y = flat(seed)
    fit(online, shuffled(x, y, 64, seed), 300, loss=_squared, after=lambda: _average(target, online, 0.98, False))
    loader = batches(*flat(seed, 24 * 64, "replay"), 64)
    return {"model": online.eval(), "loader": loader, "reference": target.eval(), "loss": _squared}


def _client(seed: int, number: int, start: nn.Module) -> nn.Module:
    """A round of training on two classes only, each client's pictures with a colour of their own."""
    x, y = images(seed, 1024, f"client {number}")
    mine = y % 5 == number
    tint = 0.5 * torch.tensor([number - 2.0, 2.0 - number, 0.5]).view(1, 3, 1, 1)
    return fit(copy.deepcopy(start).train(), shuffled(x[mine] + tint, y[mine], 32, number), 12, lr=1e-3)


@sick("N25", "N02", case="C76", half="judge", accepted={"N02", "N25"})
def federated_average_of_parameters(seed: int) -> dict[str, Any]:
    """The server averages the clients' parameters; its buffers are those of a new network."""
    server = _default_statistics(trained_cnn(seed))
    clients = [_client(seed, number, server) for number in range(5)]
    with torch.no_grad():
        for mine, *theirs in zip(server.parameters(), *(one.parameters() for one in clients), strict=True):
            mine.copy_(torch.stack(theirs).mean(0))
    return {"model": server.eval(), "loader": pictures(seed, "val"), "reference": clients[0].eval()}


# N30 -----------------------------------------------------------------------------------------------------------------


@sick("N30", case="C19", half="tune", accepted={"N02", "N25", "N20"})
def ema_hardly_left_its_start(seed: int) -> dict[str, Any]:
    """A decay for millions of updates, where there were 150."""
    online, mean = _averaged(seed, 0.9998, 150, True)
    told = {"reference": mean, "ema_decay": 0.9998, "ema_updates": 150}
    return {"model": online.eval(), "loader": pictures(seed), **told}


@sick("N30", case="C19", half="judge", accepted={"N02", "N25", "N20"})
def ema_half_way(seed: int) -> dict[str, Any]:
    """A decay of 0.99 over 60 updates: the average is still half the start."""
    online, mean = _averaged(seed, 0.99, 60, True)
    told = {"reference": mean, "ema_decay": 0.99, "ema_updates": 60}
    return {"model": online.eval(), "loader": pictures(seed), **told}
