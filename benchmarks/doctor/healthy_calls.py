"""Several calls of one layer in a forward pass or in a step, and no harm in it."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.doctor.data import (
    CNN,
    batches,
    fit,
    generator,
    images,
    pictures,
    shuffled,
)  # fmt: skip
from benchmarks.doctor.healthy_nets import cooled, stepper, stream
from benchmarks.doctor.setup import healthy

Views = tuple[Tensor, Tensor]


def _views(seed: int, count: int = 32, size: int = 32) -> list[Views]:
    """Pairs of noisy views of the same pictures."""
    x, _ = images(seed, count * size, noise=0.0)
    draw = generator(seed, "views")
    pair = [x + 0.5 * torch.randn(x.shape, generator=draw) for _ in range(2)]
    return list(zip(pair[0].split(size), pair[1].split(size), strict=True))


def _contrast(left: Tensor, right: Tensor) -> Tensor:
    """Cross entropy of finding one's own other view among those of the batch."""
    logits = F.normalize(left, dim=1) @ F.normalize(right, dim=1).T / 0.2
    return F.cross_entropy(logits, torch.arange(len(left)))


def _separate(model: nn.Module, batch: Views) -> Views:
    return model(batch[0]), model(batch[1])


def _together(model: nn.Module, batch: Views) -> Views:
    left, right = model(torch.cat(batch)).chunk(2)
    return left, right


def _two_views(seed: int, call: Callable[[nn.Module, Views], Views]) -> dict[str, Any]:
    loader = _views(seed)

    def loss(model: nn.Module, batch: Views) -> Tensor:
        return _contrast(*call(model, batch))

    model = cooled(CNN(), loader, 120, loss=loss)
    return {"model": model, "loader": loader, "forward": call, "loss": loss}


@healthy(case="H26", half="tune", tempts=("N07", "N09"))
def two_views_separately(seed: int) -> dict[str, Any]:
    """Self-supervision: two calls a step on two views of one distribution."""
    return _two_views(seed, _separate)


@healthy(case="H26", half="judge", tempts=("N07", "N08"))
def two_views_together(seed: int) -> dict[str, Any]:
    """Self-supervision: both views in one call."""
    return _two_views(seed, _together)


class _Moco(nn.Module):
    """Query and momentum key encoder; keys are encoded in chunks of a random order, so that mates reveal nothing."""

    queue: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.query = CNN()
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(128, 10), dim=1))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Keys ``[N, 10]`` by batches of half the size in random order."""
        order = torch.randperm(len(x))
        keys = torch.cat([self.key(one) for one in x[order].chunk(2)])
        return F.normalize(keys[order.argsort()], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.query(x), dim=1)

    def loss(self, batch: Views) -> Tensor:
        """Cross entropy of the own key against the queue."""
        own, keys = self(batch[0]), self.encode(batch[1])
        logits = torch.cat([(own * keys).sum(1, keepdim=True), own @ self.queue.T], 1) / 0.2
        return F.cross_entropy(logits, torch.zeros(len(own), dtype=torch.long))


@healthy(case="H14", half="tune", tempts=("N08", "N07", "N03", "N25"))
def contrast_with_shuffled_batches(seed: int) -> dict[str, Any]:
    """A queue of keys and shuffled batch norm, as He et al. 2020 cure the leak."""
    model, loader = _Moco(), _views(seed)

    def follow() -> None:
        with torch.no_grad():
            for old, new in zip(model.key.parameters(), model.query.parameters(), strict=True):
                old.lerp_(new, 0.05)

    def loss(model: nn.Module, batch: Views) -> Tensor:
        return model.loss(batch)  # type: ignore[operator, no-any-return]

    fit(model, loader, 100, loss=loss, after=follow)
    return {"model": model, "loader": loader, "loss": loss, "forward": lambda model, batch: model(batch[0])}


def _judge() -> nn.Sequential:
    """A discriminator with one norm, as DCGAN has them behind the first layer."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1),
    )  # fmt: skip


def _real_and_fake(seed: int, near: bool) -> tuple[Tensor, Tensor]:
    """Pictures, and what a generator makes: near the pictures, or still noisier and duller."""
    real, other = images(seed, 1024)[0], images(seed, 1024, "fake")[0]
    return real, other.roll(1, -1) if near else 0.6 * other + 0.3


def _adversarial(model: nn.Module, batch: Views) -> Tensor:
    return F.softplus(-model(batch[0])).mean() + F.softplus(model(batch[1])).mean()


def _discriminator(seed: int, near: bool) -> dict[str, Any]:
    real, fake = _real_and_fake(seed, near)
    model = _judge()
    optimizer = torch.optim.Adam(model.parameters(), 2e-4 if near else 2e-3, (0.5, 0.999))
    loader = batches(real, fake, 64)
    fit(model, loader, 100, loss=_adversarial, optimizer=optimizer)
    step = stepper(model, optimizer, loader, _adversarial)
    return {
        "model": model, "loader": loader, "optimizer": optimizer, "step": step, "loss": _adversarial,
        "forward": _separate,
    }  # fmt: skip


@healthy(case="H13", half="tune", tempts=("N07", "N08", "N09"))
def real_and_fake_near_equilibrium(seed: int) -> dict[str, Any]:
    """Separate batches of real and fake pictures, whose distributions have met."""
    return _discriminator(seed, near=True)


@healthy(case="H13", half="judge", tempts=("N07", "N02", "N08"))
def real_and_fake_apart(seed: int) -> dict[str, Any]:
    """Distributions still differ, but the discriminator lives in train mode, and its user says so."""
    return {**_discriminator(seed, near=False), "intent": "batch-stats-at-test"}


class _DomainNorm(nn.Module):
    """A norm of its own for every domain (Chang et al. 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))

    def forward(self, x: Tensor, domain: int) -> Tensor:
        return self.norms[domain](x)  # type: ignore[no-any-return]


class _TwoDomains(nn.Module):
    """A network whose weights are shared by domains and whose norms are not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), _DomainNorm(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, 2, 1, bias=False), _DomainNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor, domain: int) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x), domain))
        x = F.relu(self.norm2(self.conv2(x), domain))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def _domains(seed: int) -> list[dict[str, Any]]:
    loader = []
    for number, (x, y) in enumerate(pictures(seed, count=32)):
        domain = number % 2
        loader.append({"x": 0.4 * x + 1.5 if domain else x, "y": y, "domain": domain})
    return loader


def _by_domain(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return model(batch["x"], batch["domain"])  # type: ignore[no-any-return]


def _domain_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return F.cross_entropy(_by_domain(model, batch), batch["y"])


@healthy(case="H13", half="tune", tempts=("N06", "N07", "N19"))
def domain_specific_norms(seed: int) -> dict[str, Any]:
    """Batches of one domain each, in turns; each norm sees one of them."""
    loader = _domains(seed)
    model = cooled(_TwoDomains(), loader, 240, loss=_domain_loss)
    return {"model": model, "loader": loader, "forward": _by_domain, "loss": _domain_loss}


class _Pyramid(nn.Module):
    """A convolution shared by three levels of a pyramid, with a norm for each level or one that looks at samples."""

    def __init__(self, norms: nn.ModuleList) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16)
        self.conv, self.norms, self.head = nn.Conv2d(16, 16, 3, 1, 1), norms, nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        total = torch.zeros(len(x), 16, device=x.device)
        for level in range(3):
            # Levels of a pyramid have different scales.
            h = self.conv(F.avg_pool2d(x, 2**level) * 3**level)
            total = total + F.relu(self.norms[level % len(self.norms)](h)).mean((2, 3))
        return self.head(total)  # type: ignore[no-any-return]


@healthy(case="plain", half="judge", tempts=("N07", "N31"))
def pyramid_with_a_norm_for_each_level(seed: int) -> dict[str, Any]:
    """The convolution is shared, statistics are not."""
    model = _Pyramid(nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3)))
    x, y = images(seed)
    return {"model": fit(model, shuffled(x, y, 32, seed), 120), "loader": stream(x, y, 32, seed)}


@healthy(case="plain", half="tune", tempts=("N07", "N16"))
def pyramid_with_shared_group_norm(seed: int) -> dict[str, Any]:
    """Levels differ, but group norm keeps no statistics of them."""
    model = _Pyramid(nn.ModuleList([nn.GroupNorm(4, 16)]))
    x, y = images(seed)
    return {"model": fit(model, shuffled(x, y, 32, seed), 120), "loader": stream(x, y, 32, seed)}


class _Averaged(nn.Module):
    """Test-time augmentation: the mean of the logits of a picture and its mirror image."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.body(x.flip(-1))) / 2  # type: ignore[no-any-return]


@healthy(case="plain", half="judge", tempts=("N07", "N09"))
def mirrored_at_test(seed: int) -> dict[str, Any]:
    """Two calls in a forward pass of the eval mode."""
    x, y = images(seed)
    body = fit(CNN(), shuffled(torch.cat([x, x.flip(-1)]), y.repeat(2), 32, seed))
    return {"model": _Averaged(body).eval(), "loader": pictures(seed, "val")}


@healthy(case="plain", half="tune", tempts=("N08", "N02"))
def trained_long_on_little(seed: int) -> dict[str, Any]:
    """Over-fitted: the validation loss is high by stored and by pooled statistics alike."""
    x, y = images(seed, 512, noise=1.6)
    model = fit(CNN(), shuffled(x, y, 64, seed), 200)
    return {"model": model, "loader": stream(x, y, 64, seed)}


@healthy(case="plain", half="judge", tempts=("N08", "N26"))
def contrastive_encoder_served(seed: int) -> dict[str, Any]:
    """The encoder of self-supervision in eval mode, without labels; its training loader shows one view."""
    loader = _views(seed)
    model = fit(CNN(), loader, 100, loss=lambda model, batch: _contrast(*_together(model, batch)))
    return {"model": model.eval(), "loader": [one for one, _ in loader], "val_loader": [two for _, two in loader[:20]]}
