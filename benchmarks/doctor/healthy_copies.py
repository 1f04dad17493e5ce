"""Averaged, followed and saved copies of a network that carry the right statistics."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from benchmarks.doctor.data import (
    CNN,
    batches,
    cross_entropy,
    fit,
    flat,
    images,
    mlp,
    pictures,
    shuffled,
    trained_cnn,
    trained_mlp,
)  # fmt: skip
from benchmarks.doctor.healthy_nets import stepper, stream
from benchmarks.doctor.setup import healthy


def _averaged(seed: int, average: Callable[[nn.Module], AveragedModel], steps: int = 200) -> tuple[CNN, AveragedModel]:
    """A CNN and its average over the last two thirds of its training."""
    model = CNN()
    copied = average(model)
    done = 0

    def after() -> None:
        nonlocal done
        done += 1
        if done > steps // 3:
            copied.update_parameters(model)

    fit(model, shuffled(*images(seed), 32, seed), steps, after=after)
    return model, copied


@healthy(case="H23", half="tune", tempts=("N02", "N25", "N18"))
def averaged_weights_refreshed(seed: int) -> dict[str, Any]:
    """SWA with ``update_bn``: its buffers differ from the live ones, as they should."""
    model, swa = _averaged(seed, AveragedModel)
    update_bn(pictures(seed), swa)
    return {"model": swa.eval(), "loader": pictures(seed), "reference": model}


def _ema(decay: float, buffers: bool) -> Callable[[nn.Module], AveragedModel]:
    return lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=buffers)


@healthy(case="H23", half="judge", tempts=("N25", "N30", "N02"))
def ema_of_weights_and_buffers(seed: int) -> dict[str, Any]:
    """An exponential average over about twenty steps that averages the buffers, too."""
    model, ema = _averaged(seed, _ema(0.95, buffers=True))
    updates = int(ema.n_averaged)
    return {
        "model": ema.eval(), "loader": pictures(seed), "reference": model, "ema_decay": 0.95, "ema_updates": updates,
    }  # fmt: skip


@healthy(case="H23", half="tune", tempts=("N25", "N30"))
def ema_refreshed_at_the_end(seed: int) -> dict[str, Any]:
    """An average of the weights alone, whose statistics were estimated afterwards."""
    model, ema = _averaged(seed, _ema(0.95, buffers=False))
    updates = int(ema.n_averaged)
    update_bn(stream(*images(seed), 64, seed), ema)
    return {
        "model": ema.module.eval(), "loader": pictures(seed, "val"), "reference": model,
        "ema_decay": 0.95, "ema_updates": updates,
    }  # fmt: skip


@healthy(case="plain", half="judge", tempts=("N30", "N25"))
def ema_with_ramped_decay(seed: int) -> dict[str, Any]:
    """The decay grows as (1 + t) / (10 + t) up to 0.999, so that a short training leaves no trace of its start."""
    model = CNN()
    ema = copy.deepcopy(model).eval()
    done = 0

    def after() -> None:
        nonlocal done
        done += 1
        share = 1 - min(0.999, (1 + done) / (10 + done))
        with torch.no_grad():
            for old, new in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
                old.lerp_(new, share) if old.is_floating_point() else old.copy_(new)

    fit(model, shuffled(*images(seed), 32, seed), 300, after=after)
    return {"model": ema, "loader": pictures(seed), "reference": model}


@healthy(case="F14", half="tune", tempts=("N02", "N25", "N03"))
def teacher_that_runs_forward_itself(seed: int) -> dict[str, Any]:
    """A mean teacher gets parameters only, but is called in train mode on every batch and fills its own buffers."""
    student = CNN()
    teacher = copy.deepcopy(student).requires_grad_(False)
    supply = shuffled(*images(seed), 32, seed)
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    for _ in range(150):
        batch = next(supply)
        optimizer.zero_grad()
        with torch.no_grad():
            hint = teacher(batch[0])
        loss = cross_entropy(student, batch) + 0.1 * (student(batch[0]) - hint).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.lerp_(new, 0.05)
    optimizer.zero_grad()
    return {"model": teacher.eval(), "loader": pictures(seed), "reference": student}


@healthy(case="F21", half="judge", tempts=("N12", "N25"))
def two_ranks_with_their_own_statistics(seed: int) -> dict[str, Any]:
    """Two ranks with plain batch norm and averaged gradients: parameters agree, buffers differ by their shards."""
    one, two = CNN(), CNN()
    two.load_state_dict(one.state_dict())
    optimizers = [torch.optim.Adam(rank.parameters(), 3e-3) for rank in (one, two)]
    supplies = [shuffled(*images(seed, 1024, f"shard {rank}"), 32, seed) for rank in range(2)]
    for _ in range(100):
        for rank, optimizer, supply in zip((one, two), optimizers, supplies, strict=True):
            optimizer.zero_grad()
            cross_entropy(rank, next(supply)).backward()  # type: ignore[no-untyped-call]
        for left, right in zip(one.parameters(), two.parameters(), strict=True):
            assert left.grad is not None
            assert right.grad is not None
            left.grad = (left.grad + right.grad) / 2
            right.grad = left.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for optimizer in optimizers:
        optimizer.zero_grad()
    return {"model": one, "loader": pictures(seed, "shard 0"), "reference": two}


@healthy(case="plain", half="tune", tempts=("N25", "N02"))
def target_network_with_buffers(seed: int) -> dict[str, Any]:
    """A target network that follows the online one in parameters and buffers."""
    online = mlp()
    target = copy.deepcopy(online).requires_grad_(False).eval()

    def follow() -> None:
        with torch.no_grad():
            for old, new in zip(target.state_dict().values(), online.state_dict().values(), strict=True):
                old.lerp_(new, 0.05) if old.is_floating_point() else old.copy_(new)

    fit(online, shuffled(*flat(seed), 64, seed), 300, after=follow)
    return {"model": online, "loader": batches(*flat(seed), 64), "reference": target}


@healthy(case="plain", half="judge", tempts=("N25",))
def target_network_updated_at_times(seed: int) -> dict[str, Any]:
    """A hard copy of everything every fifty steps; it is old by design, and consistent in itself."""
    online = fit(mlp(), shuffled(*flat(seed), 64, seed), 300)
    target = copy.deepcopy(online).requires_grad_(False).eval()
    fit(online, shuffled(*flat(seed), 64, seed), 25)
    return {"model": online, "loader": batches(*flat(seed), 64), "reference": target}


@healthy(case="plain", half="tune", tempts=("N25", "N02", "N24"))
def clients_averaged_with_buffers(seed: int) -> dict[str, Any]:
    """Federated averaging of whole state dicts over clients of one distribution, after short local training."""
    server: nn.Module = trained_cnn(seed, 60)
    for turn in range(4):
        states = []
        for client in range(3):
            local = copy.deepcopy(server)
            fit(local, shuffled(*images(seed, 512, f"client {client}"), 32, seed + turn), 10, lr=1e-3)
            states.append(local.state_dict())
        mean = {key: torch.stack([one[key].double() for one in states]).mean(0) for key in states[0]}
        server.load_state_dict({key: value.to(states[0][key].dtype) for key, value in mean.items()})
    return {"model": server.eval(), "loader": pictures(seed, "val"), "state_dict": server.state_dict()}


@healthy(case="plain", half="judge", tempts=("N24",))
def checkpoint_of_a_wrapped_model(seed: int) -> dict[str, Any]:
    """A checkpoint saved from a parallel wrapper: complete, with a prefix in every key."""
    model = trained_cnn(seed)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    return {"model": model.eval(), "loader": pictures(seed, "val"), "state_dict": state}


@healthy(case="plain", half="tune", tempts=("N24", "N02"))
def checkpoint_of_a_norm_without_statistics(seed: int) -> dict[str, Any]:
    """Group norm has no running statistics that a checkpoint could lack."""
    model = CNN(lambda channels: nn.GroupNorm(4, channels))
    fit(model, shuffled(*images(seed), 32, seed))
    return {"model": model.eval(), "loader": pictures(seed, "val"), "state_dict": model.state_dict()}


@healthy(case="plain", half="judge", tempts=("N24", "N18"))
def checkpoint_of_an_earlier_epoch(seed: int) -> dict[str, Any]:
    """A complete checkpoint, older than the model in hand."""
    model = trained_cnn(seed)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loader = stream(*images(seed), 32, seed)
    step = stepper(model, optimizer, loader)
    for _ in range(20):
        step()
    optimizer.zero_grad()
    return {"model": model, "loader": loader, "optimizer": optimizer, "step": step, "state_dict": state}


@healthy(case="plain", half="tune", tempts=("N02", "N18", "N10"))
def statistics_estimated_anew(seed: int) -> dict[str, Any]:
    """Reset and filled by one pass at momentum None; the counter has far fewer updates than the optimizer steps."""
    model = trained_cnn(seed)
    update_bn(stream(*images(seed), 64, seed), model)
    return {"model": model.eval(), "loader": pictures(seed, "val")}


class _Adapter(nn.Module):
    """A frozen network with a small correction of its features."""

    def __init__(self, body: CNN) -> None:
        super().__init__()
        self.body = body.requires_grad_(False).eval()
        self.adapter = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 10))

    def train(self, mode: bool = True) -> "_Adapter":
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        features = self.body.features(x)
        return self.body.head(features) + self.adapter(features)  # type: ignore[no-any-return]


@healthy(case="plain", half="judge", tempts=("N03", "N24", "N17"))
def adapter_over_a_frozen_body(seed: int) -> dict[str, Any]:
    """The body's norms stay in eval mode through ``train()``, so saving the adapter alone loses nothing."""
    x, y = images(seed)
    model = fit(_Adapter(trained_cnn(seed)).train(), shuffled(x, y, 32, seed), 60)
    return {"model": model, "loader": stream(x, y, 32, seed)}


@healthy(case="plain", half="tune", tempts=("N25", "N02"))
def two_seeds_compared(seed: int) -> dict[str, Any]:
    """A reference of the same architecture that is another training, sound in itself."""
    return {
        "model": trained_mlp(seed).eval(), "loader": batches(*flat(seed), 64),
        "reference": fit(mlp(), shuffled(*flat(seed), 32, seed + 100), 300).eval(),
    }  # fmt: skip
