"""The layer under test: how to make one, what it is to be like, and what it accepts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnprobe.errors import ArgumentError
from bnprobe.hooks.sites import unwrap
from bnprobe.testing.likes import LIKES, Like, Settings, settings_of
from bnprobe.testing.oracles.reference import Reference, reference
from bnprobe.testing.parts import Parts, State, parts_of
from bnprobe.testing.strategies.batch import Batch, tensor
from bnprobe.testing.strategies.batches import Shape
from bnprobe.testing.tolerance import Tolerance

__all__ = ["Specimen", "Subject"]

_CHANNEL_COUNTS = (1, 2, 3, 4, 6, 8)
_CHANNELS_FIRST: tuple[Shape, ...] = (("N", "C"), ("N", "C", "L"), ("N", "C", "H", "W"), ("N", "C", "D", "H", "W"))
_CHANNELS_LAST: tuple[Shape, ...] = (("N", "C"), ("N", "L", "C"), ("N", "H", "W", "C"))


@dataclass(frozen=True)
class Specimen:
    """One fresh layer with random scale and shift, its input, and what the law makes of both.

    Attributes:
        module: the layer, in the mode asked for.
        x: its input; a leaf that wants a gradient.
        parts: where the layer keeps its tensors.
        state: what they were before any forward.
        settings: of the layer.
    """

    module: nn.Module
    x: Tensor
    parts: Parts
    state: State
    settings: Settings

    @cached_property
    def law(self) -> Reference:
        """The law for this layer in this state, in the mode in which it was made."""
        return reference(self.x, self.settings, self.state, self.module.training)

    def law_at(self, x: Tensor, settings: Settings | None = None) -> Reference:
        """The law for another input, or other settings."""
        return reference(x, settings or self.settings, self.state, self.module.training)

    @cached_property
    def tolerance(self) -> Tolerance:
        """How far a correct layer may be off."""
        return Tolerance(self.law, self.x.dtype)

    @property
    def leaves(self) -> list[Tensor]:
        """Input, and scale and shift where there are any."""
        return [self.x, *(one for one in (self.parts.gamma, self.parts.beta) if one is not None)]

    def cotangent(self, seed: int = 0) -> Tensor:
        """A random gradient at the output."""
        axis = 1 if self.settings.like not in ("layer_norm", "rms_norm") else self.x.ndim - 1
        recipe = Batch(tuple(self.x.shape), "gaussian", seed + 1000, axis=axis)
        return recipe.tensor(self.x.device).to(self.x.dtype)


@dataclass(frozen=True, repr=False)
class Subject:
    """A normalization layer under test.

    Attributes:
        make: ``channels -> module``: a function or a class.
        like: whose laws the layer is to obey, one of :data:`bnprobe.testing.likes.LIKES`.
        shapes: of the inputs it takes, for instance ``[("N", "C", "L")]``; None to try those of torch's layers.
        channels: numbers of channels that ``make`` takes; None to try 1, 2, 3, 4, 6 and 8.
        dtypes: names of dtypes; None to try single and double precision.
        device: where to run.
        settings: those that the layer does not keep in an attribute of the usual name (``{"eps": 1e-3}``), fields of
            :class:`bnprobe.testing.likes.Settings`.
        name: for messages; default the class's name.

    Raises:
        ArgumentError: there is no such ``like``.
    """

    make: Callable[[int], nn.Module]
    like: Like
    shapes: Sequence[Shape] | None = None
    channels: Sequence[int] | None = None
    dtypes: Sequence[str] | None = None
    device: str = "cpu"
    settings: tuple[tuple[str, Any], ...] | dict[str, Any] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        if self.like not in LIKES:
            raise ArgumentError(f"like must be one of {', '.join(LIKES)}; got {self.like!r}")

    def __repr__(self) -> str:
        usual = {"shapes": None, "channels": None, "dtypes": None, "device": "cpu", "settings": (), "name": None}
        told = "".join(f", {key}={getattr(self, key)!r}" for key, one in usual.items() if getattr(self, key) != one)
        return f"Subject({_source(self.make)}, like={self.like!r}{told})"

    # ---- what it accepts

    @cached_property
    def accepted(self) -> tuple[tuple[Shape, int], ...]:
        """Pairs of a shape and a number of channels that a forward in training mode took.

        Raises:
            ArgumentError: there is none; the message has the last refusal.
        """
        usual = _CHANNELS_LAST if self.like in ("layer_norm", "rms_norm") else _CHANNELS_FIRST
        if self.like == "instance_norm":  # two axes are one sample without a name for it
            usual = usual[1:]
        found, refusal = [], "no number of channels was tried"
        for shape in self.shapes or usual:
            for channels in self.channels or _CHANNEL_COUNTS:
                try:
                    self._try(shape, channels)
                except Exception as error:  # whatever a foreign layer refuses with
                    refusal = f"{type(error).__name__}: {error}"
                else:
                    found.append((shape, channels))
        if not found:
            tried = ", ".join(str(tuple(shape)) for shape in self.shapes or usual)
            raise ArgumentError(
                f"{self.title} takes none of the shapes {tried}; shapes= and channels= say which it takes. "
                f"The last refusal: {refusal}"
            )
        return tuple(found)

    def _try(self, shape: Shape, channels: int, dtype: torch.dtype = torch.float32) -> None:
        sizes = {"N": 4, "C": channels, "L": 5, "H": 5, "W": 7, "D": 2}
        with torch.random.fork_rng(devices=[]):
            module = self.make(channels)
            settings = settings_of(unwrap(module), self.like, torch.float32, dict(self.settings))
            if settings.ghost:
                sizes["N"] = 2 * settings.ghost
            x = torch.randn([one if isinstance(one, int) else sizes.get(one, 5) for one in shape])
            x = x.to(self.device, dtype)
            module = module.to(self.device)
            y = (module.double() if dtype == torch.float64 else module)(x)
        if getattr(module, "_get_no_batch_dim", lambda: None)() == x.ndim:
            raise ArgumentError("it takes this for one sample without a batch")  # torch's instance norm
        if not isinstance(y, Tensor) or y.shape != x.shape:
            raise ArgumentError(f"its output is no tensor of the input's shape {tuple(x.shape)}")

    @cached_property
    def usable_dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes that it runs in, of single and double precision."""
        if self.dtypes is not None:
            return tuple(self.dtypes)
        shape, channels = self.accepted[0]
        try:
            self._try(shape, channels, torch.float64)
        except Exception:  # a kernel without double precision
            return ("float32",)
        return ("float32", "float64")

    @property
    def widest(self) -> tuple[str, ...]:
        """The dtype with most digits, in which laws of exact arithmetic are checked."""
        return ("float64",) if "float64" in self.usable_dtypes else self.usable_dtypes[:1]

    @cached_property
    def title(self) -> str:
        """The layer's name for messages."""
        if self.name is not None:
            return self.name
        try:
            with torch.random.fork_rng(devices=[]):
                return type(unwrap(self.make((self.channels or (4,))[0]))).__name__
        except Exception:  # it takes another number of channels
            return getattr(self.make, "__name__", repr(self.make))

    @cached_property
    def traits(self) -> frozenset[str]:
        """What it has of scale, shift, running statistics, counter, momentum, double precision, ranks and positions."""
        channels = self.accepted[-1][1]
        with torch.random.fork_rng(devices=[]):
            parts = parts_of(unwrap(self.make(channels)))
        has = {
            "scale": parts.gamma is not None,
            "shift": parts.beta is not None,
            "running statistics": parts.mean is not None and parts.variance is not None,
            "batch counter": parts.batches is not None,
            "attribute momentum": parts.mean is not None and hasattr(parts.keeper, "momentum"),
            "double precision": "float64" in self.usable_dtypes,
            "ranks": self.example_settings.ranks > 1,
            "positions": any(len(shape) > 2 for shape, _ in self.accepted),
            "images": any(tuple(shape) == ("N", "C", "H", "W") for shape, _ in self.accepted),
        }
        return frozenset(name for name, there in has.items() if there)

    @cached_property
    def example_settings(self) -> Settings:
        """Settings of a layer of the last accepted width."""
        _, channels = self.accepted[-1]
        with torch.random.fork_rng(devices=[]):
            return settings_of(unwrap(self.make(channels)), self.like, torch.float32, dict(self.settings))

    # ---- one of it

    def specimen(
        self, x: Batch | Tensor, *, training: bool = True, warm: bool | None = None, seed: int = 0
    ) -> Specimen:
        """A fresh layer for an input, with random scale and shift of both signs and of order 1.

        Args:
            x: the input.
            training: mode.
            warm: whether running statistics are random too, of order 1; default in evaluation mode and for batch
                renormalization, whose training mode uses them.
            seed: of scale and shift, where the input is a tensor; that of a recipe is its own.
        """
        seed = x.seed if isinstance(x, Batch) else seed
        axis = x.axis if isinstance(x, Batch) else self._axis(x)
        value = tensor(x, self.device)
        torch.manual_seed(seed)  # a layer may draw its parameters
        module = self.make(value.shape[axis]).to(self.device)
        if value.dtype == torch.float64:
            module = module.double()
        root = unwrap(module)
        parts = parts_of(root)
        rng = np.random.default_rng(seed + 500)
        if warm is None:
            warm = not training or self.like == "batch_renorm"
        _randomise(parts, rng, warm)
        settings = settings_of(root, self.like, value.dtype, dict(self.settings))
        leaf = value.detach().requires_grad_()
        return Specimen(module.train(training), leaf, parts, parts.state(), settings)

    def _axis(self, x: Tensor) -> int:
        """Where the channels are: as in the given shape with so many axes, else as in torch's layers."""
        for shape in self.shapes or ():
            if len(shape) == x.ndim:
                return tuple(shape).index("C")
        return x.ndim - 1 if self.like in ("layer_norm", "rms_norm") else 1


def _randomise(parts: Parts, rng: np.random.Generator, warm: bool) -> None:
    def fill(one: Tensor | None, values: np.ndarray[Any, Any]) -> None:
        if one is not None:
            with torch.no_grad():
                one.copy_(torch.from_numpy(values).reshape(one.shape))

    def size(one: Tensor | None) -> int:
        return 0 if one is None else one.numel()

    n = size(parts.gamma)
    fill(parts.gamma, rng.uniform(0.5, 2, n) * rng.choice([-1.0, 1.0], n))
    fill(parts.beta, rng.uniform(0.5, 2, size(parts.beta)) * rng.choice([-1.0, 1.0], size(parts.beta)))
    means, variances = rng.uniform(-1, 1, size(parts.mean)), rng.uniform(0.5, 2, size(parts.variance))
    if warm:
        fill(parts.mean, means)
        fill(parts.variance, variances)


def _source(make: Callable[[int], nn.Module]) -> str:
    """As code, as far as a callable can tell."""
    name = getattr(make, "__qualname__", type(make).__name__)
    return "make" if "<lambda>" in name or "<locals>" in name else name
